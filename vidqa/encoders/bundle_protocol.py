"""What the encoders need from a bundle, as protocols, because they must not import `vidqa.model`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class VisionEncoderSpec(Protocol):
    """Settings of the image or video encoder."""

    @property
    def keep_cls(self) -> bool:
        """Whether the class token is kept in the features."""
        ...

    @property
    def sha256(self) -> str:
        """Digest of the graph."""
        ...

    @property
    def external(self) -> dict[str, str]:
        """Digests of external weight files, by path relative to the bundle's folder."""
        ...


class TextTowerSpec(Protocol):
    """Settings of the text tower."""

    @property
    def max_length(self) -> int:
        """Maximum number of token ids of a text, including the start and end tokens."""
        ...

    @property
    def sha256(self) -> str:
        """Digest of the graph."""
        ...

    @property
    def external(self) -> dict[str, str]:
        """Digests of external weight files, by path relative to the bundle's folder."""
        ...

    @property
    def tokenizer_sha256(self) -> str:
        """Digest of the tokenizer."""
        ...

    @property
    def start(self) -> str | None:
        """Start token, None if the tower has none."""
        ...

    @property
    def end(self) -> str:
        """End token."""
        ...


class EncoderSpecs(Protocol):
    """The encoders of a bundle."""

    @property
    def image(self) -> VisionEncoderSpec:
        """The image encoder."""
        ...

    @property
    def video(self) -> VisionEncoderSpec:
        """The video encoder."""
        ...

    @property
    def text(self) -> TextTowerSpec | None:
        """The text tower, if there is one."""
        ...


class EncoderBundleSpec(Protocol):
    """Content of bundle.json."""

    @property
    def name(self) -> str:
        """Name of the model."""
        ...

    @property
    def encoders(self) -> EncoderSpecs:
        """The encoders."""
        ...


class EncoderBundle(Protocol):
    """A bundle on disk."""

    @property
    def folder(self) -> Path:
        """Folder of the bundle."""
        ...

    @property
    def image_graph(self) -> Path:
        """ONNX file of the image encoder."""
        ...

    @property
    def video_graph(self) -> Path:
        """ONNX file of the video encoder."""
        ...

    @property
    def text_graph(self) -> Path | None:
        """ONNX file of the text tower, if there is one."""
        ...

    @property
    def text_tokenizer(self) -> Path | None:
        """`tokenizer.json` of the text tower, if there is one."""
        ...

    @property
    def spec(self) -> EncoderBundleSpec:
        """The bundle's settings."""
        ...
