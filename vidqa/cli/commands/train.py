"""`vidqa train`: tune a model as a recipe says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vidqa.cli.options import HELP, cache_option, output_options
from vidqa.errors import EXIT_FAILED, EXIT_OK

if TYPE_CHECKING:  # it loads what a help text does not need
    from vidqa.cli.context import CliContext


@click.command("train", context_settings=HELP, short_help="Tune a model on conversations about clips.")
@click.argument("recipe", type=click.Path())
@click.option("--out", metavar="DIR", help="Folder of the new model and of the run. [the recipe's name, here]")
@click.option(
    "--encode",
    type=click.Choice(["cache", "on-the-fly"]),
    help="Features once, kept on disk; or anew for every step, for those who lack the disk. [cache]",
)
@click.option(
    "--resume",
    type=click.Choice(["auto", "never"]),
    help="Go on with a run that was broken off in DIR, or begin anew there. [auto]",
)
@click.option(
    "--check-data",
    is_flag=True,
    help="Train nothing: read every record, open every medium, count every token, and say what would be left out.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="A setting in place of the recipe's, for sweeps: stage.2.lr=2e-5, data.NAME.weight=2. May be given again.",
)
@click.option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N. [auto]")
@cache_option
@output_options
def command(recipe: str, **flags: Any) -> int:
    """Tune a model as RECIPE says: which base, which data, which stages, what comes out.

    \b
    Examples:
      vidqa train examples/recipes/small.toml --check-data
      vidqa train examples/recipes/small.toml --out tuned
      vidqa ask examples/clips/clip01.mp4 "What happens?" --model tuned
      vidqa train recipe.toml --set stage.2.lr=1e-4 --set seed=1 --out lr1e-4-seed1
      torchrun --nproc-per-node 8 -m vidqa train video_llava_stage2.toml --out tuned

    The same command goes on where a broken run was. Ctrl-C and SIGTERM end the
    step and save a checkpoint first. See docs/training.md.
    """
    from vidqa.cli.context import CliContext

    session = CliContext(flags)
    if flags.get("check_data"):
        return _check(recipe, session, flags)
    from vidqa.cli.output import as_json
    from vidqa.cli.run_scope import code_of, heard
    from vidqa.pipeline.train import train
    from vidqa.train.distributed import is_first

    try:
        with heard(session.reporter, speaks=is_first()):
            summary = train(
                recipe,
                flags.get("out"),
                encode=flags.get("encode") or "cache",
                resume=flags.get("resume") != "never",
                device=flags.get("device") or "auto",
                options=session.options,
                overrides=flags.get("overrides") or (),
                reporter=session.reporter,
            )
    except KeyboardInterrupt as asked:
        if is_first():
            raise
        return code_of(asked)  # all processes of torchrun get the signal; the first one says so
    if summary is None:  # one of several processes: the first one speaks
        return EXIT_OK
    session.reporter.say(summary.as_text())
    if session.as_json:
        click.echo(as_json(summary))
    return EXIT_OK


def _check(recipe: str, session: CliContext, flags: dict[str, Any]) -> int:
    """Print what the data hold; exit code 1 where training would stop over them."""
    from vidqa.cli.output import as_json
    from vidqa.pipeline.check_data import check

    overrides = flags.get("overrides") or ()
    found = check(recipe, flags.get("out"), options=session.options, overrides=overrides, reporter=session.reporter)
    for one in found:
        click.echo(as_json(one.as_dict()) if session.as_json else one.as_text())
    return EXIT_OK if all(one.checked.passes for one in found) else EXIT_FAILED
