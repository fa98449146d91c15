"""`vidqa bench`: rates of every stage on this machine."""

from __future__ import annotations

from typing import Any

import click

from vidqa.cli.options import HELP, BatchSizeType, model_options, output_options
from vidqa.cli.output import as_json
from vidqa.errors import EXIT_OK


@click.command("bench", context_settings=HELP, short_help="Rates of every stage on this machine.")
@click.argument("paths", nargs=-1, type=click.Path())
@click.option("--seconds", type=float, metavar="SECONDS", help="How long each stage is measured. [5]")
@click.option("--n-questions", type=click.IntRange(min=1), metavar="N", help="Questions about each clip. [8]")
@click.option("--max-new-tokens", type=click.IntRange(min=1), metavar="N", help="Longest answer. [64]")
@click.option("--batch-size", type=BatchSizeType(), metavar="auto|N", help="Prompts computed together. [auto]")
@model_options
@output_options
def command(paths: tuple[str, ...], **flags: Any) -> int:
    """Measure each stage alone, with the clips below PATHS or with one that is made for it.

    Says frames decoded, clips encoded, tokens read and written and answers given in a second; what limits; and how far
    the models are from what this machine reaches in plain matrix products and copies.

    \b
    Examples:
      vidqa bench
      vidqa bench /archive/some_clips --model /models/video-llava-7b --json
    """
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.bench import BenchOptions, bench

    session = CliContext(flags)
    batch_size, given = flags.get("batch_size"), ("seconds", "n_questions", "max_new_tokens")
    options = BenchOptions(
        batch_size=None if batch_size in (None, "auto") else int(batch_size),
        **{name: flags[name] for name in given if flags.get(name) is not None},
    )
    result = bench(session.model, paths, options, session.reporter)
    click.echo(as_json(result.as_dict()) if session.as_json else result.as_text())
    return EXIT_OK
