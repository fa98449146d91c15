"""Run the code in the documentation as a user would, and check its links."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

import pytest

from vidqa.cli.main import run
from vidqa.config.settings import load_settings
from vidqa.prompts.questions import load_questions

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")

needs_demo = pytest.mark.skipif(
    not (ROOT / "vidqa" / "demo" / "bundle.json").is_file() or not (ROOT / "examples/clips/captions.json").is_file(),
    reason="the demo bundle or its clips are missing",
)


def code_blocks(page: str) -> list[tuple[str, str]]:
    """(language, code) of each code block of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```(sh|python|toml)\n(.*?)^```$", text, re.S | re.M)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the examples and its own cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIDQA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "examples").symlink_to(ROOT / "examples", target_is_directory=True)
    return tmp_path


@pytest.mark.slow
@needs_demo
@pytest.mark.parametrize(
    ("page", "n_commands", "n_scripts"),
    [
        ("README.md", 4, 1),
        ("docs/quickstart.md", 6, 1),
        ("docs/python_api.md", 0, 4),
        ("examples/README.md", 2, 0),
        ("docs/demo_model.md", 3, 0),
    ],
)
def test_code_blocks_run(page, n_commands, n_scripts, folder, monkeypatch, capsys):
    commands, scripts = 0, 0
    for language, code in code_blocks(page):
        if language == "toml":
            name = re.match(r"# (\S+\.toml)\n", code)
            assert name, "the first line of a TOML block names the file"
            (folder / name[1]).write_text(code)
        elif language == "python":
            exec(compile(code, page, "exec"), {})
            scripts += 1
        else:
            for line in code.splitlines():
                command = line.split("&& ")[-1]  # after the setup
                if command.startswith("vidqa "):
                    monkeypatch.setattr("sys.stdin", io.StringIO("What happens?\n"))  # for `vidqa chat`
                    assert run(shlex.split(command)[1:]) == 0, command
                    commands += 1
    assert commands >= n_commands and scripts >= n_scripts


@pytest.mark.slow
@needs_demo
def test_the_notebook_runs(folder, capsys):
    source = (ROOT / "examples" / "archive_notebook.py").read_text(encoding="utf-8")
    shown: dict[str, object] = {"__name__": "__main__"}
    for cell in re.split(r"^# %%.*\n", source, flags=re.M):  # one after another, as a notebook runs them
        exec(compile(cell, "archive_notebook.py", "exec"), shown)
    out = capsys.readouterr().out
    for expected in (
        "answer: 12 of 12 files, 0 failed",
        "24 new rows",
        "True <Summary: answers.parquet: 0 new rows, 24",
    ):
        assert expected in out, out
    assert "SearchHit(rank=1" in out and "did you mean `caption`?" in out
    assert not Path(str(shown["out"])).exists()


@pytest.mark.slow
@needs_demo
def test_python_code_of_the_readme(folder, capsys):
    (code,) = (code for language, code in code_blocks("README.md") if language == "python")
    exec(compile(code, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()[-1]) > 5
    assert (folder / "captions.parquet").exists()


def test_examples_of_the_configuration_page(tmp_path):
    settings, questions = (code for language, code in code_blocks("docs/configuration.md") if language == "toml")
    (tmp_path / "vidqa.toml").write_text(settings)
    loaded = load_settings(tmp_path / "vidqa.toml", environ={})
    assert loaded["describe"]["segment"] == 60 and loaded["cache"]["prune"]["max_size"] == "500GB"
    (tmp_path / "traffic.toml").write_text(questions)
    assert [question.id for question in load_questions(tmp_path / "traffic.toml")] == ["cars", "weather"]


def test_the_readme_has_the_test_command():
    block = re.search(r"<!-- test command -->\n```sh\n(.+)\n```", README)
    assert block and "tools/check" in block[1] and ".venv" in block[1]
    assert (ROOT / "tools" / "check").stat().st_mode & 0o111
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_modules_of_the_glossary_exist():
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").split("## Module names")[1]
    rows = re.findall(r"^\| `(\w.*?)` \|", text, re.M)
    assert len(rows) > 5
    for name in re.findall(r"`(\w+/[\w/]+)`", text):
        assert (ROOT / "vidqa" / f"{name}.py").is_file(), name


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target
