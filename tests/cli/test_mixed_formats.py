"""A folder of real files of many formats, good and broken: each is accounted for as its manifest states."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from vidqa.tables.formats import read_table

pytestmark = pytest.mark.slow

MEDIA = Path(__file__).parents[3] / "shared" / "media"


@pytest.mark.skipif(not (MEDIA / "MANIFEST.csv").is_file(), reason="the collection of mixed media is not available")
def test_every_file_is_accounted_for(vidqa, tmp_path):
    with open(MEDIA / "MANIFEST.csv", newline="", encoding="utf-8") as f:
        expected = {row["file"]: row["expected"] for row in csv.DictReader(f)}
    assert len(expected) == 60
    done = vidqa("describe", MEDIA, "--out", tmp_path / "t.parquet", "--json", "-v")
    assert done.code == 3
    assert "Traceback" not in done.err
    rows = {row["path"]: row for row in read_table(tmp_path / "t.parquet").to_dicts()}
    assert rows.keys() <= expected.keys()
    for name, expected_outcome in expected.items():
        if name not in rows:  # not media: printed with its reason, and counted
            assert expected_outcome.startswith("error") and f"ignored: {MEDIA / name}: " in done.err
        elif expected_outcome.startswith("ok with"):  # depends on the libraries that decode
            assert rows[name]["status"] in ("ok", "failed")
        else:
            assert (rows[name]["status"] == "ok") == expected_outcome.startswith("ok"), (name, rows[name]["error"])
    summary = json.loads(done.out)
    n_ignored = sum(summary["ignored"].values()) - 1  # the manifest itself is a text file in that folder
    assert len(rows) + n_ignored == 60 == summary["files"] + n_ignored
    assert summary["rows"]["ok"] + summary["rows"]["failed"] == len(rows)
