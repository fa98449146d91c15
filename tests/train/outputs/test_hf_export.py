"""A bundle without temporal attention has the same logits as its export for transformers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vidqa.encoders.encoder import Encoder
from vidqa.errors import VidqaError
from vidqa.model.bundle.bundle import DEMO, Bundle, load_bundle
from vidqa.model.video_llava import load_model
from vidqa.records import EncoderInput, SamplingSpec
from vidqa.train.outputs.hf_export import export_transformers, exportable

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def single_frame_bundle():
    """The demo bundle with its image encoder also as the encoder of one-frame videos."""
    base = load_bundle(DEMO)
    image = base.spec.encoders.image
    one = {"file": image.file, "sha256": image.sha256, "external": image.external, "n_frames": 1}
    video = replace(base.spec.encoders.video, sampling=SamplingSpec("linspace", 1), **one)
    return Bundle(base.folder, replace(base.spec, encoders=replace(base.spec.encoders, video=video)))


def test_the_export_has_the_logits_of_the_bundle(single_frame_bundle, tmp_path):
    from transformers import VideoLlavaForConditionalGeneration

    folder = tmp_path / "exported"
    export_transformers(single_frame_bundle, folder)
    exported = VideoLlavaForConditionalGeneration.from_pretrained(folder).eval()
    size = single_frame_bundle.spec.encoders.video.preprocess.image_size
    values = np.random.default_rng(1).standard_normal((1, 3, size, size)).astype(np.float32)
    clip = EncoderInput(values, np.zeros(1), np.zeros(1, np.bool_), "video")
    (features,) = Encoder.from_bundle(single_frame_bundle, "cpu").encode([clip])
    model = load_model(single_frame_bundle, "cpu")
    (visual,) = model.visual_tokens([features])
    tag = exported.config.video_token_index
    ids = torch.tensor([[5, 6, 7, *[tag] * len(visual), 8, 9, 10]])
    slots = ids == tag
    with torch.no_grad():
        actual = exported(input_ids=ids, pixel_values_videos=torch.from_numpy(values)[None]).logits
        expected = model(ids.masked_fill(slots, 0), slots, visual).logits
    torch.testing.assert_close(actual[..., : expected.shape[-1]], expected, atol=5e-2, rtol=2e-2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["exported"]


def test_temporal_attention_is_rejected():
    with pytest.raises(VidqaError, match="temporal attention"):
        exportable(load_bundle(DEMO))
