"""`vidqa models`: list, show, verify and remove bundles, and convert published weights into bundles."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vidqa.cli.name_completion import model_names, published_names
from vidqa.cli.options import HELP, combine, output_options
from vidqa.cli.output import aligned
from vidqa.cli.output import as_json as to_json
from vidqa.common.display import display_path, human_bytes, human_duration
from vidqa.errors import EXIT_FAILED, EXIT_OK, UsageError

if TYPE_CHECKING:  # imports torch
    from vidqa.conversion.convert import Conversion

_conversion_options = combine(
    click.option(
        "--dtype",
        type=click.Choice(["keep", "float32", "float16", "bfloat16"]),
        help="Data type of the language model and connector. [default: keep]",
    ),
    click.option(
        "--encoders",
        type=click.Choice(["float32", "float16"]),
        help="Data type of the image and video encoder. float16 is faster on a GPU and slower on a CPU; features "
        "differ in the third digit. [default: float32]",
    ),
    click.option(
        "--compat",
        type=click.Choice(["fixed", "original"]),
        help="fixed: correct known bugs of the published code; original: reproduce its prompts and images, for "
        "comparisons. bundle.json lists the differences. [default: fixed]",
    ),
    click.option("--replace", is_flag=True, help="Replace an existing model in the output folder."),
)


@click.group("models", context_settings=HELP, short_help="List, download, convert, inspect and remove models.")
def command() -> None:
    """Manage model bundles.

    \b
    Examples:
      vidqa models list
      vidqa models show demo
      vidqa models pull video-llava-7b --set-default
      vidqa models rm video-llava-7b
    """


@command.command("list", context_settings=HELP)
@click.argument("folders", nargs=-1, type=click.Path())
@click.option("--published", is_flag=True, help="List the models that `vidqa models pull` can download.")
@output_options
def list_models(folders: tuple[str, ...], published: bool, as_json: bool, **_flags: Any) -> int:
    """List the included models, the downloaded ones, and those in FOLDERS (default: the current folder).

    VARIANT is the published model, if it was converted from one; BASE is what it was made from; DATE is when it was
    written; DEFAULT marks the model that is used without --model.

    \b
    Examples:
      vidqa models list
      vidqa models list --published
    """
    from vidqa.pipeline.models import find_models

    if published:
        return _list_published(as_json)
    found = find_models(folders or (".",))
    if as_json:
        click.echo(to_json(found))
        return EXIT_OK
    heading = ("NAME", "VARIANT", "BASE", "SIZE", "DATE", "DEFAULT", "FOLDER")
    cells = [
        (
            display_path(model.name),
            display_path(
                f"NOT USABLE: {model.problem}" if model.problem else _variant(model.variant, model.compat) or "-"
            ),
            display_path(model.base) or "-",
            human_bytes(model.n_bytes),
            model.date,
            "yes" if model.default else "-",
            display_path(str(model.folder)),
        )
        for model in found
    ]
    click.echo(aligned([heading, *cells]), nl=False)
    if not any(model.default for model in found):
        _report_missing_default()
    return EXIT_OK


def _report_missing_default() -> None:
    """Warn if the default model does not exist. It may also be in a folder that is not listed."""
    from vidqa.config.default_model import default_model
    from vidqa.pipeline.models import default_folder

    folder = default_folder()
    if not folder.is_dir():
        where = default_model().source
        click.echo(f"warning: {where}: the default model {display_path(str(folder))} does not exist", err=True)


def _variant(variant: str, mode: str) -> str:
    """Return the published model, marked if it is converted in the mode `original`, whose answers differ."""
    return f"{variant} (compat original)" if mode == "original" else variant


def _list_published(as_json: bool) -> int:
    from vidqa.conversion.published import PUBLISHED

    if as_json:
        click.echo(to_json([*PUBLISHED.values()]))
        return EXIT_OK
    for model in PUBLISHED.values():
        repos = " + ".join(repo.id for repo in (*model.repos, *model.towers))
        click.echo(f"{model.name}  {model.description} ({repos})")
    return EXIT_OK


@command.command("show", context_settings=HELP)
@click.argument("model", metavar="NAME|DIR", shell_complete=model_names)
@output_options
def show(model: str, as_json: bool, **_flags: Any) -> int:
    """Print everything about a model.

    This includes its architecture, frames and visual tokens per segment, context length, prompt, differences from the
    published code (compat), provenance and licence.

    \b
    Examples:
      vidqa models show demo
      vidqa models show demo --json
    """
    from vidqa.pipeline.models import model_card

    card = model_card(model)
    click.echo(to_json(card) if as_json else aligned([*_card_lines(card)]), nl=as_json)
    return EXIT_OK


def _card_lines(card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the label, or an empty string, and the text of each line of a model card."""
    llm, connector = (card["architecture"][key] for key in ("language_model", "connector"))
    frames, prompt, compat, source = (card[key] for key in ("frames", "prompt", "compat", "provenance"))
    yield "name", display_path(card["name"])
    yield "folder", display_path(str(card["folder"]))
    yield "size", human_bytes(card["n_bytes"])
    yield "date", card["date"]
    yield "default", "yes" if card["default"] else "no"
    yield "model id", card["model_id"]
    yield "encoder id", card["encoder_id"]
    yield "architecture", card["architecture"]["type"]
    described = [f"{llm['n_layers']} layers", f"hidden size {llm['hidden_size']}", str(llm["dtype"] or "unknown dtype")]
    yield "", display_path(f"language model: {llm['type']}, {', '.join(described)}")
    compressor = f", compressor {connector['compressor']['type']}" if connector.get("compressor") else ""
    yield "", f"connector: {connector['type']}, {connector['in_size']} to {connector['out_size']}{compressor}"
    yield "", f"search: {'yes' if card['architecture']['text_encoder'] else 'no, it has no text encoder'}"
    rate = f" at {frames['rate']:g} per second" if frames["rate"] else ""
    yield "frames", f"up to {frames['n_frames']} per segment ({frames['rule']}{rate}), {frames['image_size']} pixels"
    yield "tokens", f"{card['tokens']['video']} visual tokens per video segment, {card['tokens']['image']} per image"
    yield "context", f"{card['context']} tokens"
    system = "the format's own" if prompt["system"] is None else repr(prompt["system"]) if prompt["system"] else "none"
    yield "prompt", f"{prompt['format']}, system prompt: {system}"
    yield "generation", ", ".join(f"{key} {value!r}" for key, value in card["generation"].items() if value)
    yield "compat", compat["mode"] if compat else "not converted from a published model"
    if compat:
        yield "variant", display_path(compat["variant"])
        yield from (("follows", display_path(text)) for text in compat["follows"])
        yield from (("differs", display_path(text)) for text in compat["fixed"])
    if source:
        yield "provenance", display_path(f"layout: {source['layout']}, written by vidqa {source['vidqa_version']}")
        yield from (("", display_path(origin)) for origin in source["origins"])
        if source.get("base"):
            yield "", display_path(f"fine-tuned from {source['base']}")
    else:
        yield "provenance", "not recorded"
    for i, licence in enumerate(card["licence"] or ["not recorded; see the publisher of the model"]):
        yield ("" if i else "licence"), display_path(licence)
    if card["notice"]:
        yield "notice", display_path(card["notice"])


