"""How many frames a segment has, and how large its cache entry is."""

from __future__ import annotations

from vidqa.cache.entry import entry_bytes
from vidqa.encoders.preprocess import PreprocessSpec
from vidqa.model.bundle.spec import EncoderSpec, VideoEncoderSpec
from vidqa.records import SamplingSpec

COMMON = {
    "file": "x.onnx", "layer": -2, "keep_cls": True, "hidden_size": 16, "embedding_size": 8, "n_patches": 4,
    "preprocess": PreprocessSpec("original", 16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}  # fmt: skip


def test_a_video_has_as_many_frames_as_are_sampled_not_as_the_graph_takes_at_once() -> None:
    video = VideoEncoderSpec(n_frames=1, sampling=SamplingSpec("segments", 100), **COMMON)  # type: ignore[arg-type]
    image = EncoderSpec(n_frames=1, **COMMON)  # type: ignore[arg-type]
    assert (image.n_sampled_frames, video.n_sampled_frames) == (1, 100)
    assert image.entry_bytes == entry_bytes(1, 5, 16, 8)
    assert video.entry_bytes == entry_bytes(100, 5, 16, 8)
