"""Pulling: what is asked for and recorded, and the line of the user's settings. Fetching itself: test_hub."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vidqa.config.default_model import set_default_model, user_settings_file
from vidqa.conversion.hub import Snapshot
from vidqa.conversion.output_options import OutputOptions
from vidqa.conversion.published import PUBLISHED, pull
from vidqa.errors import UsageError
from vidqa.model.bundle.registry import models_folder

COMMITS = {repo.id: f"{i:040x}" for i, m in enumerate(PUBLISHED.values()) for repo in (*m.repos, *m.towers)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls of `fetch` and of `convert`, neither of which does its work."""
    from vidqa.conversion import convert, published

    calls: list[Any] = []

    def fetch(repo: str, revision: str | None, *how: Any) -> Snapshot:
        calls.append((repo, revision, how))
        commit = revision or COMMITS[repo]
        place = tmp_path / "hub" / repo / commit
        place.mkdir(parents=True, exist_ok=True)
        return Snapshot(place, f"{repo}@{commit}")

    def converted(parts: list[Path], target: OutputOptions, **how: Any) -> SimpleNamespace:
        calls.append((parts, target, how))
        return SimpleNamespace()

    monkeypatch.setattr(published, "fetch", fetch)
    monkeypatch.setattr(convert, "convert", converted)
    return calls


def test_revisions_are_recorded(hub: list[Any]) -> None:
    name = "video-llava-7b-search"
    wanted = "f" * 40
    done = pull(name, revisions={"LanguageBind/LanguageBind_Image": wanted})
    ids = [repo.id for repo in (*PUBLISHED[name].repos, *PUBLISHED[name].towers)]
    assert [call[0] for call in hub[:-1]] == ids
    parts, target, how = hub[-1]
    assert target.folder == done.folder == models_folder() / name and target.name == name
    assert len(parts) == 1 and len(how["towers"]) == 2
    commits = COMMITS | {"LanguageBind/LanguageBind_Image": wanted}
    assert how["origins"] == done.origins == tuple(f"{i}@{commits[i]}" for i in ids)
    assert "*.py" not in hub[0][2][0]


def test_unknown_names_and_repositories(hub: list[Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown published model"):
        pull("nothing")
    with pytest.raises(UsageError, match="other/repo is not a repository"):
        pull("video-llava-7b", revisions={"other/repo": "x"})
    with pytest.raises(UsageError, match="exists already"):
        pull("video-llava-7b", OutputOptions(tmp_path))
    assert hub == []


@pytest.mark.parametrize(
    "before", [None, "", 'model = "old"\nquiet = true\n', '# mine\n[describe]\nmodel = "other"\n', "quiet = true"]
)
def test_the_default_is_one_line(before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    path = user_settings_file()
    if before is not None:
        path.parent.mkdir(parents=True)
        path.write_text(before)
    folder = tmp_path / 'a "strange" name'
    assert set_default_model(folder) == (path, None)
    assert tomllib.loads(path.read_text()) == tomllib.loads(before or "") | {"model": str(folder)}
    assert all(line in path.read_text().splitlines() for line in (before or "").splitlines() if "old" not in line)
    (tmp_path / "vidqa.toml").write_text("quiet = true\n")
    assert set_default_model(folder)[1] == str(tmp_path / "vidqa.toml")


def test_comments_line_ends_and_links_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    kept = tmp_path / "dotfiles.toml"
    kept.write_bytes(b"# mine\r\nmodel = 'old'  # a = \"b\"\r\n\r\n[ask] # x\r\nquiet = true # y\r\n")
    path = user_settings_file()
    path.parent.mkdir(parents=True)
    path.symlink_to(kept)
    set_default_model(Path("/new"))
    assert path.is_symlink()
    assert kept.read_bytes() == (b'# mine\r\nmodel = "/new"  # a = "b"\r\n\r\n[ask] # x\r\nquiet = true # y\r\n')
    kept.write_bytes(b"# \xff\n")
    with pytest.raises(UsageError, match="was not changed"):
        set_default_model(Path("/new"))


def test_unsound_settings_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = user_settings_file()
    path.parent.mkdir(parents=True)
    path.write_text("model = [\n")
    with pytest.raises(UsageError, match="was not changed"):
        set_default_model(tmp_path)
    assert path.read_text() == "model = [\n"
