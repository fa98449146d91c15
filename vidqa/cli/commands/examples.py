"""`vidqa examples`: copies the example clips that come with the package into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vidqa.cli.options import HELP, output_options
from vidqa.cli.output import as_json
from vidqa.common.display import display_path
from vidqa.errors import EXIT_OK, UsageError

#: The files in the package.
SOURCE = Path(__file__).resolve().parents[2] / "examples"


@click.command("examples", context_settings=HELP, short_help="Copy example clips and questions into a folder.")
@click.argument("folder", metavar="DIR", type=click.Path())
@output_options
def command(folder: str, **flags: Any) -> int:
    """Copy three short clips, a question file and a training recipe into DIR.

    The examples in the help of all commands use them, in a folder named clips. Existing files are not overwritten.

    \b
    Examples:
      vidqa examples clips
      vidqa describe clips --out answers.csv --questions clips/questions.toml
    """
    from vidqa.cli.context import CliContext

    context = CliContext(flags)
    files = _copy(Path(folder))
    if context.as_json:
        click.echo(as_json({"folder": folder, "files": files}))
    else:
        for file in files:
            click.echo(display_path(str(file)))
    context.reporter.message(f"to describe them: vidqa describe {display_path(folder)} --out captions.parquet")
    return EXIT_OK


def _copy(folder: Path) -> list[Path]:
    """Copy the files that are not there yet, and return the paths of all, clips first.

    Raises:
        UsageError: the folder is a file, or has other files of the same names; then nothing is copied.
    """
    from vidqa.common.atomic_io import atomic_write

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{display_path(str(folder))} is not a folder", hint="vidqa examples clips")
    names = [path.relative_to(SOURCE) for path in SOURCE.rglob("*") if path.is_file()]
    names.sort(key=lambda name: (name.suffix != ".mp4", len(name.parts), name))
    for name in names:
        if (folder / name).exists() and (folder / name).read_bytes() != (SOURCE / name).read_bytes():
            what = f"{display_path(str(folder / name))} exists already, with other content"
            raise UsageError(what, hint="choose another folder")
    for name in names:
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(folder / name) as file:
                file.write((SOURCE / name).read_bytes())
    return [folder / name for name in names]
