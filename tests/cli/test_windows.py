"""`--segment SECONDS` for videos with pauses: windows tile the video, and a second run finds their features."""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from vidqa.media.workers.decode_pool import DecodePool
from vidqa.tables.formats import read_table


def write(path: Path, times_ms: list[int]) -> Path:
    """Write a video whose frames are shown at these times."""
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time_ms in times_ms:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), time_ms % 200, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_windows_tile_videos_with_pauses(vidqa, tmp_path, monkeypatch):
    folder, table = tmp_path / "clips", tmp_path / "t.parquet"
    late = [*range(0, 800, 40), 30_500, 30_540]
    write(folder / "late.mp4", late)
    write(folder / "late.mkv", late)
    write(folder / "slides.mkv", [0, 14_000, 21_000])
    write(folder / "wild.mkv", [*range(0, 2000, 40), 95_443_000])
    done = vidqa("describe", folder, "--out", table, "--segment", 10, "--json")
    assert done.code == 0, done.err
    rows = sorted(read_table(table).to_dicts(), key=lambda row: (row["path"], row["start_s"]))
    bounds = {
        path: [(row["start_s"], row["end_s"]) for row in rows if row["path"] == path]
        for path in {row["path"] for row in rows}
    }
    assert bounds["late.mp4"] == bounds["late.mkv"] == [(0, 30), (30, pytest.approx(30.541))]
    assert bounds["slides.mkv"] == [(0, 10), (10, 20), (20, pytest.approx(21.001))]
    assert bounds["wild.mkv"] == [(0, 95_440), (95_440, pytest.approx(95_443.001))]
    assert all(a[1] == b[0] for video in bounds.values() for a, b in pairwise(video))
    assert all(row["start_s"] <= t < row["end_s"] for row in rows for t in row["frame_times_s"])
    assert {(row["path"], row["media_note"]) for row in rows if row["media_note"]} == {
        ("wild.mkv", "clock jumps by 26 h")
    }
    new = "describe", folder, "--out", tmp_path / "new.csv", "--segment", 10
    plan = json.loads(vidqa(*new, "--dry-run", "--json").out)
    assert (plan["new_rows"], plan["files_to_decode"]) == (len(rows), 0)  # planned from the index, features are cached
    monkeypatch.setattr(DecodePool, "run", lambda *_: pytest.fail("nothing has to be decoded"))
    again = vidqa(*new)
    assert again.code == 0, again.err
    assert "nothing to do" in vidqa("describe", folder, "--out", table, "--segment", 10).err
