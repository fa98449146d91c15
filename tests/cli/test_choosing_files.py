"""Options that choose files, in describe, encode and search: what is processed, reported and kept."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import vidqa as api
from vidqa.tables.formats import read_table

DAY_S = 86400.0


def paths(table: Path) -> list[str]:
    return sorted(read_table(table)["path"].to_list())


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    return lambda content: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_excluded_files_are_accounted_for(vidqa, clips, tmp_path):
    table, log, metrics = tmp_path / "t.csv", tmp_path / "log", tmp_path / "m.prom"
    (clips / "deeper" / ".vidqaignore").write_text("c.*\n")
    options = ("--exclude", "a.mp4", "--log", log, "--metrics", metrics)
    done = vidqa("describe", clips, "--out", table, *options, "--json")
    assert done.code == 0 and paths(table) == ["b.mp4"]
    assert (
        json.loads(done.out)["excluded"] == {"--exclude": 1, ".vidqaignore": 1} and json.loads(done.out)["files"] == 1
    )
    assert "excluded files and folders: 1 by --exclude, 1 by .vidqaignore" in done.err
    events = log.read_text()
    assert f"scan\texcluded\t\t{clips}/a.mp4\t--exclude a.mp4\n" in events
    assert f"scan\texcluded\t\t{clips}/deeper/c.mp4\t{clips}/deeper/.vidqaignore:1: c.*\n" in events
    assert 'vidqa_excluded_files{table="' in metrics.read_text() and 'by=".vidqaignore"} 1' in metrics.read_text()
    assert f"excluded: {clips}/a.mp4: --exclude a.mp4" in vidqa("describe", clips, "--out", table, *options, "-v").err


@pytest.mark.slow
def test_every_command_has_the_options_and_the_dry_run_shows_them(vidqa, clips, tmp_path):
    Image.new("RGB", (8, 8)).save(clips / "d.png")
    age(clips / "b.mp4", 2 * DAY_S)
    options = ("--exclude", "deeper/", "--newer-than", "1d", "--min-duration", "0.5s")
    wanted = {"--exclude": 1, "--newer-than": 1}
    table, index = tmp_path / "t.csv", tmp_path / "cache"
    plan = json.loads(vidqa("describe", clips, "--out", table, *options, "--dry-run", "--json").out)
    assert (plan["files"], plan["excluded"]) == (2, wanted) and plan["new_rows"] == 2
    text = vidqa("describe", clips, "--out", table, *options, "--dry-run").out
    assert "excluded files and folders: 1 by --exclude, 1 by --newer-than" in text
    done = vidqa("encode", clips, *options, "--json")
    assert json.loads(done.out)["excluded"] == wanted and json.loads(done.out)["clips"]["done"] == 2
    found = vidqa("search", "a circle", clips, *options, "--model", "demo", "--json")
    assert sorted(json.loads(line)["path"] for line in found.out.splitlines()) == ["a.mp4", "d.png"]
    assert "1 by --exclude, 1 by --newer-than" in found.err
    assert json.loads(vidqa("describe", clips, "--out", table, *options, "--json").out)["excluded"] == wanted
    assert paths(table) == ["a.mp4", "d.png"] and index.is_dir()
    for command in (("describe", "--out", table), ("encode",), ("search", "a circle", "--model", "demo")):
        bad = vidqa(
            *command, clips, "--exclude", "[a", "--older-than", "soon", "--max-duration", "1x", "--newer-than", "-"
        )
        assert bad.code == 2 and all(name in bad.err for name in ("--older-than", "--max-duration", "--newer-than"))
        assert vidqa(*command, clips, "--exclude", "[a").code == 2
        assert vidqa(*command).code == 2 and vidqa(*command, "").code == 2
        (clips / ".vidqaignore").write_text("ok\n[a\n")
        wrong = vidqa(*command, clips)
        assert wrong.code == 2 and f"{clips}/.vidqaignore:2: [a" in wrong.err
        (clips / ".vidqaignore").unlink()


@pytest.mark.slow
def test_durations_are_read_once(vidqa, clips, tmp_path, make_clip, monkeypatch):
    make_clip(clips / "long.mp4", n_frames=40, seed=5)
    Image.new("RGB", (8, 8)).save(clips / "d.png")
    (clips / "broken.mp4").write_bytes(b"broken")
    for path in clips.rglob("*.*"):
        age(path, DAY_S)
    table, options = tmp_path / "t.csv", ("--max-duration", "3", "--max-new-tokens", 4)
    first = vidqa("describe", clips, "--out", table, *options)
    assert (
        "excluded files and folders: 1 by --max-duration" in first.err
        and "reading the durations of 6 new or changed files" in first.err
    )
    assert paths(table) == ["a.mp4", "b.mp4", "broken.mp4", "d.png", "deeper/c.mp4"]
    for name in ("vidqa.media.selection.file_durations.probe_durations", "vidqa.cache.media_index._read"):
        monkeypatch.setattr(name, lambda *arguments: pytest.fail("an unchanged file was opened"))
    again = vidqa("describe", clips, "--out", table, *options)
    assert again.code == 3 and "nothing to do" in again.err and "durations" not in again.err


def test_nothing_is_left(vidqa, clips, tmp_path, stdin):
    """A scheduled run without new files succeeds."""
    table = tmp_path / "t.csv"
    for path in clips.rglob("*.mp4"):
        age(path, 2 * DAY_S)
    for options in (("--newer-than", "1d"), ("--exclude", "*"), ("--include", "*.mkv")):
        for command in (("describe", "--out", table), ("describe", "--out", table, "--dry-run"), ("encode",)):
            done = vidqa(*command, clips, *options)
            assert done.code == 0 and "excluded files and folders: " in done.err + done.out, done
    stdin(b"")
    done = vidqa("describe", "--files-from", "-", "--out", table, "--json")
    assert done.code == 0 and json.loads(done.out)["files"] == 0 and "there are no files" in done.err
    (tmp_path / "empty").mkdir()
    assert vidqa("describe", clips, tmp_path / "empty", "--exclude", "*", "--out", table).code == 3


def test_commands_that_need_a_file_fail_if_all_are_excluded(vidqa, clips):
    (clips / ".vidqaignore").write_text("*.mp4\n")
    for command in (("ask", clips, "What?"), ("bench", clips, "--seconds", 0.1)):
        done = vidqa(*command)
        assert done.code == 1 and "excluded" in done.err and "name" in done.err, command
    assert vidqa("ask", clips / "a.mp4", "What?").out == "red\n"


def test_the_limit_counts_files_with_something_to_do(vidqa, clips, tmp_path):
    table = tmp_path / "t.csv"
    for n, name in enumerate(("a.mp4", "b.mp4", "deeper/c.mp4"), start=1):
        options = ("--out", table, "--limit", 1, "--json")
        plan = json.loads(vidqa("describe", clips, *options, "--dry-run").out)
        assert (plan["files_to_do"], plan["new_rows"]) == (1, 1) and plan["excluded"] == (
            {"--limit": 3 - n} if n < 3 else {}
        )
        summary = json.loads(vidqa("describe", clips, *options).out)
        assert summary["rows"] == {"ok": 1} and summary["excluded"] == plan["excluded"] and summary["files"] == n
        assert name in paths(table) and len(paths(table)) == n
    done = vidqa("describe", clips, *options)
    assert json.loads(done.out)["excluded"] == {} and "all rows of 3 files exist" in done.err


def test_the_limit_of_encode_skips_cached_files_and_files_that_cannot_be_read(vidqa, clips, unprivileged):
    for n in range(1, 4):
        summary = json.loads(vidqa("encode", clips, "--limit", 1, "--json").out)
        assert summary["clips"]["done"] == 1 and summary["clips"]["cached"] == n - 1
        assert summary["excluded"] == ({"--limit": 3 - n} if n < 3 else {})
    assert json.loads(vidqa("encode", clips, "--limit", 1, "--json").out)["clips"]["done"] == 0


def test_the_limit_does_not_read_other_files(vidqa, clips, tmp_path, monkeypatch):
    for number in range(40):
        (clips / f"z{number}.mp4").write_bytes(b"x" * number)
    vidqa("describe", clips, "--out", tmp_path / "t.csv", "--limit", 1)
    from vidqa.cache.media_index import MediaIndex

    index = MediaIndex(tmp_path / "cache")
    assert index.n_files() < 20
    index.close()


def test_files_that_cannot_be_read_do_not_use_up_the_limit(vidqa, clips, tmp_path, monkeypatch):
    from vidqa.errors import MediaError
    from vidqa.pipeline.run import hashing

    identify = hashing.identify

    def fail(index, item):
        if item.rel == "a.mp4":
            raise MediaError("permission", "denied")
        return identify(index, item)

    monkeypatch.setattr(hashing, "identify", fail)
    table = tmp_path / "t.csv"
    assert vidqa("describe", clips, "--out", table, "--limit", 1).code == 3
    assert paths(table) == ["a.mp4", "b.mp4"]


def test_samples(vidqa, clips, tmp_path):
    tables = [tmp_path / f"{number}.csv" for number in range(8)]
    for number, table in enumerate(tables):
        done = vidqa("describe", clips, "--out", table, "--sample", 1, "--seed", number % 4, "--json")
        assert json.loads(done.out)["excluded"] == {"--sample": 2}
    sampled = [paths(table) for table in tables]
    assert sampled[:4] == sampled[4:] and len({names[0] for names in sampled}) > 1


def test_files_from(vidqa, clips, tmp_path, stdin, monkeypatch):
    monkeypatch.chdir(clips)
    os.rename(clips / "b.mp4", os.path.join(os.fsencode(clips), b"bad\xff\n.mp4"))
    table = tmp_path / "t.csv"
    (tmp_path / "list").write_bytes(b"a.mp4\r\ngone.mp4\r\ndeeper\r\n#\r\n")
    done = vidqa("describe", "--files-from", tmp_path / "list", "--out", table)
    assert done.code == 3 and "vidqa: gone.mp4: no such file or folder" in done.err and "vidqa: #: no such" in done.err
    assert paths(table) == ["a.mp4", "c.mp4"]
    stdin(b"bad\xff\n.mp4\0")
    assert vidqa("describe", "a.mp4", "--files-from", "-", "-0", "--out", table, "--json").code == 0
    assert len(paths(table)) == 3 and "\\xff" in "".join(paths(table))
    assert vidqa("encode", "--files-from", tmp_path / "absent").code == 2
    stdin(b"gone.mp4\n")
    assert vidqa("encode", "--files-from", "-").code == 1, "the rule for named paths: nothing else is there"


def test_named_files_are_not_excluded_and_that_is_said(vidqa, clips, tmp_path):
    table = tmp_path / "t.csv"
    done = vidqa("describe", clips / "a.mp4", clips, "--out", table, "--exclude", "*.mp4")
    assert paths(table) == ["a.mp4"] and "note: 1 file that you named would be excluded by patterns" in done.err
    age(clips / "a.mp4", 2 * DAY_S)
    done = vidqa("describe", clips / "a.mp4", "--out", tmp_path / "u.csv", "--newer-than", "1d")
    assert "excluded files and folders: 1 by --newer-than" in done.err and paths(tmp_path / "u.csv") == []


FILTERS = [
    ("--exclude", "a.mp4"),
    ("--exclude", "deeper/"),
    ("--include", "b.mp4"),
    ("--newer-than", "1h"),
    ("--older-than", "1h"),
    ("--max-duration", "0.1"),
    ("--limit", "1"),
    ("--sample", "1"),
    ("--files-from", "list"),
]


@pytest.mark.slow
@pytest.mark.parametrize("options", FILTERS, ids=" ".join)
def test_pruning_keeps_the_rows_of_files_that_are_excluded(vidqa, clips, tmp_path, options):
    table = tmp_path / "t.csv"
    (tmp_path / "list").write_text(f"{clips}/b.mp4\n")
    age(clips / "a.mp4", DAY_S)
    (clips / "gone.mp4").write_bytes((clips / "b.mp4").read_bytes() + b"\0")
    assert vidqa("describe", clips, "--out", table).code == 0
    content = table.read_bytes()
    searched = () if options[0] == "--files-from" else (clips,)
    assert vidqa("describe", *searched, "--out", table, "--prune-missing", *options).code == 0
    assert table.read_bytes() == content
    (clips / "gone.mp4").unlink()
    assert vidqa("describe", *searched, "--out", table, "--prune-missing", *options).code == 0
    kept = ["gone.mp4"] if options[0] in ("--include", "--files-from") else []
    assert paths(table) == sorted(["a.mp4", "b.mp4", "deeper/c.mp4", *kept]), (
        "removed files lose their rows if searched"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [("--newer-than", "1h"), ("--limit", "1"), ("--max-duration", "0.1"), ("--exclude", "/moved/c.*")],
    ids=" ".join,
)
def test_renamed_files_that_are_excluded_keep_their_rows(vidqa, clips, tmp_path, make_clip, options):
    table = tmp_path / "t.csv"
    for path in clips.rglob("*.mp4"):
        age(path, DAY_S)
    assert vidqa("describe", clips, "--out", table).code == 0
    make_clip(clips / "A.mp4", seed=9)
    (clips / "deeper").rename(clips / "moved")
    done = vidqa("describe", clips, "--out", table, "--prune-missing", *options, "--json")
    assert "moved/c.mp4" in paths(table) and "deeper/c.mp4" not in paths(table)
    assert json.loads(done.out)["renamed"] == 1 and json.loads(done.out)["pruned"] == 0


def test_an_unmounted_disk_with_excluded_files_keeps_its_rows(vidqa, clips, tmp_path):
    table = tmp_path / "t.csv"
    assert vidqa("describe", clips, "--out", table).code == 0
    content = table.read_bytes()
    clips.rename(tmp_path / "elsewhere")
    clips.mkdir()
    (clips / "NOT MOUNTED.txt").write_text("the disk is not mounted")
    assert vidqa("describe", clips, "--out", table, "--exclude", "*.txt", "--prune-missing").code == 0
    assert table.read_bytes() == content


def test_settings_and_the_python_api(vidqa, clips, tmp_path, tiny_bundle, monkeypatch):
    (tmp_path / "vidqa.toml").write_text('[describe]\nexclude = ["a.mp4"]\nlimit = 1\n')
    monkeypatch.setenv("VIDQA_INCLUDE", "[ab].mp4")
    monkeypatch.setenv("VIDQA_NEWER_THAN", "1h")
    done = vidqa("describe", clips, "--out", tmp_path / "t.csv", "--json")
    assert json.loads(done.out)["excluded"] == {"--limit": 2} and paths(tmp_path / "t.csv") == ["a.mp4"]
    files = api.FileSelection(exclude=["a.mp4"], newer_than="1h", sample=2, limit=1)
    options = api.RunOptions(cache_dir=tmp_path / "cache", files=files)
    summary = api.describe(clips, tmp_path / "u.csv", model=str(tiny_bundle), options=options)
    assert summary.excluded == {"--exclude": 1, "--limit": 1} and paths(tmp_path / "u.csv") == ["b.mp4"]
    rows = api.ask(clips, "What?", model=str(tiny_bundle), options=options)
    assert [row.path for row in rows] == ["b.mp4"]
    with pytest.raises(api.VidqaError, match="files must be a FileSelection"):
        api.RunOptions(files={"limit": 1})


def test_stdin_of_a_process(clips, environment, tmp_path):
    """As at the end of a pipe."""
    command = [sys.executable, "-m", "vidqa", "describe", "--files-from", "-", "-0", "--out", "t.csv", "-q"]
    done = subprocess.run(command, input=b"clips/a.mp4\0clips/b.mp4\0", env=os.environ | environment, cwd=tmp_path)
    assert done.returncode == 0 and paths(tmp_path / "t.csv") == ["a.mp4", "b.mp4"]
