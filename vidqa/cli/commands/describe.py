"""`vidqa describe`: answer questions about every file and write a table."""

from __future__ import annotations

import sys
from typing import Any

import click
from click.core import ParameterSource

from vidqa.cli.name_completion import question_set_names
from vidqa.cli.options import (
    HELP,
    cache_option,
    file_options,
    max_new_tokens_option,
    model_options,
    output_options,
    precision_options,
    progress_option,
    run_options,
    spreadsheet_option,
    strict_option,
)
from vidqa.errors import EXIT_OK, EXIT_PARTIAL


@click.command("describe", context_settings=HELP, short_help="Answer questions about every file and write a table.")
@click.argument("paths", nargs=-1, type=click.Path())
@click.option(
    "--out",
    required=True,
    metavar="TABLE",
    type=click.Path(),
    help="Table to write: .parquet, .csv, .jsonl or .arrow. DIR/ writes a dataset of Parquet files, for very large "
    "tables.",
)
@spreadsheet_option
@click.option(
    "--questions",
    multiple=True,
    metavar="NAME|FILE",
    shell_complete=question_set_names,
    help="Question set (caption, detail, scene or demo) or TOML file. May be repeated. [default: caption]",
)
@click.option(
    "--ask",
    multiple=True,
    metavar="TEXT",
    help='Ask this question, instead of the default or together with --questions: --ask "What happens?" --ask "Is '
    'anyone there?". May be repeated.',
)
@max_new_tokens_option
@click.option(
    "--retry",
    type=click.Choice(["failed", "all"]),
    help="Try failed rows again. `failed` skips files that failed in three runs in a row; `all` does not.",
)
@click.option(
    "--prune-missing",
    is_flag=True,
    help="Drop the rows of files below PATHS that no longer exist, and those about a half-finished or damaged version "
    "of a file that was replaced.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show what would be done, then exit: files, rows, hours of video, disk space, estimated time.",
)
@click.option("--log", metavar="FILE", type=click.Path(), help="Append an event log to FILE.")
@click.option("--log-json", is_flag=True, help="Write events as JSON objects, to stderr unless --log is given.")
@click.option(
    "--metrics", metavar="FILE", type=click.Path(), help="Write FILE (.prom) for the Prometheus textfile collector."
)
@run_options("one row per window")
@strict_option
@file_options
@model_options
@precision_options
@cache_option
@progress_option
@output_options
def command(paths: tuple[str, ...], out: str, dry_run: bool, **flags: Any) -> int:
    """Answer questions about every video and image in PATHS, and write one row each into TABLE.

    PATHS are files, folders and globs. Rows that TABLE already has are kept, so running the same command again costs
    nothing and resumes an interrupted run.

    \b
    Examples:
      vidqa describe clips --out captions.parquet
      vidqa describe clips --out answers.csv --questions clips/questions.toml --segment 1
      vidqa describe clips --out answers.csv --ask "What happens?" --ask "Is there a star?"
      vidqa describe clips --out answers.csv --exclude 'star*' --newer-than 1d --dry-run
      vidqa describe clips --out answers.csv --retry failed -q --log nightly.log --metrics vidqa.prom
    """
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.describe import describe

    context = CliContext(_with_questions(flags))
    if dry_run:
        return _dry_run(paths, out, context)
    with context.run_scope(out) as scope:
        summary = describe(
            paths,
            out,
            questions=context.questions,
            model=context.model,
            options=context.options,
            reporter=context.reporter,
        )
        code = scope.finish(summary)
    context.print_summary(summary)
    if context.reporter.level > 0 and not context.as_json and sys.stdout.isatty():
        from vidqa.cli.commands.tables import print_first_rows

        print_first_rows(context, out)
    return code


def _with_questions(flags: dict[str, Any]) -> dict[str, Any]:
    """Drop the defaults of --questions and --ask, from variables and vidqa.toml, if the command line has either."""
    names, context = ("questions", "ask"), click.get_current_context()
    given = [name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    return flags | {name: () for name in names if given and name not in given}


def _dry_run(paths: tuple[str, ...], out: str, context: Any) -> int:
    from vidqa.cli.output import as_json
    from vidqa.pipeline.dry_run import plan_run

    plan = plan_run(
        paths,
        out,
        questions=context.questions,
        model=context.model,
        options=context.options,
        reporter=context.reporter,
    )
    click.echo(as_json(plan.as_dict()) if context.as_json else plan.as_text())
    return EXIT_PARTIAL if plan.path_problems else EXIT_OK
