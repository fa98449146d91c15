"""A folder of real files of many formats, good and broken: each is accounted for as its list says."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from vidqa.tables.formats import read_table

MEDIA = Path(__file__).parents[3] / "shared" / "media"


@pytest.mark.skipif(not (MEDIA / "MANIFEST.csv").is_file(), reason="the collection of mixed media is not here")
def test_every_file_is_accounted_for(vidqa, tmp_path):
    with open(MEDIA / "MANIFEST.csv", newline="", encoding="utf-8") as f:
        expected = {row["file"]: row["expected"] for row in csv.DictReader(f)}
    assert len(expected) == 60
    done = vidqa("describe", MEDIA, "--out", tmp_path / "t.parquet", "--json", "-v")
    assert done.code == 3
    assert "Traceback" not in done.err
    rows = {row["path"]: row for row in read_table(tmp_path / "t.parquet").to_dicts()}
    assert rows.keys() <= expected.keys()
    for name, wanted in expected.items():
        if name not in rows:  # plainly no media: said with its reason, and counted
            assert wanted.startswith("error") and f"left out: {MEDIA / name}: " in done.err
        elif wanted.startswith("ok with"):  # depends on the libraries that decode
            assert rows[name]["status"] in ("ok", "failed")
        else:
            assert (rows[name]["status"] == "ok") == wanted.startswith("ok"), (name, rows[name]["error"])
    summary = json.loads(done.out)
    n_left_out = sum(summary["left_out"].values()) - 1  # the list itself is a text file in that folder
    assert len(rows) + n_left_out == 60 == summary["files"] + n_left_out
    assert summary["rows"]["ok"] + summary["rows"]["failed"] == len(rows)
