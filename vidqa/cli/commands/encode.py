"""`vidqa encode`: fill the feature cache, ask nothing."""

from __future__ import annotations

from typing import Any

import click

from vidqa.cli.options import HELP, cache_option, model_options, output_options, work_options


@click.command("encode", context_settings=HELP, short_help="Fill the feature cache, ask nothing.")
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@work_options
@model_options
@cache_option
@output_options
def command(paths: tuple[str, ...], **flags: Any) -> int:
    """Decode and encode every clip below PATHS, so that later questions start from the cached features.

    \b
    Example:
      vidqa encode /archive --segment 30
    """
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.describe import encode

    session = CliContext(flags)
    with session.watch() as watch:
        summary = encode(paths, model=session.model, options=session.options, reporter=session.reporter)
        code = watch.done(summary)
    session.conclude(summary)
    return code
