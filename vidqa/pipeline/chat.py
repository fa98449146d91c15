"""`chat`, and `ask --with`: several images and videos in one prompt -> answers, or a dialogue.

No table is written, because each row of a table is about one file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from vidqa.common.display import display_path, message_without_path
from vidqa.common.file_identity import absolute_path
from vidqa.errors import ItemError, UsageError
from vidqa.generate.chat_session import ChatSession
from vidqa.generate.engine import Request, generate
from vidqa.media.files import Paths, as_path_list
from vidqa.media.globs import is_glob
from vidqa.media.scan import named_item
from vidqa.model.bundle.bundle import Bundle
from vidqa.pipeline.ask import as_questions
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.pipeline.run.answer_stage import generation_settings
from vidqa.pipeline.run.feature_stages import encode_files
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.pending import every_file
from vidqa.pipeline.run.run_context import RunContext
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.records import Features, MediaItem, Status

#: Architecture -> maximum number of images and videos per prompt of its published models; others have no limit.
_MAX_MEDIA = {"valley": 1, "video_chatgpt": 1}


@dataclass(frozen=True)
class Reply:
    """Answer to one question about several media files."""

    media: tuple[str, ...]  # as the user named them
    question: str
    answer: str | None
    status: Status
    finish_reason: str | None = None
    error_kind: str | None = None
    error: str | None = None
    n_visual_tokens: int | None = None
    n_prompt_tokens: int | None = None
    n_answer_tokens: int | None = None


def ask_together(
    media: Sequence[str | Path],
    *questions: str,
    model: LoadedModel | str = "demo",
    options: RunOptions | None = None,
    reporter: Reporter = QUIET,
) -> list[Reply]:
    """Ask about several images and videos at once: all of them precede the question in one prompt, in the order given.

    Args:
        media: files; the same one may be given twice.
        *questions: at least one.
        model: name or folder of a bundle, or an open model.
        options: of the run; None for the defaults.
        reporter: receives progress and messages.

    Returns:
        One reply per question; a repeated question is computed once. A failed reply has the reason in `error`, and its
        `answer` is None.

    Raises:
        UsageError: there is no question, a folder instead of a file, a segment length, or more media than the model
            supports.
        ItemError: a file cannot be read.
        VidqaError: the model or the cache cannot be used.
    """
    question_list = as_questions(questions)
    run = RunContext.create(model, options, reporter)
    run.model.require_packages()
    features = features_of(run, as_path_list(media, "media"))
    requests = [Request(features, ((q.text, None),), run.options.max_new_tokens) for q in question_list]
    answers = generate(
        run.model.llava, requests, generation_settings(run.model, run.options), batch_size=run.options.batch_size
    )
    names = tuple(map(str, media))
    replies: dict[str, Reply] = {}
    for question, a in zip(question_list, answers, strict=True):
        if isinstance(a, ItemError):
            replies[question.text] = Reply(names, question.text, None, "failed", error_kind=a.kind, error=a.what)
        else:
            replies[question.text] = Reply(
                names,
                question.text,
                a.text or None,
                a.status,
                a.finish_reason,
                n_visual_tokens=a.n_visual_tokens,
                n_prompt_tokens=a.n_prompt_tokens,
                n_answer_tokens=a.n_answer_tokens,
            )
    return [replies[text.strip()] for text in questions]


def chat(
    media: Paths,
    *,
    model: LoadedModel | str = "demo",
    options: RunOptions | None = None,
    reporter: Reporter = QUIET,
) -> ChatSession:
    """Start a dialogue about one or several images and videos: `chat("clip.mp4").ask("What happens?").text`.

    The media are decoded and encoded unless they are cached, and their KV cache is computed now. Each later turn only
    computes its own text.

    Args:
        media: one or several files.
        model: name or folder of a bundle, or an open model.
        options: of the run; None for the defaults.
        reporter: receives progress and messages.

    Returns:
        The dialogue.

    Raises:
        UsageError: a folder instead of a file, a segment length, more media than the model supports, or a model that
            was not trained on dialogues.
        ItemError: a file cannot be read.
        VidqaError: the model or the cache cannot be used.
    """
    run = RunContext.create(model, options, reporter)
    run.model.require_packages()
    features = features_of(run, as_path_list(media, "media"))
    session = ChatSession(run.model.llava, features, generation_settings(run.model, run.options))
    session.warm()
    return session


def features_of(run: RunContext, media: Sequence[str | Path]) -> tuple[Features, ...]:
    """Return the features of each file, unsegmented, in the order given; cached ones are not computed again.

    Args:
        run: context of the run.
        media: files; the same one may be given twice.

    Raises:
        UsageError: a folder instead of a file, a segment length, or more media than the model supports.
        ItemError: a file cannot be read.
        VidqaError: the model or the cache cannot be used.
    """
    if not media:
        raise UsageError("no image or video was given", hint="vidqa chat clip.mp4")
    if run.options.segment_s is not None:
        raise UsageError("files in one prompt cannot be split into segments", hint="--segment whole")
    _check_number(run.model.bundle, len(media))
    items = [_item(os.fspath(path)) for path in media]
    features: dict[str, Features] = {}
    with (
        run.reporter.progress(len(items), "file", phase="encode"),
        closing(encode_files(run, items, every_file, note_level=1)) as encoded,
    ):
        for one in encoded:
            if one.error is not None:
                path = one.work.item.path
                what = f"{display_path(path)}: {message_without_path(one.error, path)}"
                raise ItemError(one.error.kind, what, hint=one.error.hint)
            for segment in one.segments:  # there is one
                features[one.work.item.path] = segment.features
            run.reporter.advance(int(one.is_last))
    return tuple(features[item.path] for item in items)


def _item(path: str) -> MediaItem:
    if os.path.isdir(path) or is_glob(path):
        hint = "vidqa ask accepts folders and patterns"
        raise UsageError(f"{display_path(path)}: name each file; a folder or a pattern has no order", hint=hint)
    try:
        return named_item(path)
    except ItemError as error:
        what = f"{display_path(path)}: {message_without_path(error, absolute_path(path))}"
        raise ItemError(error.kind, what, hint=error.hint) from error


def _check_number(bundle: Bundle, n_media: int) -> None:
    spec = bundle.spec
    if n_media > _MAX_MEDIA.get(spec.architecture, n_media):
        what = f"the model {spec.name} ({spec.architecture}) supports one image or video per prompt, not {n_media}"
        raise UsageError(what, hint="ask about each file separately, or use a model of the family video_llava")
