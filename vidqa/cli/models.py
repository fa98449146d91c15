"""`vidqa models`: which bundles are here, and whether one is whole."""

from __future__ import annotations

from typing import Any

import click

from vidqa.cli.options import HELP, output_options
from vidqa.cli.shown import as_json as to_json
from vidqa.errors import EXIT_FAILED, EXIT_OK


@click.group("models", context_settings=HELP, short_help="Which models are here, and whether one is whole.")
def command() -> None:
    """Look after model bundles.

    \b
    Examples:
      vidqa models list
      vidqa models verify demo
    """


@command.command("list", context_settings=HELP)
@click.argument("folders", nargs=-1, type=click.Path())
@output_options
def list_models(folders: tuple[str, ...], as_json: bool, **_flags: Any) -> int:
    """List the bundled models, and those in FOLDERS (the current folder by default).

    \b
    Example:
      vidqa models list /models
    """
    from vidqa.pipeline.models import find_models

    found = find_models(folders or (".",))
    if as_json:
        click.echo(to_json(found))
        return EXIT_OK
    if not found:
        click.echo("no models found", err=True)
    for model in found:
        click.echo(f"{model.name}  {model.folder}" + (f"  NOT USABLE: {model.problem}" if model.problem else ""))
    return EXIT_OK


@command.command("verify", context_settings=HELP)
@click.argument("model", metavar="NAME|DIR")
@output_options
def verify(model: str, as_json: bool, **_flags: Any) -> int:
    """Read every part of a bundle again and compare its digest. Exit code 1 if something is wrong.

    \b
    Example:
      vidqa models verify demo
    """
    from vidqa.model.bundle import load_bundle

    bundle = load_bundle(model)
    problems = bundle.verify()
    if as_json:
        result = {"model": bundle.spec.name, "folder": bundle.folder, "ok": not problems, "problems": problems}
        click.echo(to_json(result))
    else:
        for problem in problems:
            click.echo(problem)
        click.echo(f"{bundle.spec.name} ({bundle.folder}): " + ("ok" if not problems else f"{len(problems)} problems"))
    return EXIT_FAILED if problems else EXIT_OK
