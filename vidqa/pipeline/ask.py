"""Questions typed by hand: one clip or a few, answers as rows, no table unless one is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path

from vidqa.errors import UsageError
from vidqa.media.files import Paths, as_path_list
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.pipeline.monitor.summary import Summary
from vidqa.pipeline.run.answer_stage import answer_works
from vidqa.pipeline.run.loaded_model import LoadedModel
from vidqa.pipeline.run.run_context import RunContext
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.records import AnswerRow, MediaItem, Question, WorkItem


def ask(
    media: Paths,
    *questions: str,
    model: LoadedModel | str = "demo",
    options: RunOptions | None = None,
    reporter: Reporter = QUIET,
) -> list[AnswerRow]:
    """Ask about a clip, a picture, or several.

    Args:
        media: a file, a folder, a glob, or a list of such.
        questions: at least one text.
        model: name or folder of a bundle, or an opened one (which saves loading it for every call).
        options: how it is done; None takes the user's cache and the defaults.
        reporter: hears progress and messages.

    Returns:
        One row for each file, question and segment: by file, then question as given, then time. A question that is
        given twice is computed once and has its rows twice. A row that failed has `answer` None and says why.

    Raises:
        UsageError: no question.
        VidqaError: there is no media, or the model or the cache cannot be used.
    """
    run = RunContext.begin(model, options, reporter)
    asked = as_questions(questions)
    found = run.find(as_path_list(media))

    def owed(item: MediaItem, media_id: str) -> WorkItem:
        return WorkItem(item, media_id, asked)

    rows: list[AnswerRow] = []
    with (
        reporter.progress(len(found.items), "file"),
        closing(run.encoded(found.items, owed, asked)) as encoded,
    ):
        for answered in answer_works(encoded, run.model, run.options, run.clock):
            rows += answered.rows
            reporter.advance()
    place = {(item.root, item.rel): number for number, item in enumerate(found.items)}
    rows.sort(key=lambda row: place[row.root, row.path])  # stable: questions and segments keep their order
    return list(_as_asked(rows, questions))


def _as_asked(rows: Iterable[AnswerRow], texts: Sequence[str]) -> Iterator[AnswerRow]:
    """The rows of each file in the order of the questions; a question that was asked twice has its rows twice."""
    for _, of_file in groupby(rows, key=lambda row: (row.root, row.path)):
        found: dict[str, list[AnswerRow]] = {}
        for row in of_file:
            found.setdefault(row.question, []).append(row)
        for text in texts:
            yield from found.get(text, ())


def ask_to_table(
    media: Paths,
    *questions: str,
    out: str | Path,
    model: LoadedModel | str = "demo",
    options: RunOptions | None = None,
    reporter: Reporter = QUIET,
) -> Summary:
    """As `ask`, into a table, which has one row for each question; what it has already is not asked again.

    See `describe` for errors.
    """
    from vidqa.pipeline.describe import describe  # polars comes with it, which answers on stdout do not need

    return describe(media, out, questions=as_questions(questions), model=model, options=options, reporter=reporter)


def as_questions(texts: Sequence[str]) -> tuple[Question, ...]:
    """Questions with ids q1, q2, ...; the same text twice is one question.

    Raises:
        UsageError: none at all, an empty one, or something that is no text.
    """
    if wrong := [text for text in texts if not isinstance(text, str)]:
        hint = 'one by one: ask("clip.mp4", "What happens?", "Who is there?"); describe takes Question values'
        raise UsageError(f"a question is a text, not {type(wrong[0]).__name__}", hint=hint)
    if not texts or not all(text.strip() for text in texts):
        raise UsageError("a question is missing", hint='vidqa ask clip.mp4 "What happens?"')
    return tuple(Question(f"q{number}", text) for number, text in enumerate(dict.fromkeys(texts), start=1))
