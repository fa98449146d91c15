#!/usr/bin/env python3
"""Generate the reference in docs/python_api.md from the docstrings of the public names of `vidqa`.

python tools/update_api_docs.py           # rewrite the part of the page below the mark
python tools/update_api_docs.py --check   # change nothing; exit with 1 if it is out of date

The source is parsed, not imported.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import vidqa

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "python_api.md"
MARK = "<!-- Generated from docstrings. Change those, then run: python tools/update_api_docs.py -->\n"
_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):$")
#: What a section of a docstring is called on the page.
_TITLES = {"Args": "Arguments", "Returns": "Returns", "Yields": "Yields", "Raises": "Raises"}
#: Members that the stages of a run use, not its caller.
_INTERNAL = {
    *("Summary.record_error", "Summary.record_notes", "Summary.close", "Summary.start_s"),
    *("Reporter.event", "Reporter.progress", "Reporter.advance", "Reporter.shows_bar", "Reporter.message_once"),
    *("Reporter.stop", "Reporter.log", "Reporter.advance_file", "Reporter.calling", "Reporter.on_progress"),
    *("FileSelection.patterns", "FileSelection.paths", "FileSelection.window_ns", "FileSelection.durations_s"),
    *(
        "Summary.exclude_rest",
        "LoadedModel.require_packages",
        "LoadedModel.history_key",
        "Precision.suffixes",
        "ChatSession.warm",
    ),
}
_TYPES = """\
`Paths` is a path (`str` or `Path`) of a file, folder or glob, or several of them. `QuestionSources` is a `str`, a
`Path` or a `Question`, or several of them; see [above](#choose-questions-and-options). A `Moment` is a text such as
`1d` or `2026-11-01`, or a `date`, `datetime` or `timedelta`.
"""


@dataclass
class Docstring:
    """A docstring in Google style: its text, and the lines of each section."""

    text: str
    sections: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Docstring:
        """Split a docstring into text and sections."""
        parts: dict[str, list[str]] = {"": []}
        current = ""
        for line in inspect.cleandoc(text).splitlines():
            if match := _SECTION.match(line):
                current = match[1]
            parts.setdefault(current, []).append("" if match else line)
        joined = {name: inspect.cleandoc("\n".join(lines)).strip() for name, lines in parts.items()}
        return cls(joined.pop(""), joined)

    @property
    def summary(self) -> str:
        """The first paragraph, on one line."""
        return " ".join(self.text.split("\n\n")[0].split())

    def items(self, section: str) -> dict[str, str]:
        """Return the items `name: text` of a section."""
        found: dict[str, str] = {}
        name = ""
        for line in self.sections.get(section, "").splitlines():
            if line and not line.startswith(" "):
                name, _, rest = line.partition(":")
                found[name.strip("*")] = rest.strip()
            elif line.strip():
                found[name] += " " + line.strip()
        return found


def definition(name: str) -> tuple[ast.FunctionDef | ast.ClassDef, list[str]]:
    """Return the syntax tree of a public name, and the lines of its module."""
    path = ROOT / "vidqa" / (vidqa._EXPORTS[name].replace(".", "/") + ".py")
    source = path.read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node, source.splitlines()
    raise LookupError(f"{path} does not define {name}")


def docstring(node: ast.FunctionDef | ast.ClassDef) -> Docstring:
    """Return the docstring of a definition, which must have one."""
    text = ast.get_docstring(node)
    if not text:
        raise LookupError(f"{node.name} has no docstring")
    return Docstring.parse(text)


def signature(node: ast.FunctionDef) -> str:
    """Return name, arguments and result of a function, with one argument per line if they are many."""
    arguments = node.args
    plain = [f"{a.arg}: {ast.unparse(a.annotation)}" if a.annotation else a.arg for a in arguments.args]
    for i, default in enumerate(reversed(arguments.defaults), start=1):
        plain[-i] += f" = {ast.unparse(default)}"
    if arguments.vararg:
        plain.append(f"*{arguments.vararg.arg}: {ast.unparse(arguments.vararg.annotation or ast.Constant(None))}")
    elif arguments.kwonlyargs:
        plain.append("*")
    for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        assert argument.annotation is not None
        default_text = "" if value is None else f" = {ast.unparse(value)}"
        plain.append(f"{argument.arg}: {ast.unparse(argument.annotation)}{default_text}")
    plain = [one for one in plain if one != "self"]
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{node.name}({', '.join(plain)}){result}"
    return line if len(line) <= 100 else f"{node.name}(\n    " + ",\n    ".join(plain) + f",\n){result}"


def is_hidden(node: ast.ClassDef, member: str) -> bool:
    """Whether a member is not part of the public API."""
    return member.startswith("_") or f"{node.name}.{member}" in _INTERNAL


def is_dataclass(node: ast.ClassDef) -> bool:
    """Whether users may create the class with its fields."""
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def fields(node: ast.ClassDef, lines: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield name, type with default, and description of each public field of a dataclass.

    The description is in the docstring, or in the comment after the field.
    """
    described = docstring(node)
    texts = described.items("Args") | described.items("Attributes")
    for one in node.body:
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and not is_hidden(node, one.target.id):
            name, annotation = one.target.id, ast.unparse(one.annotation)
            default = "" if one.value is None or "field(" in ast.unparse(one.value) else f" = {ast.unparse(one.value)}"
            comment = re.search(r"  # (.*)$", lines[(one.end_lineno or one.lineno) - 1])
            yield name, annotation + default, texts.get(name) or (comment[1] if comment else "")


def members(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Yield the signature, or the name of a property, and the description of each public member of a class."""
    for one in node.body:
        if not isinstance(one, ast.FunctionDef) or is_hidden(node, one.name):
            continue
        decorators = [ast.unparse(decorator) for decorator in one.decorator_list]
        is_value = any(name in ("property", "_LoadedOnce") for name in decorators)
        yield (
            (one.name if is_value else " ".join(signature(one).split()).replace("( ", "(").replace(", )", ")")),
            (docstring(one).summary),
        )


def cell(text: str) -> str:
    """Escape the text of a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")


def sections_of(described: Docstring) -> list[str]:
    """Return the lines of the sections of a function's docstring."""
    lines = []
    for section, title in _TITLES.items():
        if section in ("Returns", "Yields") and section in described.sections:
            lines += [f"{title}: {' '.join(described.sections[section].split())}", ""]
        elif items := described.items(section):
            lines += [f"{title}:", "", *(f"- `{name}`: {text}" for name, text in items.items()), ""]
    return lines


def function_section(node: ast.FunctionDef) -> list[str]:
    """Return the lines about a function."""
    described = docstring(node)
    return [f"### {node.name}", "", described.text, "", "```py", signature(node), "```", "", *sections_of(described)]


def class_section(node: ast.ClassDef, lines: Sequence[str]) -> list[str]:
    """Return the lines about a class: its fields, if it is a dataclass, and its members."""
    described = docstring(node)
    page = [f"### {node.name}", "", described.text, ""]
    if is_dataclass(node) and (rows := list(fields(node, lines))):
        page += ["| field | type and default | description |", "| --- | --- | --- |"]
        page += [f"| `{name}` | `{cell(kind)}` | {cell(text)} |" for name, kind, text in rows] + [""]
    if rows_of_members := list(members(node)):
        page += ["| member | description |", "| --- | --- |"]
        page += [f"| `{cell(name)}` | {cell(text)} |" for name, text in rows_of_members] + [""]
    if is_dataclass(node) and (errors := described.items("Raises")):
        page += ["Raises:", "", *(f"- `{name}`: {text}" for name, text in errors.items()), ""]
    return page


def errors_section(nodes: Sequence[ast.ClassDef]) -> list[str]:
    """Return the table of errors."""
    rows = [f"| `{n.name}` | `{ast.unparse(n.bases[0])}` | {cell(docstring(n).summary)} |" for n in nodes]
    return ["### Exceptions", "", "| error | base | meaning |", "| --- | --- | --- |", *rows, ""]


def reference() -> str:
    """Return the part of the page below the mark."""
    functions, classes, errors = [], [], []
    for name, module in vidqa._EXPORTS.items():
        node, lines = definition(name)
        if isinstance(node, ast.FunctionDef):
            functions += function_section(node)
        elif module == "errors":
            errors.append(node)
        else:
            classes += class_section(node, lines)
    page = ["## Functions", "", _TYPES, *functions, "## Classes", "", *classes, *errors_section(errors)]
    return "\n".join(page)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the page, or check it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the page is out of date")
    check = parser.parse_args(arguments).check
    old = PAGE.read_text(encoding="utf-8")
    new = f"{old.partition(MARK)[0]}{MARK}\n{reference()}"
    if new == old:
        return 0
    if check:
        print("docs/python_api.md is out of date. Run: python tools/update_api_docs.py", file=sys.stderr)
        return 1
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
