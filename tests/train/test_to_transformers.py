"""A bundle without temporal attention, as transformers' VideoLlava: the same tokens give the same logits."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vidqa.encoders.encoder import Encoder
from vidqa.errors import VidqaError
from vidqa.model.bundle.bundle import DEMO, Bundle, load_bundle
from vidqa.model.video_llava import load_model
from vidqa.records import EncoderInput, SamplingSpec
from vidqa.train.outputs.hf_export import exportable, to_transformers

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def still_bundle():
    """The demo bundle, whose picture encoder sees clips of one frame, too."""
    base = load_bundle(DEMO)
    image = base.spec.encoders.image
    one = {"file": image.file, "sha256": image.sha256, "external": image.external, "n_frames": 1}
    video = replace(base.spec.encoders.video, sampling=SamplingSpec("linspace", 1), **one)
    return Bundle(base.folder, replace(base.spec, encoders=replace(base.spec.encoders, video=video)))


def test_the_port_says_what_the_bundle_says(still_bundle, tmp_path):
    from transformers import VideoLlavaForConditionalGeneration

    folder = tmp_path / "port"
    to_transformers(still_bundle, folder)
    port = VideoLlavaForConditionalGeneration.from_pretrained(folder).eval()
    size = still_bundle.spec.encoders.video.preprocess.image_size
    values = np.random.default_rng(1).standard_normal((1, 3, size, size)).astype(np.float32)
    clip = EncoderInput(values, np.zeros(1), np.zeros(1, np.bool_), "video")
    (features,) = Encoder.from_bundle(still_bundle, "cpu").encode([clip])
    model = load_model(still_bundle, "cpu")
    (visual,) = model.visual_tokens([features])
    tag = port.config.video_token_index
    ids = torch.tensor([[5, 6, 7, *[tag] * len(visual), 8, 9, 10]])
    slots = ids == tag
    with torch.no_grad():
        theirs = port(input_ids=ids, pixel_values_videos=torch.from_numpy(values)[None]).logits
        ours = model(ids.masked_fill(slots, 0), slots, visual).logits
    torch.testing.assert_close(theirs[..., : ours.shape[-1]], ours, atol=5e-2, rtol=2e-2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["port"]


def test_temporal_attention_has_no_place():
    with pytest.raises(VidqaError, match="temporal attention"):
        exportable(load_bundle(DEMO))
