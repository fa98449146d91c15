"""docs/cli.md is generated from the commands and up to date."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import update_cli_docs

from vidqa.cli.main import COMMANDS, group


def test_the_page_is_up_to_date() -> None:
    assert update_cli_docs.main(["--check"]) == 0, "python tools/update_cli_docs.py"


def test_every_command_has_a_section_with_an_example_and_its_options() -> None:
    sections = update_cli_docs.PAGE.read_text(encoding="utf-8").split("\n## ")
    assert set(COMMANDS) <= {section.partition("\n")[0].removeprefix("vidqa ") for section in sections}
    page = update_cli_docs.page()
    commands = list(update_cli_docs.walk(click.Context(group, info_name="vidqa")))
    assert len(commands) > len(COMMANDS)  # commands of groups, too
    for context in commands:
        _, rest = page.split(f"# {context.command_path}\n")
        section = rest.partition("\n#")[0]
        if not isinstance(context.command, click.Group):
            example = section.partition("```sh\n")[2].partition("```")[0]
            assert context.command_path in example
        for option in context.command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert all(name in section for name in option.opts), (context.command_path, option.opts)


def test_a_stale_page_is_reported_and_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_cli_docs, "PAGE", tmp_path / "cli.md")
    (tmp_path / "cli.md").write_text("old")
    assert update_cli_docs.main(["--check"]) == 1
    assert update_cli_docs.main([]) == 0
    assert update_cli_docs.main(["--check"]) == 0


def test_help_is_split_into_paragraphs_and_example() -> None:
    text = "Do it\nnow.\n\nMore | text.\n\n\b\nExamples:\n  vidqa it\n  vidqa that"
    assert update_cli_docs.split_help(click.Command("it", help=text)) == (
        ["Do it now.", "More | text."],
        ["vidqa it", "vidqa that"],
    )
