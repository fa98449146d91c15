"""`vidqa train`: fine-tune a model as a recipe defines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vidqa.cli.name_completion import devices
from vidqa.cli.options import HELP, cache_option, output_options, progress_option
from vidqa.errors import EXIT_FAILED, EXIT_OK

if TYPE_CHECKING:
    from vidqa.cli.context import CliContext


@click.command("train", context_settings=HELP, short_help="Fine-tune a model on conversations about videos and images.")
@click.argument("recipe", type=click.Path())
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(),
    help="Folder for the new model and the files of the run. [default: the name of the recipe]",
)
@click.option(
    "--encode",
    type=click.Choice(["cache", "on-the-fly"]),
    help="Compute features once and keep them on disk, or compute them in every step. [default: cache]",
)
@click.option(
    "--resume",
    type=click.Choice(["auto", "never"]),
    help="Resume an interrupted run in DIR, or start from scratch. [default: auto]",
)
@click.option(
    "--check-data",
    is_flag=True,
    help="Check the data without training: read every record, open every file, count tokens, and list rejects.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Override a setting of the recipe: stage.2.learning_rate=2e-5, data.NAME.weight=2. May be repeated.",
)
@click.option("--device", metavar="DEVICE", shell_complete=devices, help="auto, cpu, cuda or cuda:N. [default: auto]")
@cache_option
@progress_option
@output_options
def command(recipe: str, **flags: Any) -> int:
    """Fine-tune a model. RECIPE is a TOML file with the base model, the data, the stages and the output.

    \b
    Examples:
      vidqa train clips/training/recipe.toml --check-data
      vidqa train clips/training/recipe.toml --out finetuned
      vidqa ask clips/clip01.mp4 "What happens?" --model finetuned
      vidqa train clips/training/recipe.toml --set stage.2.learning_rate=1e-4 --set seed=1 --out lr1e-4-seed1
      torchrun --nproc-per-node 2 --no-python vidqa train clips/training/recipe.toml --out two-processes

    The same command resumes an interrupted run. Ctrl-C and SIGTERM finish the current step and save a checkpoint
    first. See docs/training.md.
    """
    from vidqa.cli.context import CliContext
    from vidqa.common.extras import require

    require("training", "train", "pydantic", "accelerate")  # before they are imported
    context = CliContext(flags)
    if flags.get("check_data"):
        return _check(recipe, context, flags)
    from vidqa.cli.output import as_json
    from vidqa.cli.run_scope import exit_code_of, handle_signals
    from vidqa.pipeline.train import train
    from vidqa.training.distributed import is_first

    try:
        with handle_signals(context.reporter, prints=is_first()):
            summary = train(
                recipe,
                flags.get("out"),
                encode=flags.get("encode") or "cache",
                resume=flags.get("resume") != "never",
                device=flags.get("device") or "auto",
                options=context.options,
                overrides=flags.get("overrides") or (),
                reporter=context.reporter,
            )
    except KeyboardInterrupt as error:
        if is_first():
            raise
        return exit_code_of(error)  # torchrun signals all processes; the first one prints the message
    if summary is None:  # only the first of several processes has the summary
        return EXIT_OK
    context.reporter.message(summary.as_text())
    if context.as_json:
        click.echo(as_json(summary))
    return EXIT_OK


def _check(recipe: str, context: CliContext, flags: dict[str, Any]) -> int:
    """Print the result of the data check; the exit code is 1 if training would fail."""
    from vidqa.cli.output import as_json
    from vidqa.pipeline.check_data import check_data

    overrides = flags.get("overrides") or ()
    found = check_data(
        recipe,
        flags.get("out"),
        device=flags.get("device") or "auto",
        options=context.options,
        overrides=overrides,
        reporter=context.reporter,
    )
    for one in found:
        click.echo(as_json(one.as_dict()) if context.as_json else one.as_text())
    return EXIT_OK if all(one.passes for one in found) else EXIT_FAILED
