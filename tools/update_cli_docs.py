#!/usr/bin/env python3
"""Generate docs/cli.md, the command line reference, from the help texts of the commands.

python tools/update_cli_docs.py           # rewrite docs/cli.md
python tools/update_cli_docs.py --check   # change nothing; exit with 1 if docs/cli.md is out of date
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from vidqa.cli.main import group

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "cli.md"
HEADER = """\
# Command line reference

<!-- Generated from `--help`. Change the help text, then run: python tools/update_cli_docs.py -->
"""


def walk(context: click.Context) -> Iterator[click.Context]:
    """Yield the contexts of all commands below a group, in the order of `--help`; a group precedes its commands."""
    assert isinstance(context.command, click.Group)
    for name in context.command.list_commands(context):
        command = context.command.get_command(context, name)
        assert command is not None
        # click keeps the help option of the first context, which must be that of the command line: `-h` and `--help`.
        inner = click.Context(command, info_name=name, parent=context, **command.context_settings)
        yield inner
        if isinstance(command, click.Group):
            yield from walk(inner)


def split_help(command: click.Command) -> tuple[list[str], list[str]]:
    """Split the help text of a command into (paragraphs, lines of its example)."""
    text = inspect.cleandoc(command.help or "").split("\f")[0]
    paragraphs: list[str] = []
    example: list[str] = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.strip() != "\b"]
        if lines and lines[0].strip() in ("Example:", "Examples:"):
            example += [line.strip() for line in lines[1:]]
        elif block.startswith("\b"):
            paragraphs.append("\n".join(["```text", *lines, "```"]))
        else:
            paragraphs.append(" ".join(line.strip() for line in lines))
    return paragraphs, example


def escape(text: str) -> str:
    """Escape what Markdown would read as markup outside code spans: table cells and HTML tags."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def options_table(context: click.Context) -> list[str]:
    """Return the table of a command's options, without `--help`."""
    rows = []
    for option in context.command.get_params(context):
        record = option.get_help_record(context) if isinstance(option, click.Option) else None
        if record and "--help" not in option.opts:
            names, description = record
            rows.append(f"| `{names.replace('|', chr(92) + '|')}` | {escape(' '.join(description.split()))} |")
    return ["| option | description |", "| --- | --- |", *rows] if rows else []


def command_section(context: click.Context) -> list[str]:
    """Return the lines of one command: summary, example, usage, details, options."""
    command, depth = context.command, 2 if context.parent and context.parent.parent is None else 3
    paragraphs, example = split_help(command)
    lines = [f"{'#' * depth} {context.command_path}", "", escape(paragraphs[0]) if paragraphs else ""]
    if example:
        lines += ["", "```sh", *example, "```"]
    if not isinstance(command, click.Group):
        pieces = " ".join(command.collect_usage_pieces(context))
        lines += ["", f"Usage: `{context.command_path} {pieces}`"]
    for paragraph in paragraphs[1:]:
        lines += ["", paragraph if paragraph.startswith("```") else escape(paragraph)]
    table = options_table(context)
    return [*lines, "", *table, ""] if table else [*lines, ""]


def overview(context: click.Context) -> list[str]:
    """Return the introduction, from the help text of `vidqa` itself, and the table of all commands."""
    paragraphs, example = split_help(context.command)
    lines = [HEADER, escape(paragraphs[0]), "", "```sh", *example, "```", ""]
    lines += ["| command | what it does |", "| --- | --- |"]
    for inner in walk(context):
        if not isinstance(inner.command, click.Group):
            anchor = inner.command_path.replace(" ", "-")
            lines.append(f"| [`{inner.command_path}`](#{anchor}) | {escape(inner.command.get_short_help_str(200))} |")
    for paragraph in paragraphs[1:]:
        lines += ["", escape(paragraph)]
    lines += ["", "Every command also accepts `-h` and `--help`.", ""]
    return lines


def exit_codes(context: click.Context) -> list[str]:
    """Return the table of exit codes, from the last line of `vidqa --help`."""
    title, _, codes = (context.command.epilog or "").partition(": ")
    rows = [code.strip(" .").partition(" ") for code in codes.split(";")]
    table = [f"| {code} | {escape(meaning)} |" for code, _, meaning in rows]
    return [f"## {title}", "", "| code | meaning |", "| --- | --- |", *table, ""]


def page() -> str:
    """Return the text of docs/cli.md."""
    context = click.Context(group, info_name="vidqa")
    lines = overview(context)
    for inner in walk(context):
        lines += command_section(inner)
    return "\n".join([*lines, *exit_codes(context)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the page, or check it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the page is out of date")
    check = parser.parse_args(arguments).check
    text = page()
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    if check:
        print("docs/cli.md is out of date. Run: python tools/update_cli_docs.py", file=sys.stderr)
        return 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
