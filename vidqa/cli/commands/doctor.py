"""`vidqa doctor`: what is installed and works."""

from __future__ import annotations

from typing import Any

import click

from vidqa.cli.name_completion import model_names
from vidqa.cli.options import HELP, cache_option, output_options
from vidqa.cli.output import as_json
from vidqa.common.display import display_path
from vidqa.errors import EXIT_FAILED, EXIT_OK


@click.command("doctor", context_settings=HELP, short_help="Check the installation, devices, cache and model.")
@click.option("--model", metavar="NAME|DIR", shell_complete=model_names, help="Model to check. [default: demo]")
@cache_option
@output_options
def command(**flags: Any) -> int:
    """Check which packages, devices and decoders work, and whether cache and model are usable.

    The checks `decode`, `encode` and `answer` decode a generated clip, and encode frames and generate a token with the
    demo model.
    Optional checks that do not pass are marked `skip`, required ones `FAIL`. The exit code is 1 if a run would not
    work.

    \b
    Example:
      vidqa doctor
    """
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.doctor import examine

    context = CliContext(flags)
    checks = examine(context.cache_dir, context.model_name)
    if context.as_json:
        click.echo(as_json(checks))
    else:
        for check in checks:
            mark = "ok  " if check.ok else ("FAIL" if check.needed else "skip")
            click.echo(f"{mark}  {check.name:<13} {display_path(check.detail)}")
    return EXIT_OK if all(check.ok or not check.needed for check in checks) else EXIT_FAILED
