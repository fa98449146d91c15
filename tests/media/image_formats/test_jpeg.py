"""JPEG images one after another are a video; photos with something behind them are images."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numbered_videos import make_frame, read_number, read_numbers
from PIL import Image

from vidqa.media.decode import decode
from vidqa.media.files import identify
from vidqa.media.probe import probe


def jpeg(number: int, size: tuple[int, int] | None = None, **options: object) -> bytes:
    data, image = io.BytesIO(), Image.fromarray(make_frame(number))
    (image.resize(size) if size else image).save(data, "JPEG", quality=90, **options)
    return data.getvalue()


def multipart(number: int) -> bytes:
    data = jpeg(number)
    return b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(data), data)


@pytest.mark.parametrize(
    "part",
    [
        jpeg,
        multipart,
        lambda number: jpeg(number, progressive=True),
        lambda number: jpeg(number, exif=Image.Exif().tobytes()),
        lambda number: jpeg(number, restart_marker_rows=1),
        lambda number: jpeg(number, comment=b"\xff\xd8\xff\xd9"),
        lambda number: jpeg(number) + b"\0\0\r\n",
        lambda number: jpeg(number)[:-2],  # without the end marker
    ],
)
@pytest.mark.parametrize("name", ["camera.mjpeg", "camera.jpg"])
def test_the_stream_of_a_camera_is_a_video(part: Callable[[int], bytes], name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"".join(part(number) for number in range(50)))
    media = decode(str(path))
    assert (media.facts.kind, media.facts.codec, media.facts.n_frames_from_content) == ("video", "mjpeg", 50)
    assert media.facts.duration_s == pytest.approx(2.0), "25 frames/s, as there are no times"
    frames = media.segments[0].frames
    assert read_numbers(frames.pixels) == [0, 7, 14, 21, 28, 35, 42, 49]
    assert frames.pts_s[-1] == pytest.approx(49 / 25)
    assert probe(str(path)).kind == "video"


def test_a_camera_whose_frames_have_exif_data(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = io.BytesIO()
    Image.fromarray(np.rot90(make_frame(7), 1)).save(stored, "JPEG", quality=90, exif=exif)
    (tmp_path / "a.mjpeg").write_bytes(stored.getvalue() * 3)
    media = decode(str(tmp_path / "a.mjpeg"))
    assert (media.facts.kind, media.facts.rotation_deg) == ("video", 90)
    assert read_numbers(media.segments[0].frames.pixels) == [7] * 8


def mpo() -> bytes:
    data = io.BytesIO()
    Image.fromarray(make_frame(246)).save(
        data, "MPO", save_all=True, append_images=[Image.fromarray(make_frame(1))], quality=90
    )
    return data.getvalue()


def with_thumbnail() -> bytes:
    exif = b"Exif\0\0" + jpeg(1)  # an application segment with a complete image of the same size
    data = jpeg(246)
    return data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2) + exif + data[2:]


@pytest.mark.parametrize(
    "data",
    [
        jpeg(246),
        jpeg(246, progressive=True),
        jpeg(246) + b"\0\0\0\x20ftypmp42" + bytes(100),  # the video of a motion photo
        jpeg(246) + b"MotionPhoto_Data" + b"\0\0\0\x20ftypmp42" + bytes(100),
        jpeg(246) + b"garbage" * 1000,
        jpeg(246) + bytes(1000),
        jpeg(246) + jpeg(1, size=(48, 32)),  # a preview
        jpeg(246) + b"garbage" + jpeg(1),
        jpeg(246) + b"\xff\xd8\xff",
        mpo(),
        with_thumbnail(),
    ],
)
def test_a_photo_is_an_image(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(data)
    media = decode(str(tmp_path / "a.jpg"))
    assert (media.facts.kind, media.facts.n_frames_from_content) == ("image", 1)
    assert read_number(media.segments[0].frames.pixels[0]) == 246


def test_every_truncation_is_identified(tmp_path: Path) -> None:
    """The search for a second image must not fail on incomplete data."""
    whole, path = jpeg(1) + jpeg(2), tmp_path / "a.jpg"
    n = len(jpeg(1))
    for kept in [*range(4, len(whole), 97), n - 1, n, n + 1, n + 3]:
        path.write_bytes(whole[:kept])
        identify(str(path))
