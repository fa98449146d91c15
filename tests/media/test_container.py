"""Opening a container: the same facts with every supported version of PyAV."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest

from tests.media.numbered_videos import write_video
from vidqa.media.container import as_fraction, open_video, pixel_aspect

pytestmark = pytest.mark.smoke


def test_a_rational_that_is_not_set_is_none() -> None:
    assert as_fraction(None) is None
    rational = pytest.importorskip("av.rational", reason="PyAV 18.0").AVRational
    assert [as_fraction(value) for value in (rational(0, 1), rational(0, 0), rational(1, 0))] == [None] * 3


def test_rationals_become_exact_fractions() -> None:
    """The arithmetic of AVRational is rounded to 32 bits."""
    rational = pytest.importorskip("av.rational", reason="PyAV 18.0").AVRational
    found = as_fraction(rational(1001, 30000))
    assert type(found) is Fraction
    assert found * (2**40 + 1) == Fraction(1001 * (2**40 + 1), 30000)


def test_values_of_a_stream_are_fractions(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", n=5, fps=30)
    with open_video(str(path)) as video:
        for value in (video.time_base, video.average_rate, pixel_aspect(video.stream)):
            assert type(value) is Fraction
        assert (video.time_base, video.average_rate) == (Fraction(1, 1000), 30)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_tags_that_are_not_utf8_do_not_matter(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "A TITLE OF LETTERS"
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode())
    data = path.read_bytes()
    assert data.count(b"A TITLE OF LETTERS") == 1
    path.write_bytes(data.replace(b"A TITLE OF LETTERS", "НАЗВАНИЕ И СЛОВАРЬ".encode("cp1251")))
    with open_video(str(path)) as video:
        assert video.stream.frames in (0, 1)
