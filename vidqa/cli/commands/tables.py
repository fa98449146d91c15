"""`vidqa table`: inspect a table, drop rows, merge tables, convert formats. No model is loaded."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from vidqa.cli.options import HELP, combine, output_options, spreadsheet_option
from vidqa.cli.output import as_json
from vidqa.common.display import display_path, plural
from vidqa.errors import EXIT_OK, UsageError

if TYPE_CHECKING:  # imports polars
    from vidqa.cli.context import CliContext

_json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
_write_options = combine(
    click.option("--replace", is_flag=True, help="Replace an existing table."), spreadsheet_option, output_options
)


@click.group("table", context_settings=HELP, short_help="Inspect a table, drop rows, merge tables, convert formats.")
def command() -> None:
    """Inspect and maintain tables. TABLE is a .parquet, .csv, .jsonl or .arrow file, or the folder of a dataset.

    \b
    Examples:
      vidqa table head captions.parquet
      vidqa table info captions.parquet
      vidqa table show captions.parquet clip01.mp4
      vidqa table prune captions.parquet --gone --superseded
      vidqa table merge captions.parquet answers.csv --out all.parquet
      vidqa table convert captions.parquet captions.csv --spreadsheet
    """


@command.command("head", context_settings=HELP)
@click.argument("table", type=click.Path())
@click.option("-n", "n_rows", type=click.IntRange(min=1), default=10, metavar="N", help="Number of rows. [default: 10]")
@click.option(
    "--columns",
    multiple=True,
    metavar="NAME,...",
    help="Columns to show, separated by commas: those of the table, `row` (its number), and `current` (no for "
    "superseded rows). May be repeated.",
)
@_json_option
def head(table: str, n_rows: int, columns: tuple[str, ...], **flags: Any) -> int:
    """Print the first rows of TABLE.

    Long cells are cut; `vidqa table show` prints them completely. With --json, one object is printed per line, with all
    columns or those chosen.

    \b
    Examples:
      vidqa table head captions.parquet -n 20
      vidqa table head captions.parquet --columns row,path,answer,current
    """
    from vidqa.cli.table_text import DEFAULT_COLUMNS, head_text, terminal_width
    from vidqa.tables.reader import TableReader
    from vidqa.tables.row_lookup import first_rows
    from vidqa.tables.schema import SCHEMA

    chosen = _columns(columns, ["row", "current", *SCHEMA])
    reader = TableReader(table)
    names = chosen or (["row", *SCHEMA] if flags["as_json"] else DEFAULT_COLUMNS)
    rows = first_rows(reader, n_rows, names)
    if flags["as_json"]:
        click.echo("".join(as_json(row) + "\n" for row in rows), nl=False)
    else:
        click.echo(head_text(rows, chosen or None, terminal_width()), nl=False)
    return EXIT_OK


@command.command("info", context_settings=HELP)
@click.argument("table", type=click.Path())
@_json_option
def info(table: str, **flags: Any) -> int:
    """Count the rows of TABLE by status, question, model, settings and age, and the superseded ones.

    \b
    Example:
      vidqa table info captions.parquet
    """
    from vidqa.cli.table_text import info_as_dict, info_text, terminal_width
    from vidqa.tables.reader import TableReader
    from vidqa.tables.statistics import table_statistics

    reader = TableReader(table)
    found, n_pending = table_statistics(reader), reader.n_pending
    if flags["as_json"]:
        click.echo(as_json(info_as_dict(reader, found, n_pending)))
    else:
        click.echo(info_text(reader, found, n_pending, terminal_width()), nl=False)
    return EXIT_OK


@command.command("show", context_settings=HELP)
@click.argument("table", type=click.Path())
@click.argument("row")
@click.argument("question_id", required=False)
@_json_option
def show(table: str, row: str, question_id: str | None, **flags: Any) -> int:
    """Print everything about one row of TABLE, and the command that reproduces it.

    The output has all columns of the row, and the settings and model that its ids stand for. ROW is a path, which may
    be followed by @START or @START-END in seconds, or the row's number from `vidqa table head`. Numbers change when
    rows are dropped or tables are merged; paths do not. QUESTION_ID selects one of several questions. Write ./7 for a
    file that is called 7.

    \b
    Examples:
      vidqa table show captions.parquet 3
      vidqa table show captions.parquet clip01.mp4
      vidqa table show answers.csv clip01.mp4@1 what
    """
    from vidqa.cli.table_text import row_as_dict, row_text, terminal_width
    from vidqa.pipeline.table.reproduce import row_origin
    from vidqa.pipeline.table.row_address import find_row
    from vidqa.tables.reader import TableReader

    reader = TableReader(table)
    found = find_row(reader, row, question_id)
    origin = row_origin(found, reader.provenance)
    if flags["as_json"]:
        click.echo(as_json(row_as_dict(found, origin)))
    else:
        click.echo(row_text(found, origin, terminal_width()), nl=False)
    return EXIT_OK


@command.command("prune", context_settings=HELP)
@click.argument("table", type=click.Path())
@click.option("--gone", is_flag=True, help="Rows of files that no longer exist. Rows of missing or empty folders stay.")
@click.option(
    "--superseded", is_flag=True, help="Rows about older content of a path, and rows by a model that was replaced."
)
@click.option("--model", "models", multiple=True, metavar="M", help="Only rows of this model: its name or model_id.")
@click.option("--question", "questions", multiple=True, metavar="Q", help="Only rows of this question: its id or text.")
@click.option("--settings", multiple=True, metavar="S", help="Only rows with this settings_id.")
@click.option("--yes", is_flag=True, help="Drop the rows. Without it, nothing is changed.")
@output_options
def prune(table: str, gone: bool, superseded: bool, yes: bool, **flags: Any) -> int:
    """Drop rows of TABLE. Without --yes, only show what would be dropped.

    --gone and --superseded together drop rows to which either applies. --model, --question and --settings restrict
    that, or select rows on their own; each may be repeated.

    \b
    Examples:
      vidqa table prune captions.parquet --gone --superseded
      vidqa table prune captions.parquet --superseded --yes
      vidqa table prune answers.csv --model demo --question how_many --yes
    """
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.table.table_prune import prune_table
    from vidqa.tables.row_lookup import RowSelection

    context = CliContext(flags)
    selection = RowSelection(superseded, flags["models"], flags["questions"], flags["settings"])
    report = prune_table(table, selection, gone=gone, dry_run=not yes, reporter=context.reporter)
    for root in report.unavailable:
        context.reporter.message(f"note: {display_path(root)} is missing or empty: the rows of its files stay")
    if context.as_json:
        click.echo(as_json(report))
        return EXIT_OK
    names = {"gone": "of removed files", "content": "about older content", "model": "by a replaced model"}
    reasons = ", ".join(f"{n:,} {names[reason]}" for reason, n in report.reasons.items() if reason in names)
    verb = "dropped" if report.is_done else "would drop"
    click.echo(
        f"{verb} {plural(report.n_rows, 'row')} of {plural(report.n_files, 'file')}{f' ({reasons})' if reasons else ''}"
    )
    if context.reporter.level >= 2 or not report.is_done:
        for path in report.examples:
            click.echo(f"  {display_path(path)}")
        if report.n_files > len(report.examples):
            click.echo(f"  and {report.n_files - len(report.examples):,} more")
    click.echo(f"remaining: {plural(report.n_left, 'row')}")
    if report.n_rows and not report.is_done:
        click.echo("nothing was changed; add --yes to drop these rows")
    return EXIT_OK


@command.command("merge", context_settings=HELP)
@click.argument("tables", nargs=-1, required=True, type=click.Path(), metavar="TABLE...")
@click.option("--out", required=True, metavar="TABLE", type=click.Path(), help="Table to write; DIR/ writes a dataset.")
@_write_options
def merge(tables: tuple[str, ...], out: str, replace: bool, spreadsheet: bool, **flags: Any) -> int:
    """Merge tables, also of different formats.

    Of several rows about the same file, segment, question, model and settings, one is kept: a row that did not fail is
    preferred, then the newest. The input tables do not change; one of them may be the table to write.

    \b
    Examples:
      vidqa table merge captions.parquet answers.csv --out all.parquet
      vidqa table merge all.parquet answers.csv --out all.parquet
    """
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.table.table_write import merge_tables

    context = CliContext(flags)
    report = merge_tables(tables, out, replace=replace, for_spreadsheets=spreadsheet, reporter=context.reporter)
    if context.as_json:
        click.echo(as_json(report))
    else:
        n_same = report.n_read - report.n_written
        counts = f"{plural(report.n_written, 'row')} of {plural(len(tables), 'table')}"
        context.reporter.message(f"{display_path(out)}: {counts}, {n_same:,} dropped for better or newer ones")
    return EXIT_OK


@command.command("convert", context_settings=HELP)
@click.argument("table", type=click.Path())
@click.argument("target", required=False, metavar="[OUT]", type=click.Path())
@click.option("--out", metavar="OUT", type=click.Path(), help="Another way to name the table to write.")
@click.option("--current", is_flag=True, help="Write current rows only, without superseded ones.")
@_write_options
def convert(
    table: str, target: str | None, out: str | None, current: bool, replace: bool, spreadsheet: bool, **flags: Any
) -> int:
    """Write TABLE in another format: OUT is a .parquet, .csv, .jsonl or .arrow file, or DIR/ for a dataset.

    \b
    Examples:
      vidqa table convert captions.parquet captions.csv --spreadsheet
      vidqa table convert captions.parquet current.jsonl --current
    """
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.table.table_write import convert_table

    if (target is None) == (out is None):
        raise UsageError("name one table to write", hint=f"vidqa table convert {display_path(table)} OUT.csv")
    context = CliContext(flags)
    name = target or out or ""
    report = convert_table(
        table, name, only_current=current, replace=replace, for_spreadsheets=spreadsheet, reporter=context.reporter
    )
    if context.as_json:
        click.echo(as_json(report))
    else:
        context.reporter.message(f"{display_path(name)}: {plural(report.n_written, 'row')}")
    return EXIT_OK


def print_first_rows(context: CliContext, table: str) -> None:
    """Print the first rows of a table that a run has written, and how to see more.

    Args:
        context: of the command.
        table: as the user named it.
    """
    from vidqa.cli.table_text import DEFAULT_COLUMNS, head_text, terminal_width
    from vidqa.errors import VidqaError
    from vidqa.pipeline.table.reproduce import shell_word
    from vidqa.tables.reader import TableReader
    from vidqa.tables.row_lookup import first_rows

    try:
        rows = first_rows(TableReader(table), 5, DEFAULT_COLUMNS)
    except VidqaError:  # another process has replaced the table: the run itself succeeded
        return
    if not rows:
        return
    with suppress(OSError):  # the terminal was closed during the run, which has succeeded
        click.echo(f"\n{head_text(rows, None, terminal_width())}\nmore rows: vidqa table head {shell_word(table)}")


def _columns(given: tuple[str, ...], available: list[str]) -> list[str]:
    from vidqa.config.toml_lines import did_you_mean

    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in available]:
        what = f"no column {display_path(unknown[0])!r}{did_you_mean(unknown[0], available)}"
        raise UsageError(what, hint=f"columns: {', '.join(available)}")
    return list(dict.fromkeys(names))
