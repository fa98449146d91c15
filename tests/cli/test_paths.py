"""Paths that lead to no media: one rule for all commands, and for the Python API."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from vidqa import VidqaError, ask, describe, search
from vidqa.errors import MediaError
from vidqa.pipeline.run import hashing, scanning
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.tables.formats import read_table
from vidqa.tables.table import Table, new_table

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX links and permissions")


@pytest.fixture
def clip(make_clip, tmp_path) -> Path:
    """The only file of the folder `ok`."""
    return make_clip(tmp_path / "ok" / "a.mp4")


@pytest.fixture
def bad_paths(tmp_path) -> list[Path]:
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.mp4")
    return [tmp_path / name for name in ("absent", "empty", "none*.mp4", "dangling", "pipe.mp4")]


@pytest.mark.slow
def test_every_command_reports_paths_without_media_and_continues(vidqa, clip, bad_paths, tmp_path, tiny_bundle):
    table = tmp_path / "t.csv"
    for command in (
        ("describe", "--out", table),
        ("describe", "--out", table, "--dry-run"),
        ("encode",),
        ("search", "a circle", "--model", "demo"),
        ("bench", "--seconds", 0.1, "--n-questions", 1, "--max-new-tokens", 1),
    ):
        done = vidqa(*command, clip.parent, *bad_paths, "-q")
        assert done.code == 3, done.err
        assert done.err.splitlines() == sorted(
            f"vidqa: {path}: {reason}"
            for path, reason in zip(
                bad_paths,
                (
                    "no such file or folder",
                    "contains no media",
                    "no file matches",
                    "a symbolic link to a file that does not exist",
                    "not a regular file",
                ),
                strict=True,
            )
        )
        for path in bad_paths:
            alone = vidqa(*command, path)
            assert alone.code == 1 and f"no media found: {path}: " in alone.err, command
        assert vidqa(*command, clip.parent).code == 0
    assert read_table(table)["path"].to_list() == ["a.mp4"], "there are no rows for paths without media"


def test_ask_and_chat(vidqa, clip, bad_paths, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    for path in bad_paths:
        assert vidqa("ask", path, "What?").code == 1 and vidqa("ask", path, "What?", "--out", "t.csv").code == 1
        named = path.name.partition("*")[0]
        chat = vidqa("chat", clip, path)
        assert chat.code in (1, 2) and named in chat.err
        both = vidqa("ask", clip, "--with", path, "What?")
        assert both.code in (1, 2) and named in both.err


def test_the_summary_has_the_problems(vidqa, clip, tmp_path):
    absent, log, metrics = tmp_path / "absent", tmp_path / "log", tmp_path / "m.prom"
    done = vidqa("describe", clip, absent, "--out", tmp_path / "t.csv", "--json", "--log", log, "--metrics", metrics)
    assert json.loads(done.out)["path_problems"] == [{"path": str(absent), "reason": "no such file or folder"}]
    assert "1 new row, 0 failed, 1 path problem; 1 file" in done.err.splitlines()[-1]
    assert f"path problems: 1 path without readable media: {absent}" in done.err
    assert f"scan\tfailed\t\t{absent}\tno such file or folder" in log.read_text()
    assert 'vidqa_path_problems{table="' in metrics.read_text() and "items failed" in log.read_text()


def test_a_folder_without_permission_is_a_problem(vidqa, clip, monkeypatch, unprivileged):
    (clip.parent / "locked").mkdir(mode=0)
    scan = scanning.scan

    def scan_unprivileged(*arguments):
        with unprivileged():
            return scan(*arguments)

    monkeypatch.setattr(scanning, "scan", scan_unprivileged)
    for paths in ([clip.parent], [f"{clip.parent}/**/*.mp4"]):
        done = vidqa("ask", *paths, "What?", "-q")
        assert (done.code, done.out) == (3, "red\n")
        assert f"vidqa: {clip.parent / 'locked'}: Permission denied" in done.err.splitlines()


def test_the_python_api(clip, tmp_path, tiny_bundle, caplog):
    absent = tmp_path / "absent.mp4"
    options = RunOptions(cache_dir=tmp_path / "cache")
    assert [row.path for row in ask([clip, absent], "What?", model=str(tiny_bundle), options=options)] == ["a.mp4"]
    assert f"{absent}: no such file or folder" in caplog.text
    summary = describe([clip, absent], tmp_path / "t.csv", model=str(tiny_bundle), options=options)
    assert summary.path_problems == {str(absent): "no such file or folder"} and summary.is_partial
    assert search("a circle", [clip, absent], options=options).path_problems == summary.path_problems
    for call in (
        lambda: ask(absent, "What?", model=str(tiny_bundle), options=options),
        lambda: describe(absent, tmp_path / "t.csv", model=str(tiny_bundle), options=options),
        lambda: search("a circle", absent, options=options),
    ):
        with pytest.raises(VidqaError, match=r"no media found: .*absent\.mp4: no such file or folder"):
            call()


def test_rows_of_earlier_versions_for_absent_paths(vidqa, clip, tmp_path):
    """They stay until `--prune-missing`, and do not count as failed rows of the run."""
    table, absent = tmp_path / "t.csv", clip.parent / "absent.mp4"
    assert vidqa("describe", clip, "--out", table).code == 0
    (row,) = Table(table).load().rows_for(read_table(table)["media_id"][0])
    nulls = {"media_id": None, "answer": None, "frame_times_s": None}
    old = row.__class__(**{**row.__dict__, **nulls, "path": "absent.mp4", "status": "failed", "error_kind": "missing"})
    new_table([row, old], table)
    content = table.read_bytes()
    assert vidqa("describe", clip.parent, "--out", table).code == 0 and table.read_bytes() == content
    done = vidqa("describe", clip, absent, "--out", table, "--json")
    assert done.code == 3 and "0 failed" in json.loads(done.out)["line"] and table.read_bytes() == content
    assert vidqa("describe", clip, absent, "--out", table, "--prune-missing").code == 3
    assert read_table(table)["path"].to_list() == ["a.mp4"]


@pytest.mark.parametrize("state", ["empty", "a file that says so", "absent", "dangling link"])
def test_an_unmounted_archive_keeps_its_rows(vidqa, clip, tmp_path, make_clip, state):
    table, disk = tmp_path / "t.csv", tmp_path / "disks" / "one"
    make_clip(disk / "b.mp4", seed=1)
    if state == "dangling link":
        disk.rename(tmp_path / "mounted")
        disk.symlink_to(tmp_path / "mounted")
    assert vidqa("describe", clip.parent, disk, "--out", table).code == 0
    shutil.rmtree(disk.resolve())
    if state in ("empty", "a file that says so"):
        disk.mkdir()
    if state == "a file that says so":
        (disk / "NOT_MOUNTED").touch()
    make_clip(tmp_path / "disks" / "c.mp4", seed=2)
    content = table.read_bytes()
    for paths in ([disk], [clip.parent, disk], [clip.parent, tmp_path / "disks", disk], [clip.parent, f"{disk}/*.mp4"]):
        shutil.copy(table, tmp_path / "copy.csv")
        assert vidqa("describe", *paths, "--out", tmp_path / "copy.csv", "--prune-missing").code in (1, 3)
        assert "b.mp4" in read_table(tmp_path / "copy.csv")["path"].to_list(), paths
    assert table.read_bytes() == content


def test_a_file_has_one_identity_however_it_is_reached(vidqa, clips, tmp_path, monkeypatch):
    """Rows keep their root; neither the link nor the folder itself finds anything to do afterwards."""
    (tmp_path / "link").symlink_to("clips")
    (tmp_path / "file.mp4").symlink_to("clips/a.mp4")
    monkeypatch.chdir(tmp_path)
    ways = ("clips", "link", "clips/../link/", "./clips/.", str(tmp_path / "link"), "link/*", "file.mp4", "link/a.mp4")
    for first in ("link", "clips"):
        table = tmp_path / f"{first}.csv"
        assert vidqa("describe", first, "--out", table).code == 0
        assert set(read_table(table)["root"]) == {str(tmp_path / first)}
        content = table.read_bytes()
        for way in ways:
            done = vidqa("describe", way, "--out", table, "--json")
            summary = json.loads(done.out)
            assert summary["rows"] == {} and summary["copied"] == summary["renamed"] == 0, (first, way)
            assert table.read_bytes() == content, (first, way)
    other = "clips" if first == "link" else "link"
    assert vidqa("describe", other, "--out", table, "--questions", "scene").code == 0
    assert set(read_table(table)["root"]) == {str(tmp_path / first)}, "new rows about a file have its name as well"
    (tmp_path / "clips" / "a.mp4").unlink()
    assert vidqa("describe", other, "--out", table, "--prune-missing").code == 0
    assert set(read_table(table)["path"]) == {"b.mp4", os.path.join("deeper", "c.mp4")}


def test_a_copy_still_has_rows_of_its_own(vidqa, clip, tmp_path):
    (tmp_path / "copy").mkdir()
    shutil.copy(clip, tmp_path / "copy")
    os.link(clip, tmp_path / "hard_link.mp4")
    table = tmp_path / "t.csv"
    for path in (clip.parent, tmp_path / "copy", tmp_path / "hard_link.mp4"):
        assert vidqa("describe", path, "--out", table).code == 0
    assert read_table(table)["path"].to_list() == ["a.mp4", "a.mp4", "hard_link.mp4"]


def test_a_file_that_becomes_readable_replaces_its_failed_row(vidqa, clip, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to("ok")
    identify, table = hashing.identify, tmp_path / "t.csv"

    def unreadable(index, item):
        raise MediaError("permission", "Permission denied")

    monkeypatch.setattr(hashing, "identify", unreadable)
    for folder in (tmp_path / "link", clip.parent):
        assert vidqa("describe", folder, "--out", table).code == 3
        assert read_table(table)["error_kind"].to_list() == ["permission"]
    monkeypatch.setattr(hashing, "identify", identify)
    assert vidqa("describe", clip.parent, "--out", table).code == 0
    assert read_table(table)["status"].to_list() == ["ok"]


@pytest.mark.parametrize("parent", ["absent/folder", "a.file/folder", "dangling"])
def test_the_folder_of_an_output_must_exist(vidqa, clip, tmp_path, tiny_bundle, parent):
    """The same in every command, before it does anything; nothing is created, and nothing is said about rights."""
    (tmp_path / "a.file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "recipe.toml").write_text("")
    before = sorted(tmp_path.rglob("*"))
    for suffix, option, command in (
        (".csv", "--out", ("describe", clip)),
        (".csv", "--out", ("describe", clip, "--dry-run")),
        ("/", "--out", ("describe", clip)),
        (".csv", "--out", ("ask", clip, "What?")),
        (".csv", "--out", ("search", "a circle", clip, "--model", "demo")),
        ("", "--out", ("models", "convert", tiny_bundle)),
        ("", "--out", ("models", "pull", "video-llava-7b")),
        (".log", "--log", ("describe", clip, "--out", "t.csv")),
        (".prom", "--metrics", ("describe", clip, "--out", "t.csv")),
    ):
        done = vidqa(*command, option, f"{tmp_path}/{parent}/out{suffix}")
        assert done.code == 2, (command, done.err)
        assert f"{option} {tmp_path}/{parent}/out{suffix}" in done.err, (command, done.err)
        assert "does not exist" in done.err or "is not a folder" in done.err
        assert not any(word in done.err for word in ("ermission", "writable", "Errno"))
    assert sorted(path for path in tmp_path.rglob("*") if tmp_path / "cache" not in (path, *path.parents)) == before
