"""`vidqa models list`, `show`, `set-default` and `rm`, with models in the user's folder."""

from __future__ import annotations

import io
import json
import os
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vidqa.config.default_model import user_settings_file
from vidqa.model.bundle.registry import models_folder


@pytest.fixture
def model(
    vidqa: Callable[..., Any], tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """A function that copies the tiny model into the user's models folder and changes its `bundle.json`."""
    for name in ("CONFIG", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    monkeypatch.delenv("VIDQA_MODEL")

    def make(name: str, **changes: object) -> Path:
        folder = models_folder() / name
        shutil.copytree(tiny_bundle, folder)
        content = json.loads((folder / "bundle.json").read_text())
        (folder / "bundle.json").write_text(json.dumps(content | {"name": name} | changes))
        os.utime(folder / "bundle.json", (1_700_000_000, 1_700_000_000))
        return folder

    return make


SOURCE = {
    "layout": "Video-LLaVA",
    "origins": ["owner/video@" + "a" * 40, "local:tower"],
    "vidqa_version": "0.1.0",
    "licences": ["apache-2.0", ""],
}
COMPAT = {"mode": "original", "variant": "Some model", "follows": ["its prompt"], "fixed": ["its bug"]}


def cells(out: str) -> dict[str, dict[str, str]]:
    """Return the cells of a printed table by the first one and the heading. Columns are found by the heading."""
    heading, *lines = out.splitlines()
    names = heading.split()
    starts = [heading.index(name) for name in names]
    ends = [*starts[1:], None]
    rows = [[line[start:end].strip() for start, end in zip(starts, ends, strict=True)] for line in lines]
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def test_list_shows_variant_base_size_date_and_default(vidqa, model):
    model("real", compat=COMPAT, source=SOURCE)
    model("tuned", source=SOURCE | {"base": "real@0123456789abcdef"})
    (model("damaged") / "connector.safetensors").unlink()
    rows = cells(vidqa("models", "list").out)
    assert set(rows) == {"demo", "real", "tuned", "damaged"}
    assert rows["real"]["VARIANT"] == "Some model (compat original)" and rows["real"]["BASE"] == "owner/video + tower"
    assert rows["tuned"]["BASE"] == "real" and rows["tuned"]["VARIANT"] == "-"
    assert "NOT USABLE" in rows["damaged"]["VARIANT"]
    assert rows["real"]["DATE"].startswith("2023-11-1") and rows["real"]["SIZE"].endswith("kB")
    assert {name: row["DEFAULT"] for name, row in rows.items() if row["DEFAULT"] == "yes"} == {"demo": "yes"}
    found = {one["name"]: one for one in json.loads(vidqa("models", "list", "--json").out)}
    assert found["real"]["variant"] == "Some model" and found["real"]["base"] == "owner/video + tower"
    assert [name for name, one in found.items() if one["default"]] == ["demo"]


def test_show_prints_the_whole_card(vidqa, model):
    model("real", compat=COMPAT, source=SOURCE)
    out = vidqa("models", "show", "real").out
    for part in (
        "architecture  video_llava",
        "llama, 1 layers, hidden size 112, float32",
        "frames        up to 8 per segment (linspace), 16 pixels",
        "tokens        40 visual tokens per video segment, 4 per image",
        "context       2048 tokens",
        "prompt        vicuna_v1",
        "compat        original",
        "its prompt",
        "its bug",
        "owner/video@" + "a" * 40,
        "licence       owner/video: apache-2.0",
        "local:tower: not stated",
    ):
        assert part in out, part
    card = json.loads(vidqa("models", "show", "real", "--json").out)
    assert card["tokens"] == {"video": 40, "image": 4} and card["frames"]["n_frames"] == 8
    assert card["context"] == 2048 and card["prompt"] == {"format": "vicuna_v1", "system": None}
    assert card["provenance"] == SOURCE and card["compat"] == COMPAT


def test_show_says_what_is_not_recorded(vidqa, model):
    model("plain")
    out = vidqa("models", "show", "plain").out
    assert "provenance    not recorded" in out and "licence       not recorded" in out
    assert "compat        not converted" in out
    card = json.loads(vidqa("models", "show", "plain", "--json").out)
    assert card["provenance"] is None and card["licence"] is None
    assert json.loads(vidqa("models", "show", "demo", "--json").out)["licence"] == ["Apache-2.0"]


def test_a_misspelled_model_name_gets_a_suggestion(vidqa, model):
    model("video-llava-7b")
    for command in (["models", "show"], ["models", "rm"], ["models", "set-default"], ["doctor", "--model"]):
        done = vidqa(*command, "video-lava-7b")
        assert done.code == 1 and "did you mean `video-llava-7b`?" in done.out + done.err
    assert "did you mean `video-llava-7b-hf`?" in vidqa("models", "pull", "video-lava-7b-hf").err


def test_set_default_writes_the_setting_of_pull(vidqa, model):
    folder = model("real")
    done = vidqa("models", "set-default", "real", "--json")
    assert done.code == 0 and json.loads(done.out)["folder"] == str(folder)
    assert tomllib.loads(user_settings_file().read_text()) == {"model": str(folder)}
    assert cells(vidqa("models", "list").out)["real"]["DEFAULT"] == "yes"
    assert vidqa("models", "set-default", "demo").code == 0
    assert tomllib.loads(user_settings_file().read_text()) == {"model": "demo"}
    assert vidqa("models", "set-default", "nothing").code == 1
    assert tomllib.loads(user_settings_file().read_text()) == {"model": "demo"}


def test_rm_needs_a_confirmation(vidqa, model, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    folder = model("real")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    done = vidqa("models", "rm", "real")
    assert done.code == 2 and "--yes" in done.err and folder.is_dir()
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    done = vidqa("models", "rm", "real")
    assert done.code == 1 and "nothing was removed" in done.err and folder.is_dir()
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    done = vidqa("models", "rm", "real")
    assert done.code == 0 and not folder.exists() and "kB" in done.err
    assert list(models_folder().iterdir()) == []


def test_rm_reports_the_default_and_downloads_that_stay(vidqa, model, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model("real", source=SOURCE)
    vidqa("models", "set-default", "real")
    blobs = tmp_path / "hub" / "models--owner--video" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc").write_bytes(bytes(5000))
    done = vidqa("models", "rm", "real", "--yes", "--json")
    assert done.code == 0 and json.loads(done.out)["n_bytes"] > 100_000
    assert "real is the default model" in done.err and "owner/video: the download of 5.0 kB stays" in done.err
    done = vidqa("models", "list")
    assert "the default model" in done.err and f"{user_settings_file()}:1" in done.err


def test_rm_refuses_what_it_must_not_remove(vidqa, model, tmp_path):
    assert "comes with vidqa" in vidqa("models", "rm", "demo", "--yes").err
    with_others = model("mixed")
    (with_others / "notes.txt").write_text("mine")
    done = vidqa("models", "rm", "mixed", "--yes")
    assert done.code == 2 and "notes.txt" in done.err and (with_others / "bundle.json").is_file()
    link = models_folder() / "link"
    link.symlink_to(model("real"), target_is_directory=True)
    assert "symbolic link" in vidqa("models", "rm", "link", "--yes").err and link.is_dir()
    (tmp_path / "folder").mkdir()
    assert vidqa("models", "rm", tmp_path / "folder", "--yes").code == 1


def test_rm_removes_damaged_models(vidqa, model):
    folder = model("damaged")
    (folder / "bundle.json").write_text("{")
    assert vidqa("models", "rm", "damaged", "--yes").code == 0
    assert not folder.exists()
