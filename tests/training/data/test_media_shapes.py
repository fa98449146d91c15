"""The number of visual tokens that the data check expects is that of the model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vidqa.model.bundle.bundle import load_bundle
from vidqa.model.bundle.spec import CompressorSpec
from vidqa.model.connector import build_connector
from vidqa.records import SamplingSpec
from vidqa.training.data.media_shapes import SpecShapes
from vidqa.training.data.sample import MediaRef


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("compressor", [None, "video_chatgpt", "valley_v1", "valley_v2", "valley_v3"])
def test_shapes_are_those_of_the_connector(kind, compressor):
    spec = load_bundle("demo").spec
    n_patches = spec.encoders.image.n_patches
    settings = (
        CompressorSpec(compressor, n_frames=20, n_patches=n_patches, n_heads=2, inner_size=8) if compressor else None
    )
    keep = bool(compressor and compressor.startswith("valley"))
    if settings:
        encoders = replace(
            spec.encoders,
            image=replace(spec.encoders.image, keep_cls=keep),
            video=replace(spec.encoders.video, keep_cls=keep),
        )
        spec = replace(spec, encoders=encoders, connector=replace(spec.connector, compressor=settings))
    encoder = getattr(spec.encoders, kind)
    connector = build_connector(spec.connector.type, spec.connector.in_size, spec.connector.out_size, settings)
    tokens = torch.zeros(encoder.n_frames, encoder.n_patches + encoder.keep_cls, spec.connector.in_size)
    (visual,) = connector.visual_tokens([tokens], torch.float32)
    shape = SpecShapes(spec)(MediaRef("a", kind))
    assert shape.kind == kind
    assert int(np.sum(shape.lengths)) == len(visual)


@pytest.mark.parametrize("compressor", ["video_chatgpt", "valley_v1"])
def test_a_video_encoder_that_takes_single_frames_still_has_all_sampled_frames(compressor):
    spec = load_bundle("demo").spec
    keep = compressor.startswith("valley")
    video = replace(spec.encoders.video, n_frames=1, keep_cls=keep, sampling=SamplingSpec("linspace", 8))
    settings = CompressorSpec(compressor, n_frames=8, n_patches=video.n_patches, n_heads=2, inner_size=8)
    encoders = replace(spec.encoders, image=replace(spec.encoders.image, keep_cls=keep), video=video)
    spec = replace(spec, encoders=encoders, connector=replace(spec.connector, compressor=settings))
    connector = build_connector(spec.connector.type, spec.connector.in_size, spec.connector.out_size, settings)
    (visual,) = connector.visual_tokens([torch.zeros(8, video.n_patches + keep, spec.connector.in_size)], torch.float32)
    shape = SpecShapes(spec)(MediaRef("a", "video"))
    assert (shape.n_frames, int(np.sum(shape.lengths))) == (8, len(visual))
