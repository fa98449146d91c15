"""A collection of real files, valid and damaged: each decodes as its manifest expects. Skipped if it is not there."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from vidqa.errors import MediaError
from vidqa.media.decode import decode
from vidqa.media.scan import scan
from vidqa.records import FrameBatch

FOLDER = Path(__file__).parents[3] / "shared" / "media"
MANIFEST = FOLDER / "MANIFEST.csv"
ROWS = list(csv.DictReader(MANIFEST.open(encoding="utf-8"))) if MANIFEST.exists() else []

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ROWS, reason="the collection of real files is not there"),
]

#: Error in the manifest -> error kind.
KINDS = {
    "empty file": "empty_file",
    "not a video (subtitle file)": "not_media",
    "not media": "not_media",
    "no streams": "unreadable",
    "undecodable image": "unreadable",
    "invalid container": "unreadable",
    "no video stream": "no_video",
    "encrypted": "encrypted",
}


def test_every_file_is_found_or_ignored() -> None:
    assert len(ROWS) == 60
    assert sum(row["expected"].startswith("ok") for row in ROWS) == 49
    found = scan([str(FOLDER)])
    accounted = {i.rel for i in found.items} | {str(Path(o.path).relative_to(FOLDER)) for o in found.ignored}
    assert accounted == {row["file"] for row in ROWS} | {"MANIFEST.csv"}
    ignored = {Path(o.path).name: o.reason for o in found.ignored}
    assert ignored == {
        "MANIFEST.csv": "text",
        "subtitles-unicode.srt": "subtitles",
        "t-rex-roar.mp3": "audio",
        "fixture.m4a": "audio",
    }


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file"])
def test_decodes_as_expected(row: dict[str, str]) -> None:
    path = str(FOLDER / row["file"])
    if row["expected"].startswith("error"):
        expected = next(kind for text, kind in KINDS.items() if text in row["expected"])
        with pytest.raises(MediaError) as caught:
            decode(path)
        assert caught.value.kind == expected
        return
    media = decode(path)
    facts, frames = media.facts, media.segments[0].frames
    assert isinstance(frames, FrameBatch)
    assert facts.n_frames_from_content == int(row["frames"])
    assert facts.kind == (
        "image" if row["container"] in ("jpeg", "png", "webp", "heif") and row["frames"] == "1" else "video"
    )
    if facts.kind == "video":
        assert facts.codec == row["codec"]
    assert (facts.width, facts.height) == _displayed(row)
    if row["fps"] and row["frames"] != "1":
        assert facts.fps == pytest.approx(float(row["fps"]), rel=0.002)
    if row["last_pts_s"] and "avif" not in row["file"]:  # its manifest entry describes the cover image
        span = float(row["last_pts_s"]) - float(row["first_pts_s"])
        assert frames.pts_s[-1] == pytest.approx(span, abs=0.002)
    if "black picture" not in row["description"] and "plain white" not in row["description"].lower():
        assert frames.pixels.std() > 3


def _displayed(row: dict[str, str]) -> tuple[int, int]:
    """Return the display size for the stored size in the manifest."""
    width, height = int(row["width"]), int(row["height"])
    widths = {"video_with_rectangular_samples.mp4": 1920, "fixture.mxf": 768, "fixture2.3gp": 192}
    width = widths.get(Path(row["file"]).name, width)
    rotated = row["rotation"] in ("-90", "exif6(-90)")
    return (height, width) if rotated else (width, height)
