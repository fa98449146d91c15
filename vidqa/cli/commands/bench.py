"""`vidqa bench`: throughput of every stage on this machine."""

from __future__ import annotations

from typing import Any

import click

from vidqa.cli.options import HELP, BatchSizeType, model_options, output_options
from vidqa.cli.output import as_json
from vidqa.errors import EXIT_OK, EXIT_PARTIAL


@click.command("bench", context_settings=HELP, short_help="Measure the throughput of every stage.")
@click.argument("paths", nargs=-1, type=click.Path())
@click.option("--seconds", type=float, metavar="SECONDS", help="Time to measure each stage. [default: 5]")
@click.option("--n-questions", type=click.IntRange(min=1), metavar="N", help="Questions per file. [default: 8]")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Maximum number of tokens per answer. [default: 64]",
)
@click.option(
    "--batch-size",
    type=BatchSizeType(),
    metavar="auto|N",
    help="Number of prompts that are computed together. [default: auto]",
)
@model_options
@output_options
def command(paths: tuple[str, ...], **flags: Any) -> int:
    """Measure each stage separately, with the files in PATHS or with a generated video.

    The result is the number of frames decoded, segments encoded, tokens processed and answers given per second, the
    bottleneck, and how close the models come to the speed of this machine in matrix multiplications and copies.

    \b
    Examples:
      vidqa bench
      vidqa bench clips --seconds 1 --json
    """
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.bench import BenchOptions, bench

    context = CliContext(flags)
    batch_size, names = flags.get("batch_size"), ("seconds", "n_questions", "max_new_tokens")
    options = BenchOptions(
        batch_size=None if batch_size in (None, "auto") else int(batch_size),
        **{name: flags[name] for name in names if flags.get(name) is not None},
    )
    result = bench(context.model, paths, options, context.reporter)
    click.echo(as_json(result.as_dict()) if context.as_json else result.as_text())
    return EXIT_PARTIAL if result.n_path_problems else EXIT_OK
