"""`vidqa encode`: fill the feature cache."""

from __future__ import annotations

from typing import Any

import click

from vidqa.cli.options import (
    HELP,
    cache_option,
    file_options,
    model_options,
    output_options,
    progress_option,
    run_options,
    strict_option,
)


@click.command("encode", context_settings=HELP, short_help="Fill the feature cache without asking questions.")
@click.argument("paths", nargs=-1, type=click.Path())
@run_options("one cache entry per window")
@strict_option
@file_options
@model_options
@cache_option
@progress_option
@output_options
def command(paths: tuple[str, ...], **flags: Any) -> int:
    """Decode and encode every video and image in PATHS, so that later questions start from cached features.

    \b
    Examples:
      vidqa encode clips --segment 1
      vidqa encode clips --newer-than 1d --limit 1000
    """
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.encode import encode

    context = CliContext(flags)
    with context.run_scope() as scope:
        summary = encode(paths, model=context.model, options=context.options, reporter=context.reporter)
        code = scope.finish(summary)
    context.print_summary(summary)
    return code
