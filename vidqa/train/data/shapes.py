"""What a bundle says of itself -> room for the visual tokens of a medium, before anything is encoded."""

from __future__ import annotations

from dataclasses import dataclass

from vidqa.model.spec import BundleSpec
from vidqa.prompts.build import MediaShape
from vidqa.train.data.sample import MediaRef


@dataclass(frozen=True)
class SpecShapes:
    """Called with a medium, says how much room it takes in a prompt.

    Where the sampling rule takes fewer frames of short clips, it is the most that a clip can take.
    """

    spec: BundleSpec

    def __call__(self, ref: MediaRef) -> MediaShape:
        encoder = self.spec.encoders.image if ref.kind == "image" else self.spec.encoders.video
        return MediaShape(ref.kind, encoder.n_frames, encoder.n_patches + encoder.keep_cls)
