"""`ask`: questions about one or several files -> answers as rows; a table is written only on request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import groupby
from pathlib import Path

from vidqa.errors import UsageError, VidqaError
from vidqa.media.files import Paths
from vidqa.pipeline.monitor.progress_display import Progress
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.pipeline.monitor.summary import Summary, excluded_line
from vidqa.pipeline.run.answer_stage import answer_items
from vidqa.pipeline.run.feature_stages import encode_files
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.pending import every_file
from vidqa.pipeline.run.run_context import RunContext
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.pipeline.run.scanning import find_media, first_files
from vidqa.prompts.questions import question_from_text
from vidqa.records import AnswerRow, Question


def ask(
    media: Paths,
    *questions: str,
    model: LoadedModel | str = "demo",
    options: RunOptions | None = None,
    reporter: Reporter = QUIET,
    progress: Callable[[Progress], object] | None = None,
) -> list[AnswerRow]:
    """Ask questions about one or several videos and images.

    Args:
        media: one or several files, folders or globs.
        *questions: at least one.
        model: name or folder of a bundle, or an open model, which saves loading it for every call.
        options: of the run; None for the defaults.
        reporter: receives progress and messages.
        progress: called with the progress while the run works; see `describe`.

    Returns:
        One row per file, question and segment, in this order: by file, then by question as given, then by time. A
        repeated question is computed once and its rows are repeated. A failed row has the reason in `error`, and its
        `answer` is None.

    Raises:
        TypeError: an argument has the wrong type.
        UsageError: there is no question, or an invalid one.
        VidqaError: there is no media, or all of it is excluded, or the model or the cache cannot be used.
    """
    return ask_with_summary(media, *questions, model=model, options=options, reporter=reporter, progress=progress)[0]


def ask_with_summary(
    media: Paths,
    *questions: str,
    model: LoadedModel | str = "demo",
    options: RunOptions | None = None,
    reporter: Reporter = QUIET,
    progress: Callable[[Progress], object] | None = None,
) -> tuple[list[AnswerRow], Summary]:
    """Ask questions as `ask` does.

    Args:
        media: as for `ask`.
        *questions: as for `ask`.
        model: as for `ask`.
        options: as for `ask`.
        reporter: as for `ask`.
        progress: as for `ask`.

    Returns:
        The rows, and counts of the run, among them the paths without media.

    Raises:
        VidqaError: as for `ask`.
    """
    run = RunContext.create(model, options, reporter, progress)
    reporter = run.reporter
    run.model.require_packages()
    question_list = as_questions(questions)
    items = first_files(run, find_media(run, run.options.files.paths(media, "media")))
    if not items:
        raise VidqaError(f"no file is left: {excluded_line(run.summary.excluded)}", hint="name the file")
    pending = partial(every_file, questions=question_list)
    rows: list[AnswerRow] = []
    encoded = encode_files(run, items, pending, note_level=1)
    with (
        reporter.progress(len(items), "file", phase="answer"),
        closing(answer_items(encoded, run.model, run.options, run.clock)) as finished,
    ):
        for answered in finished:
            rows += answered.rows
            has_failed = any(row.status == "failed" for row in answered.rows)
            path = answered.work.item.path
            reporter.advance_file(path, answered.share, is_last=answered.is_last, failed=has_failed)
    position = {(item.root, item.rel): number for number, item in enumerate(items)}
    rows.sort(key=lambda row: (position[row.root, row.path], row.start_s or 0.0))
    return list(_in_order_of_questions(rows, questions)), run.summary


def _in_order_of_questions(rows: Iterable[AnswerRow], texts: Sequence[str]) -> Iterator[AnswerRow]:
    """Yield the rows of each file in the order of the questions; repeat the rows of repeated questions."""
    for _, file_rows in groupby(rows, key=lambda row: (row.root, row.path)):
        by_question: dict[str, list[AnswerRow]] = {}
        for row in file_rows:
            by_question.setdefault(row.question, []).append(row)
        for text in texts:
            yield from by_question.get(text.strip(), ())


def ask_to_table(
    media: Paths,
    *questions: str,
    out: str | Path,
    model: LoadedModel | str = "demo",
    options: RunOptions | None = None,
    reporter: Reporter = QUIET,
    progress: Callable[[Progress], object] | None = None,
) -> Summary:
    """Ask questions as `ask` does, and write the rows into a table as `describe` does.

    Args:
        media: as for `ask`.
        *questions: as for `ask`; a repeated question has its rows once.
        out: the table; rows that it already has are not computed again.
        model: as for `ask`.
        options: as for `ask`.
        reporter: as for `ask`.
        progress: as for `ask`.

    Returns:
        Counts of the run.

    Raises:
        VidqaError: as for `describe`.
    """
    from vidqa.pipeline.describe import describe  # imports polars, which answers on stdout do not need

    return describe(
        media,
        out,
        questions=as_questions(questions),
        model=model,
        options=options,
        reporter=reporter,
        progress=progress,
    )


def as_questions(texts: Sequence[str]) -> tuple[Question, ...]:
    """Return the questions, each once.

    Args:
        texts: of the questions.

    Raises:
        UsageError: there is no question, an empty one, or one that is not a string or not valid Unicode.
    """
    if wrong := [text for text in texts if not isinstance(text, str)]:
        hint = 'one argument each: ask("clip.mp4", "What happens?", "Who is there?"); describe accepts Question values'
        raise UsageError(f"a question must be a str, not {type(wrong[0]).__name__}", hint=hint)
    return tuple(dict.fromkeys(question_from_text(text) for text in texts or ("",)))
