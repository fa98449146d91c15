"""`vidqa models`: which bundles are here, whether one is whole, and how published weights become one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vidqa.cli.options import HELP, _with, output_options
from vidqa.cli.output import as_json as to_json
from vidqa.common.display import human_bytes, human_duration
from vidqa.errors import EXIT_FAILED, EXIT_OK, UsageError

if TYPE_CHECKING:  # it loads torch
    from vidqa.convert.convert import Conversion
    from vidqa.convert.plan import Mode

#: What a conversion does besides reading and writing.
_conversion_options = _with(
    click.option(
        "--dtype",
        type=click.Choice(["keep", "float32", "float16", "bfloat16"]),
        help="Type of the language model and connector. [keep]",
    ),
    click.option(
        "--encoders",
        type=click.Choice(["float32", "float16"]),
        help="Type of the image and video encoder. float16 is for GPUs, whose matrix units do not take float32; a CPU "
        "is slower with it. Features differ in the third digit. [float32]",
    ),
    click.option(
        "--compat",
        type=click.Choice(["fixed", "original"]),
        help="fixed: known faults of the published code are not repeated; original: its prompt and pictures as its "
        "demos use them, for comparisons. bundle.json lists both. [fixed]",
    ),
    click.option("--replace", is_flag=True, help="Put the model in the place of an older one."),
)


@click.group("models", context_settings=HELP, short_help="List, check, convert and fetch models.")
def command() -> None:
    """Look after model bundles.

    \b
    Examples:
      vidqa models list
      vidqa models verify demo
      vidqa models pull video-llava-7b
      vidqa models convert Video-LLaVA-7B --out models/video-llava
    """


@command.command("list", context_settings=HELP)
@click.argument("folders", nargs=-1, type=click.Path())
@click.option("--published", is_flag=True, help="List what `vidqa models pull` knows, instead.")
@output_options
def list_models(folders: tuple[str, ...], published: bool, as_json: bool, **_flags: Any) -> int:
    """List the bundled models, the pulled ones, and those in FOLDERS (the current folder by default).

    \b
    Examples:
      vidqa models list /models
      vidqa models list --published
    """
    from vidqa.pipeline.models import find_models

    if published:
        return _list_published(as_json)
    found = find_models(folders or (".",))
    if as_json:
        click.echo(to_json(found))
        return EXIT_OK
    if not found:
        click.echo("no models found", err=True)
    for model in found:
        says = f"NOT USABLE: {model.problem}" if model.problem else _variant(model.variant, model.compat)
        click.echo(f"{model.name}  {model.folder}{'  ' if says else ''}{says}")
    return EXIT_OK


def _variant(variant: str, mode: str) -> str:
    """Which model it is; the same weights as the published programs use them are another one to those who compare."""
    return f"{variant} (compat original)" if mode == "original" else variant


def _list_published(as_json: bool) -> int:
    from vidqa.convert.published import PUBLISHED

    if as_json:
        click.echo(to_json([*PUBLISHED.values()]))
        return EXIT_OK
    for model in PUBLISHED.values():
        repos = " + ".join(repo.id for repo in (*model.repos, *model.towers))
        click.echo(f"{model.name}  {model.says} ({repos})")
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
    from vidqa.model.bundle.bundle import load_bundle

    bundle = load_bundle(model)
    problems = bundle.verify()
    if as_json:
        result = {"model": bundle.spec.name, "folder": bundle.folder, "ok": not problems, "problems": problems}
        click.echo(to_json(result))
    else:
        for problem in problems:
            click.echo(problem)
        click.echo(f"{bundle.spec.name} ({bundle.folder}): {'NOT ok' if problems else 'ok'}")
    return EXIT_FAILED if problems else EXIT_OK


@command.command("convert", context_settings=HELP)
@click.argument("parts", nargs=-1, required=True, metavar="DIR|FILE...", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, metavar="BUNDLE", type=click.Path(path_type=Path), help="Folder of the new model."
)
@click.option(
    "--towers",
    multiple=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="A tower's own folder, in place of the one inside the checkpoint. Repeatable.",
)
@click.option("--name", metavar="NAME", help="Name of the model. [that of --out]")
@_conversion_options
@output_options
def convert(parts: tuple[Path, ...], out: Path, towers: tuple[Path, ...], **flags: Any) -> int:
    """Turn published weights into a model of vidqa.

    The parts are recognised by what is in them, in any order: a whole checkpoint, or a language model, LanguageBind's
    image and video towers, a projector, a LoRA adapter. A key that is missing or unknown is an error, and nothing is
    written then. Only weights are read; no code of a checkpoint runs.

    \b
    Examples:
      vidqa models convert Video-LLaVA-7B --out models/video-llava
      vidqa models convert vicuna-7b mm_projector.bin LanguageBind_Image LanguageBind_Video_merge --out mine
      vidqa models convert Video-LLaVA-7B-hf --towers LanguageBind_Image --towers LanguageBind_Video_merge --out hf
      vidqa models convert Video-ChatGPT-7B LLaVA-7B-Lightening-v1-1 clip-vit-large-patch14 --out chatgpt
      vidqa models convert valley-13b-v1-delta llama-13b --out valley
    """
    from vidqa.cli.context import CliContext
    from vidqa.convert.convert import convert as convert_parts
    from vidqa.convert.convert import plan
    from vidqa.convert.lazy_tensors import n_bytes
    from vidqa.convert.output_options import OutputOptions

    session = CliContext(flags)
    mode: Mode = flags["compat"] or "fixed"
    target = OutputOptions(
        out, flags["name"], flags["dtype"] or "keep", flags["replace"], flags["encoders"] or "float32"
    )
    target.check((*parts, *towers))
    total = n_bytes(plan(parts, mode, towers).origins())

    def written(what: str, n: int) -> None:
        session.reporter.advance(n)
        session.reporter.say(f"written: {what}", level=2)

    with session.reporter.progress(total, "B"):
        made = convert_parts(parts, target, towers=towers, mode=mode, step=written)
    _tell(made, session.as_json, session.reporter.say)
    return EXIT_OK


@command.command("pull", context_settings=HELP)
@click.argument("name")
@click.option(
    "--out", metavar="BUNDLE", type=click.Path(path_type=Path), help="Folder of the model. [the user's models]"
)
@click.option("--revision", multiple=True, metavar="REPO=COMMIT", help="Not the newest of a repository. Repeatable.")
@click.option("--set-default", is_flag=True, help="Write it as the default model into the user's vidqa.toml.")
@_conversion_options
@output_options
def pull(name: str, out: Path | None, revision: tuple[str, ...], set_default: bool, **flags: Any) -> int:
    """Fetch a published model and convert it. The only command that uses the network.

    What was fetched stays in the hub's own cache, so that a broken download goes on where it was. The revision of every
    repository is recorded in bundle.json. With HF_HUB_OFFLINE=1 only what was fetched before is used. --set-default
    with a model that was pulled before fetches nothing.

    \b
    Examples:
      vidqa models list --published
      vidqa models pull video-llava-7b --set-default
    """
    from vidqa.cli.context import CliContext
    from vidqa.convert.output_options import OutputOptions
    from vidqa.convert.published import pull as pull_model
    from vidqa.model.bundle.registry import models_folder

    session = CliContext(flags)
    say = session.reporter.say
    if wrong := [text for text in revision if not all(text.partition("="))]:
        raise UsageError(f"--revision {wrong[0]}: must be REPO=COMMIT")
    if set_default and (folder := _here_already(name, out, {"revision": revision, **flags})):
        if session.as_json:
            click.echo(to_json({"model": name, "folder": folder}))
        _make_default(folder, say)
        return EXIT_OK
    folder, dtype, encoders = out or models_folder() / name, flags["dtype"] or "keep", flags["encoders"] or "float32"
    got = pull_model(
        name,
        OutputOptions(folder, name, dtype, flags["replace"], encoders),
        revisions=dict(text.split("=", 1) for text in revision),
        mode=flags["compat"] or "fixed",
        say=say,
        step=lambda what, n: say(f"written: {what} ({human_bytes(n)})"),
    )
    _tell(got.conversion, session.as_json, say)
    if set_default:
        _make_default(got.folder, say)
    else:
        say(f"the default model stays what it was; use --model {got.folder if out else name}, or --set-default")
    return EXIT_OK


def _here_already(name: str, out: Path | None, flags: Mapping[str, Any]) -> Path | None:
    """The folder of a model that was pulled before, where nothing is asked for that would make another one of it."""
    from vidqa.convert.published import PUBLISHED
    from vidqa.model.bundle.bundle import load_bundle
    from vidqa.model.bundle.registry import models_folder

    folder = out or models_folder() / name
    if name not in PUBLISHED or not folder.exists():
        return None
    if (
        any(flags[key] for key in ("revision", "dtype", "encoders", "compat", "replace"))
        or load_bundle(folder).spec.name != name
    ):
        return None
    return folder


def _make_default(folder: Path, say: Any) -> None:
    from vidqa.config.default_model import set_default_model

    path, beaten_by = set_default_model(folder)
    say(f"{path}: the default model is now {folder}")
    if beaten_by:
        say(f"warning: {beaten_by} still names another model here")


def _tell(made: Conversion, as_json: bool, say: Any) -> None:
    """What was made: on stdout for machines, in a few lines for people."""
    spec = made.bundle.spec
    result = {
        "model": spec.name,
        "folder": made.bundle.folder,
        "layout": made.recipe.layout,
        "compat": spec.compat,
        "origins": spec.source.origins if spec.source else (),
        "left_out": list(made.recipe.left_out),
        "notes": list(made.recipe.notes),
        "seconds": round(made.seconds, 3),
        "peak_bytes": made.peak_bytes,
    }
    if as_json:
        click.echo(to_json(result))
        return
    for line in made.recipe.left_out:
        say(f"left out: {line}")
    for line in made.recipe.notes:
        say(f"note: {line}")
    if spec.compat:
        click.echo(f"{spec.name} ({made.bundle.folder}): {_variant(spec.compat.variant, spec.compat.mode)}")
        for line in spec.compat.fixed:
            say(f"  otherwise than published: {line}", level=2)
    peak = f", at most {human_bytes(made.peak_bytes)} of memory" if made.peak_bytes else ""
    say(f"took {human_duration(made.seconds)}{peak}")
