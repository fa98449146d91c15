"""`vidqa describe`: a table of answers for every clip."""

from __future__ import annotations

from typing import Any

import click

from vidqa.cli.options import HELP, cache_option, model_options, output_options, precision_options, work_options
from vidqa.errors import EXIT_OK


@click.command("describe", context_settings=HELP, short_help="A table of answers for every clip.")
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@click.option(
    "--out",
    required=True,
    metavar="TABLE",
    type=click.Path(),
    help="Ends in .parquet, .csv, .jsonl or .arrow; DIR/ is a data set of Parquet files, for very large tables.",
)
@click.option(
    "--questions",
    multiple=True,
    metavar="NAME|FILE",
    help="A set of questions: caption, detail, scene or demo, or a TOML file; repeatable. [caption]",
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), metavar="N", help="Longest answer. [what the model says]")
@click.option(
    "--retry",
    type=click.Choice(["failed", "all"]),
    help="Ask again what failed before; `failed` passes over what failed three times in a row.",
)
@click.option(
    "--prune-missing", is_flag=True, help="Remove the rows of files below PATHS that are gone; without it they stay."
)
@click.option(
    "--dry-run", is_flag=True, help="Only say what would be done: files, rows, hours of video, disk, estimated time."
)
@click.option("--log", metavar="FILE", type=click.Path(), help="Add a line for every event: time, stage, outcome, ...")
@click.option("--log-json", is_flag=True, help="Events as JSON objects; on stderr unless --log names a file.")
@click.option(
    "--metrics", metavar="FILE", type=click.Path(), help="Write the numbers for Prometheus' textfile collector (.prom)."
)
@work_options
@model_options
@precision_options
@cache_option
@output_options
def command(paths: tuple[str, ...], out: str, dry_run: bool, **flags: Any) -> int:
    """Ask every question of every clip below PATHS (files, folders, globs) and write one row each into TABLE.

    Rows that TABLE already has are kept and not asked again, so running the same command twice costs nothing, and a
    run that was stopped goes on where it was.

    \b
    Examples:
      vidqa describe examples/clips --out captions.parquet
      vidqa describe /archive --out answers.csv --questions my_questions.toml --segment 30
      vidqa describe /archive --out answers.csv --dry-run
      vidqa describe /archive --out answers.csv --retry failed -q --log nightly.log --metrics vidqa.prom
    """
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.describe import describe
    from vidqa.pipeline.dry_run import plan

    session = CliContext(flags)
    if dry_run:
        session.show(plan(paths, out, questions=session.questions, model=session.model, options=session.options))
        return EXIT_OK
    with session.watch(out) as watch:
        summary = describe(
            paths,
            out,
            questions=session.questions,
            model=session.model,
            options=session.options,
            reporter=session.reporter,
        )
        code = watch.done(summary)
    session.conclude(summary)
    return code
