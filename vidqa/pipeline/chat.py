"""Pictures and clips that stand in one prompt: named files -> features in the order given -> answers, or a dialogue.

Knows the run's stages and the LLM; writes no table, whose rows are about one file each.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from vidqa.common.display import display_path, message_without_path
from vidqa.errors import ItemError, UsageError
from vidqa.generate.chat_session import ChatSession
from vidqa.generate.engine import Request, generate
from vidqa.media.files import Paths, as_path_list
from vidqa.media.scan import scan
from vidqa.model.bundle.bundle import Bundle
from vidqa.pipeline.ask import as_questions
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.pipeline.run.answer_stage import generation_settings
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.run_context import RunContext
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.records import Features, MediaItem, Status, WorkItem

#: Architecture -> how many pictures and clips one prompt of its published models may hold; others: any number.
_MOST = {"valley": 1, "video_chatgpt": 1}


@dataclass(frozen=True)
class Reply:
    """What was said about several media to one question."""

    media: tuple[str, ...]  # as named by the user
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
    """Ask about several pictures and clips at once: all of them stand before the question, in the order given.

    Args:
        media: files; the same one may be given twice.
        questions: at least one text.
        model: name or folder of a bundle, or an opened one.
        options: how it is done; None takes the user's cache and the defaults.
        reporter: hears progress and messages.

    Returns:
        One reply for each question given; one that is given twice is computed once. A reply that failed has `answer`
        None and says why.

    Raises:
        UsageError: no question, a folder in the place of a file, a segment length, or more media than the model knows.
        ItemError: a file cannot be read.
        VidqaError: the model or the cache cannot be used.
    """
    asked = as_questions(questions)
    run = RunContext.begin(model, options, reporter)
    features = features_of(run, media)
    requests = [Request(features, ((q.text, None),), run.options.max_new_tokens) for q in asked]
    answers = generate(
        run.model.llava, requests, generation_settings(run.model, run.options), batch_size=run.options.batch_size
    )
    names = tuple(map(str, media))
    replies: dict[str, Reply] = {}
    for question, a in zip(asked, answers, strict=True):
        if isinstance(a, ItemError):
            replies[question.text] = Reply(names, question.text, None, "failed", error_kind=a.kind, error=a.what)
            continue
        counts = (a.n_visual_tokens, a.n_prompt_tokens, a.n_answer_tokens)
        said = (a.text or None, a.status, a.finish_reason, None, None)
        replies[question.text] = Reply(names, question.text, *said, *counts)
    return [replies[text] for text in questions]


def chat(
    media: Paths,
    *,
    model: LoadedModel | str = "demo",
    options: RunOptions | None = None,
    reporter: Reporter = QUIET,
) -> ChatSession:
    """Begin a dialogue about a picture or a clip, or several: `chat("clip.mp4").ask("What happens?").text`.

    The media are decoded and encoded if the cache does not have them, and go through the LLM now; each later turn adds
    its own text only.

    Args:
        media: a file, or several.
        model: name or folder of a bundle, or an opened one.
        options: how it is done; None takes the user's cache and the defaults.
        reporter: hears progress and messages.

    Raises:
        UsageError: a folder in the place of a file, a segment length, more media than the model knows, or a model that
            was not tuned for dialogues.
        ItemError: a file cannot be read.
        VidqaError: the model or the cache cannot be used.
    """
    run = RunContext.begin(model, options, reporter)
    features = features_of(run, as_path_list(media))
    session = ChatSession(run.model.llava, features, generation_settings(run.model, run.options))
    session.warm()
    return session


def features_of(run: RunContext, media: Sequence[str | Path]) -> tuple[Features, ...]:
    """What the encoder saw of each file, whole, in the order given; from the cache where it is there.

    Raises:
        UsageError, ItemError, VidqaError: as `ask_together`.
    """
    if not media:
        raise UsageError("no picture and no clip is named", hint="vidqa chat clip.mp4")
    if run.options.segment_s is not None:
        raise UsageError("media that are asked about together are taken whole", hint="--segment whole")
    _check_number(run.model.bundle, len(media))
    items = [_item(os.fspath(path)) for path in media]
    found: dict[int, Features] = {}

    def owed(item: MediaItem, media_id: str) -> WorkItem:
        return WorkItem(item, media_id)

    with run.reporter.progress(len(items), "file"), closing(run.encoded(items, owed, ())) as encoded:
        for one in encoded:
            if one.error is not None:
                path = one.work.item.path
                raise ItemError(
                    one.error.kind,
                    f"{display_path(path)}: {message_without_path(one.error, path)}",
                    hint=one.error.hint,
                )
            found[id(one.work.item)] = one.segments[0].features
            run.reporter.advance()
    return tuple(found[id(item)] for item in items)


def _item(path: str) -> MediaItem:
    """A named file."""
    if os.path.isdir(path) or (not os.path.lexists(path) and glob.has_magic(path)):
        raise UsageError(f"{path}: name the files one by one; a folder or a pattern has no order", hint="vidqa ask")
    return scan([path]).items[0]


def _check_number(bundle: Bundle, n_media: int) -> None:
    spec = bundle.spec
    if n_media > _MOST.get(spec.architecture, n_media):
        what = f"the model {spec.name} ({spec.architecture}) knows one picture or clip in a prompt, not {n_media}"
        raise UsageError(what, hint="ask about each alone, or a model of the family video_llava")
