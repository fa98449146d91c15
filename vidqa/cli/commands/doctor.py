"""`vidqa doctor`: what is installed and works, one line each."""

from __future__ import annotations

from typing import Any

import click

from vidqa.cli.options import HELP, cache_option, output_options
from vidqa.cli.output import as_json
from vidqa.common.display import display_path
from vidqa.errors import EXIT_FAILED, EXIT_OK


@click.command("doctor", context_settings=HELP, short_help="What is installed and works.")
@click.option("--model", metavar="NAME|DIR", help="The model to look at. [demo]")
@cache_option
@output_options
def command(**flags: Any) -> int:
    """Say what is installed, which devices and decoders work, and whether cache and model are in order.

    Exit code 1 if a run could not work.

    \b
    Example:
      vidqa doctor
    """
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.doctor import examine

    session = CliContext(flags)
    checks = examine(session.cache_dir, session.model_name)
    if session.as_json:
        click.echo(as_json(checks))
    else:
        for check in checks:
            mark = "ok  " if check.ok else ("FAIL" if check.needed else "no  ")
            click.echo(f"{mark}  {check.name:<13} {display_path(check.detail)}")
    return EXIT_OK if all(check.ok or not check.needed for check in checks) else EXIT_FAILED
