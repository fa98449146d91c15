"""docs/python_api.md is generated from the docstrings of the public names and up to date."""

from __future__ import annotations

from pathlib import Path

import pytest
import update_api_docs

import vidqa


def test_the_page_is_up_to_date() -> None:
    assert update_api_docs.main(["--check"]) == 0, "python tools/update_api_docs.py"


def test_every_public_name_is_described() -> None:
    reference = update_api_docs.PAGE.read_text(encoding="utf-8").partition(update_api_docs.MARK)[2]
    for name, module in vidqa._EXPORTS.items():
        assert (f"| `{name}` |" if module == "errors" else f"\n### {name}\n") in reference, name
    assert "|  |\n" not in reference, "a field without a description"


def test_every_argument_of_a_function_is_described() -> None:
    for name in vidqa._EXPORTS:
        node, _ = update_api_docs.definition(name)
        if name.islower():
            a = node.args
            names = [one.arg for one in (*a.args, *a.kwonlyargs, *([a.vararg] if a.vararg else []))]
            described = update_api_docs.docstring(node)
            assert set(described.items("Args")) == set(names), name
            assert described.sections.keys() >= {"Returns", "Raises"}, name


def test_a_stale_page_is_reported_and_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_api_docs, "PAGE", tmp_path / "api.md")
    (tmp_path / "api.md").write_text(f"# Guide\n{update_api_docs.MARK}old")
    assert update_api_docs.main(["--check"]) == 1
    assert update_api_docs.main([]) == 0
    assert update_api_docs.main(["--check"]) == 0
    assert (tmp_path / "api.md").read_text().startswith("# Guide\n")


def test_docstrings_are_split_into_sections() -> None:
    parsed = update_api_docs.Docstring.parse(
        "Do it.\n\nMore.\n\nArgs:\n    a: one\n        and two.\n    *b: three.\n\nReturns:\n    A number:\n    one.\n"
    )
    assert (parsed.summary, parsed.text) == ("Do it.", "Do it.\n\nMore.")
    assert parsed.items("Args") == {"a": "one and two.", "b": "three."}
    assert parsed.sections["Returns"] == "A number:\none."
