"""Bundle specification -> number of visual tokens of a media item, before anything is encoded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from vidqa.model.bundle.spec import BundleSpec, ConnectorSpec
from vidqa.records import MediaKind, MediaShape
from vidqa.training.data.sample import MediaRef


@dataclass(frozen=True)
class SpecShapes:
    """Shapes of media items according to a bundle.

    If the sampling rule takes fewer frames of short videos, the shape is the upper bound.
    """

    spec: BundleSpec

    def __call__(self, ref: MediaRef) -> MediaShape:
        """Return the shape of a media item."""
        encoder = self.spec.encoders.image if ref.kind == "image" else self.spec.encoders.video
        n_tokens = encoder.n_patches + encoder.keep_cls
        return _shape(self.spec.connector, ref.kind, encoder.n_sampled_frames, n_tokens, encoder.keep_cls)


@cache
def _shape(connector: ConnectorSpec, kind: MediaKind, n_frames: int, n_tokens: int, has_cls: bool) -> MediaShape:
    if connector.compressor is None:
        return MediaShape(kind, n_frames, n_tokens)
    import torch

    from vidqa.model.connector import build_connector

    with torch.device("meta"):  # shapes without weights
        built = build_connector(connector.type, connector.in_size, connector.out_size, connector.compressor)
    return MediaShape(kind, n_frames, n_tokens, built.runs(n_frames, n_tokens, has_cls))