@command.command("verify", context_settings=HELP)
@click.argument("model", metavar="NAME|DIR", shell_complete=model_names)
@output_options
def verify(model: str, as_json: bool, **_flags: Any) -> int:
    """Compare every file of a bundle with its digest. The exit code is 1 if one differs.

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


@command.command("set-default", context_settings=HELP)
@click.argument("model", metavar="NAME|DIR", shell_complete=model_names)
@output_options
def set_default(model: str, **flags: Any) -> int:
    """Make a model the default, in the user's vidqa.toml.

    \b
    Example:
      vidqa models set-default demo
    """
    from vidqa.cli.context import CliContext
    from vidqa.model.bundle.bundle import built_in_bundles, load_bundle

    context = CliContext(flags)
    bundle = load_bundle(model)
    value = model if model in built_in_bundles() else bundle.folder
    file = _make_default(value, context.reporter.message)
    if context.as_json:
        click.echo(to_json({"model": bundle.spec.name, "folder": bundle.folder, "file": file}))
    return EXIT_OK


@command.command("rm", context_settings=HELP)
@click.argument("model", metavar="NAME|DIR", shell_complete=model_names)
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation. Required if stdin is not a terminal.")
@output_options
def remove(model: str, yes: bool, **flags: Any) -> int:
    """Remove a downloaded or converted model, after confirmation.

    Prints how much disk space this frees. Cached features, tables and downloads in the cache of the Hugging Face Hub
    are kept. Included models cannot be removed.

    \b
    Examples:
      vidqa models rm video-llava-7b
      vidqa models rm video-llava-7b --yes
    """
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.models import plan_removal, remove_model

    context = CliContext(flags)
    message = context.reporter.message
    planned = plan_removal(model)
    what, size = display_path(f"{planned.name} ({planned.folder})"), human_bytes(planned.n_bytes)
    if planned.default:
        message(f"warning: {planned.name} is the default model; afterwards use vidqa models set-default NAME")
    for repo, n_bytes in planned.downloads:
        message(f"{repo}: the download of {human_bytes(n_bytes)} stays in the cache of the hub; see `hf cache`")
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            problem = "cannot ask for confirmation, because stdin is not a terminal"
            raise UsageError(f"removing {what} would free {size}; {problem}", hint="--yes")
        if not click.confirm(f"Remove {what} and free {size}?", err=True):
            message("nothing was removed")
            return EXIT_FAILED
    remove_model(planned)
    if context.as_json:
        click.echo(to_json({"model": planned.name, "folder": planned.folder, "n_bytes": planned.n_bytes}))
    message(f"removed {what}: freed {size}")
    return EXIT_OK


@command.command("convert", context_settings=HELP)
@click.argument("parts", nargs=-1, required=True, metavar="DIR|FILE...", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, metavar="BUNDLE", type=click.Path(path_type=Path), help="Folder for the new model."
)
@click.option(
    "--towers",
    multiple=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Use the encoder tower in DIR instead of the one in the checkpoint. May be repeated.",
)
@click.option("--name", metavar="NAME", help="Name of the model. [default: the name of the output folder]")
@_conversion_options
@output_options
def convert(parts: tuple[Path, ...], out: Path, towers: tuple[Path, ...], **flags: Any) -> int:
    """Convert published weights into a vidqa model.

    The parts are recognized by their content, in any order: a complete checkpoint, or a language model, LanguageBind's
    image and video towers, a projector, a LoRA adapter. If a weight is missing or unknown, nothing is written. Only
    weights are read; no code of a checkpoint is executed.

    \b
    Examples:
      vidqa models convert Video-LLaVA-7B --out video-llava
      vidqa models convert vicuna-7b mm_projector.bin LanguageBind_Image LanguageBind_Video_merge --out mine
      vidqa models convert Video-LLaVA-7B-hf --towers LanguageBind_Image --towers LanguageBind_Video_merge --out hf
      vidqa models convert Video-ChatGPT-7B LLaVA-7B-Lightening-v1-1 clip-vit-large-patch14 --out chatgpt
      vidqa models convert valley-13b-v1-delta llama-13b --out valley
    """
    from vidqa.cli.context import CliContext
    from vidqa.pipeline.convert_model import convert as convert_parts

    context = CliContext(flags)
    made = convert_parts(
        parts,
        out,
        towers=towers,
        name=flags["name"],
        dtype=flags["dtype"] or "keep",
        encoders=flags["encoders"] or "float32",
        compat=flags["compat"] or "fixed",
        replace=flags["replace"],
        reporter=context.reporter,
    )
    _print_conversion(made, context.as_json, context.reporter.message)
    return EXIT_OK


@command.command("pull", context_settings=HELP)
@click.argument("name", shell_complete=published_names)
@click.option(
    "--out",
    metavar="BUNDLE",
    type=click.Path(path_type=Path),
    help="Folder for the model. [default: in the user's models folder]",
)
@click.option(
    "--revision",
    multiple=True,
    metavar="REPO=COMMIT",
    help="Use this commit of a repository instead of the newest one. May be repeated.",
)
@click.option("--set-default", is_flag=True, help="Make it the default model, in the user's vidqa.toml.")
@_conversion_options
@output_options
def pull(name: str, out: Path | None, revision: tuple[str, ...], set_default: bool, **flags: Any) -> int:
    """Download a published model and convert it. This is the only command that uses the network.

    Downloads are kept in the cache of the Hugging Face Hub, so an interrupted download can be resumed. bundle.json
    records the revision of every repository. With HF_HUB_OFFLINE=1, only files that were downloaded before are used.
    If the model exists already, --set-default downloads nothing.

    \b
    Examples:
      vidqa models list --published
      vidqa models pull video-llava-7b --set-default
    """
    from vidqa.cli.context import CliContext
    from vidqa.conversion.output_options import OutputOptions
    from vidqa.conversion.published import pull as pull_model
    from vidqa.model.bundle.registry import models_folder

    context = CliContext(flags)
    message = context.reporter.message
    if wrong := [text for text in revision if not all(text.partition("="))]:
        raise UsageError(f"--revision {wrong[0]}: not of the form REPO=COMMIT")
    if set_default and (folder := _existing_model(name, out, {"revision": revision, **flags})):
        if context.as_json:
            click.echo(to_json({"model": name, "folder": folder}))
        _make_default(folder, message)
        return EXIT_OK
    folder, dtype, encoders = out or models_folder() / name, flags["dtype"] or "keep", flags["encoders"] or "float32"
    got = pull_model(
        name,
        OutputOptions(folder, name, dtype, flags["replace"], encoders),
        revisions=dict(text.split("=", 1) for text in revision),
        mode=flags["compat"] or "fixed",
        report=message,
        step=lambda what, n: message(f"wrote {what} ({human_bytes(n)})"),
    )
    _print_conversion(got.conversion, context.as_json, message)
    if set_default:
        _make_default(got.folder, message)
    else:
        message(f"to use it: --model {got.folder if out else name}; --set-default makes it the default")
    return EXIT_OK


def _existing_model(name: str, out: Path | None, flags: Mapping[str, Any]) -> Path | None:
    """Return the folder of a model that was pulled before, unless an option requests a different conversion."""
    from vidqa.conversion.published import PUBLISHED
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


def _make_default(model: Path | str, message: Any) -> Path:
    """Set the default model and return the settings file."""
    from vidqa.config.default_model import set_default_model

    path, overridden_by = set_default_model(model)
    message(f"{path}: the default model is now {model}")
    if overridden_by:
        message(f"warning: {overridden_by} overrides it with another model")
    return path


def _print_conversion(made: Conversion, as_json: bool, message: Any) -> None:
    """Print the result of a conversion."""
    spec = made.bundle.spec
    result = {
        "model": spec.name,
        "folder": made.bundle.folder,
        "layout": made.plan.layout,
        "compat": spec.compat,
        "origins": spec.source.origins if spec.source else (),
        "ignored": list(made.plan.ignored),
        "notes": list(made.plan.notes),
        "seconds": round(made.seconds, 3),
        "peak_bytes": made.peak_bytes,
    }
    if as_json:
        click.echo(to_json(result))
        return
    for line in made.plan.ignored:
        message(f"ignored: {line}")
    for line in made.plan.notes:
        message(f"note: {line}")
    if spec.compat:
        click.echo(f"{spec.name} ({made.bundle.folder}): {_variant(spec.compat.variant, spec.compat.mode)}")
        for line in spec.compat.fixed:
            message(f"  differs from the published code: {line}", level=2)
    peak = f", peak memory {human_bytes(made.peak_bytes)}" if made.peak_bytes else ""
    message(f"took {human_duration(made.seconds)}{peak}")
