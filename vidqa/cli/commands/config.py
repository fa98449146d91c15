"""`vidqa config`: the settings, and where each of them comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from vidqa.cli.options import HELP, output_options
from vidqa.cli.output import aligned, as_json
from vidqa.common.display import display_path
from vidqa.errors import EXIT_OK

if TYPE_CHECKING:
    from vidqa.config.settings import Setting


@dataclass(frozen=True)
class ShownSetting:
    """One option of one command. `value` is None for an option that is not set and has no default."""

    setting: str
    command: str
    value: Any
    source: str


@click.group("config", context_settings=HELP, short_help="Show all settings and where they come from.")
def command() -> None:
    """Inspect the settings from vidqa.toml and variables.

    \b
    Example:
      vidqa config show
    """


@command.command("show", context_settings=HELP)
@output_options
def show(**flags: Any) -> int:
    """Print every setting, its value, and where it comes from: the default, a line of vidqa.toml, or a variable.

    A setting with different values in several commands is printed once per command, with the command in front of it.
    Both forms are keys that vidqa.toml may contain. Options on the command line override all of them.

    \b
    Examples:
      vidqa config show
      VIDQA_BATCH_SIZE=4 vidqa config show --json
    """
    from vidqa.config.settings import find_settings, settings_file

    settings = [*_settings(find_settings())]
    if flags["as_json"]:
        click.echo(as_json(settings))
        return EXIT_OK
    if not flags["quiet"]:
        file = settings_file()
        click.echo(f"settings file: {display_path(str(file.absolute())) if file else 'none'}", err=True)
    click.echo(aligned([("SETTING", "VALUE", "FROM"), *_lines(settings)]), nl=False)
    return EXIT_OK


def _settings(found: Mapping[str, Mapping[str, Setting]]) -> Iterator[ShownSetting]:
    """Yield every option of every command that can be set, in the order of `vidqa --help`."""
    from vidqa.cli.main import COMMANDS
    from vidqa.config.settings import OPTIONS, option_name

    for name, module in COMMANDS.items():
        top = import_module(module).command
        inner = top.commands.items() if isinstance(top, click.Group) else [("", top)]
        for word, one in inner:
            path = f"{name} {word}".strip()
            for option in one.params:
                if isinstance(option, click.Option) and option.name in OPTIONS[path]:
                    setting = found[path].get(option.name)
                    value, source = (setting.value, setting.source) if setting else (_default(option), "default")
                    yield ShownSetting(option_name(option.name), path, value, source)


def _default(option: click.Option) -> Any:
    """Return the default: false for a flag, else as its help describes it; None if there is none."""
    if option.is_flag:
        return False
    if option.name == "cache_dir":
        from vidqa.cache.key import default_cache_dir

        return str(default_cache_dir())
    described = re.search(r"\[default: ([^]]*)\]", option.help or "")
    return described[1] if described else None


def _lines(settings: list[ShownSetting]) -> Iterator[tuple[str, str, str]]:
    by_name: dict[str, list[ShownSetting]] = {}
    for one in settings:
        by_name.setdefault(one.setting, []).append(one)
    for name, several in by_name.items():
        if all((one.value, one.source) == (several[0].value, several[0].source) for one in several):
            yield name, _text(several[0].value), several[0].source
        else:
            for one in several:
                yield ".".join([*one.command.split(), name]), _text(one.value), one.source


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return display_path(", ".join(value))
    return "not set" if value is None else display_path(str(value))
