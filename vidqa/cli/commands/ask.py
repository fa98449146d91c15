"""`vidqa ask`: answers on stdout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from vidqa.cli.options import (
    HELP,
    cache_option,
    max_new_tokens_option,
    model_options,
    output_options,
    precision_options,
    run_options,
    spreadsheet_option,
    strict_option,
)
from vidqa.cli.output import answer_text, as_json, rows_as_json_lines, rows_as_table
from vidqa.common.display import display_path, plural
from vidqa.errors import EXIT_OK, EXIT_PARTIAL, UsageError

if TYPE_CHECKING:
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.chat import Reply
    from vidqa.records import AnswerRow


@click.command("ask", context_settings=HELP, short_help="Print answers to questions about one or several files.")
@click.argument("media", type=click.Path())
@click.argument("questions", nargs=-1, required=True, metavar="QUESTION...")
@click.option(
    "--out",
    metavar="TABLE",
    type=click.Path(),
    help="Write a table (.parquet, .csv, .jsonl or .arrow) instead of printing the answers.",
)
@spreadsheet_option
@click.option(
    "--with",
    "more_media",
    multiple=True,
    type=click.Path(),
    metavar="MEDIA",
    help="Put another video or image into the same prompt, after the first. May be repeated.",
)
@max_new_tokens_option
@run_options("one answer per window")
@strict_option
@model_options
@precision_options
@cache_option
@output_options
def command(media: str, questions: tuple[str, ...], out: str | None, more_media: tuple[str, ...], **flags: Any) -> int:
    """Ask questions about MEDIA: a video, an image, or a folder of them.

    For one file the answers are printed as plain text, one per line; for several files as a table. With --json, one
    object is printed per line. The files of a folder are asked about separately; those given by --with share one
    prompt with MEDIA.

    \b
    Examples:
      vidqa ask clips/clip01.mp4 "What happens?"
      vidqa ask clips/clip01.mp4 "What happens?" "How many objects are there?"
      vidqa ask clips "Is there a star?" --json
      vidqa ask clips/clip05.mp4 --with clips/clip06.mp4 "What differs between the videos?"
    """
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.ask import ask_to_table, ask_with_summary

    _check_order(media, questions)
    context = CliContext(flags)
    if more_media:
        return _ask_together([media, *more_media], questions, out, context)
    if out is not None:
        summary = ask_to_table(
            media, *questions, out=out, model=context.model, options=context.options, reporter=context.reporter
        )
        context.print_summary(summary)
        return EXIT_PARTIAL if summary.is_partial else EXIT_OK
    rows, summary = ask_with_summary(
        media, *questions, model=context.model, options=context.options, reporter=context.reporter
    )
    one_file = len({(row.root, row.path, row.start_s) for row in rows}) == 1
    if context.as_json:
        click.echo(rows_as_json_lines(rows), nl=False)
    elif one_file:
        for row in rows:
            click.echo(answer_text(row.answer))
    else:
        click.echo(rows_as_table(rows), nl=False)
    failed = [row for row in rows if row.status == "failed"]
    for row in failed if one_file and not context.as_json else ():
        click.echo(f"vidqa: {display_path(row.path)}: {row.error_kind}: {row.error}", err=True)
    if not context.as_json:
        _report_incomplete(rows, context)
    return EXIT_PARTIAL if failed or summary.path_problems else EXIT_OK


def _ask_together(media: list[str], questions: tuple[str, ...], out: str | None, context: CliContext) -> int:
    """Ask about several files in one prompt."""
    from vidqa.pipeline.chat import ask_together

    if out is not None:
        raise UsageError("--with and --out exclude each other: a row of a table is about one file", hint="--json")
    replies = ask_together(media, *questions, model=context.model, options=context.options, reporter=context.reporter)
    for reply in replies:
        click.echo(as_json(reply) if context.as_json else answer_text(reply.answer))
    failed = [reply for reply in replies if reply.status == "failed"]
    for reply in failed if not context.as_json else ():
        click.echo(f"vidqa: {reply.error_kind}: {reply.error}", err=True)
    if not context.as_json:
        _report_incomplete(replies, context)
    return EXIT_PARTIAL if failed else EXIT_OK


def _report_incomplete(answers: Sequence[AnswerRow] | Sequence[Reply], context: CliContext) -> None:
    """Report truncated and empty answers, which look like complete ones."""
    for status, what in (("truncated", "truncated at the maximum number of tokens"), ("empty", "empty")):
        if number := sum(answer.status == status for answer in answers):
            context.reporter.message(f"({number} of {plural(len(answers), 'answer')} {what})")


def _check_order(media: str, questions: tuple[str, ...]) -> None:
    """Recognize swapped arguments, instead of reporting that there is no file named like the question."""
    if not os.path.lexists(media) and (files := [text for text in questions if os.path.isfile(text)]):
        hint = f'MEDIA comes first: vidqa ask {display_path(files[0])} "..."'
        raise UsageError(f"{display_path(media)}: no such file", hint=hint)
