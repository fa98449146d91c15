"""`vidqa ask`: answers on stdout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from vidqa.cli.options import HELP, cache_option, model_options, output_options, precision_options, work_options
from vidqa.cli.output import as_json, rows_as_json_lines, rows_as_table
from vidqa.common.display import display_path
from vidqa.errors import EXIT_OK, EXIT_PARTIAL, UsageError

if TYPE_CHECKING:
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.chat import Reply
    from vidqa.records import AnswerRow


@click.command("ask", context_settings=HELP, short_help="Answers about a clip, on stdout.")
@click.argument("media", type=click.Path())
@click.argument("questions", nargs=-1, required=True, metavar="QUESTION...")
@click.option(
    "--out", metavar="TABLE", type=click.Path(), help="Write a table (.parquet, .csv, .jsonl, .arrow) instead."
)
@click.option(
    "--with",
    "beside",
    multiple=True,
    type=click.Path(),
    metavar="MEDIA",
    help="Another clip or picture in the same prompt, after the first; repeatable.",
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), metavar="N", help="Longest answer. [what the model says]")
@work_options
@model_options
@precision_options
@cache_option
@output_options
def command(media: str, questions: tuple[str, ...], out: str | None, beside: tuple[str, ...], **flags: Any) -> int:
    """Ask questions about MEDIA: a clip, a picture, or a folder of them.

    One clip: the answers as plain text, one a line. Several clips: a table. With --json one object a line. A
    question that is repeated has its answer again; only a table of --out has one row for it.

    The clips of a folder are asked about one by one; those named by --with stand in one prompt with MEDIA.

    \b
    Examples:
      vidqa ask clip.mp4 "What happens?"
      vidqa ask clip.mp4 "What colour is the car?" "How many people are there?"
      vidqa ask clips/ "Is there a dog?" --json
      vidqa ask before.png --with after.png --with clip.mp4 "What has changed?"
    """
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.ask import ask, ask_to_table

    _check_order(media, questions)
    session = CliContext(flags)
    how: dict[str, Any] = {"model": session.model, "options": session.options, "reporter": session.reporter}
    if beside:
        return _together([media, *beside], questions, out, session)
    if out is not None:
        summary = ask_to_table(media, *questions, out=out, **how)
        session.conclude(summary)
        return EXIT_PARTIAL if summary.n_failed else EXIT_OK
    rows = ask(media, *questions, **how)
    one_clip = len({(row.root, row.path, row.start_s) for row in rows}) == 1
    if session.as_json:
        click.echo(rows_as_json_lines(rows), nl=False)
    elif one_clip:
        for row in rows:
            click.echo(row.answer or "")
    else:
        click.echo(rows_as_table(rows), nl=False)
    failed = [row for row in rows if row.status == "failed"]
    for row in failed if one_clip and not session.as_json else ():
        click.echo(f"vidqa: {display_path(row.path)}: {row.error_kind}: {row.error}", err=True)
    if not session.as_json:
        _say_if_cut(rows, session)
    return EXIT_PARTIAL if failed else EXIT_OK


def _together(media: list[str], questions: tuple[str, ...], out: str | None, session: CliContext) -> int:
    """Ask about all of them at once."""
    from vidqa.pipeline.chat import ask_together

    if out is not None:
        raise UsageError("a table has rows about one clip each, so --with and --out do not go together", hint="--json")
    how: dict[str, Any] = {"model": session.model, "options": session.options, "reporter": session.reporter}
    replies = ask_together(media, *questions, **how)
    for reply in replies:
        click.echo(as_json(reply) if session.as_json else reply.answer or "")
    failed = [reply for reply in replies if reply.status == "failed"]
    for reply in failed if not session.as_json else ():
        click.echo(f"vidqa: {reply.error_kind}: {reply.error}", err=True)
    if not session.as_json:
        _say_if_cut(replies, session)
    return EXIT_PARTIAL if failed else EXIT_OK


def _say_if_cut(answers: Sequence[AnswerRow] | Sequence[Reply], session: CliContext) -> None:
    """Half a sentence, or an empty line, would else pass for all that there is to say."""
    for status, why in (("truncated", "cut at the longest allowed length"), ("empty", "empty")):
        if number := sum(answer.status == status for answer in answers):
            session.reporter.say(f"({number} of {len(answers)} answer{'' if len(answers) == 1 else 's'} {why})")


def _check_order(media: str, questions: tuple[str, ...]) -> None:
    """Question and clip the wrong way round must not end in a search for a file of the question's name."""
    if not os.path.lexists(media) and (files := [text for text in questions if os.path.isfile(text)]):
        raise UsageError(
            f"{display_path(media)}: no such file", hint=f'MEDIA comes first: vidqa ask {display_path(files[0])} "..."'
        )
