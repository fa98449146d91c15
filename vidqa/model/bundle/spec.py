"""The words of `bundle.json` as frozen records.

Knows names and types, and what goes together. Does not open the parts, and imports no torch; `spec_reader` turns JSON
into these records.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vidqa.encoders.preprocess import PreprocessSpec
from vidqa.prompts.chat_formats import get_format
from vidqa.records import SamplingSpec

FORMAT_VERSION = 1

#: Mark of a field that came after the first bundles: a `bundle.json` without it means its default.
LATER = {"may be missing": True}


def _at_least_one(record: Any, *names: str) -> None:
    for name in names:
        if getattr(record, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(record, name)}")


@dataclass(frozen=True)
class EncoderSpec:
    """One vision encoder graph.

    `external` holds the digests of files next to the graph that carry its large tensors (ONNX above 2 GB), by their
    path inside the bundle. `layer` is the hidden state that the tokens come from (-2: the last but one). `n_patches`
    does not count the class token.
    """

    file: str
    n_frames: int
    layer: int
    keep_cls: bool
    hidden_size: int
    embedding_size: int
    n_patches: int
    preprocess: PreprocessSpec
    sha256: str = ""
    external: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _at_least_one(self, "n_frames", "hidden_size", "embedding_size", "n_patches")


@dataclass(frozen=True, kw_only=True)
class VideoEncoderSpec(EncoderSpec):
    """A vision encoder for clips, with the rule that picks its frames."""

    sampling: SamplingSpec

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling.rule in ("linspace", "arange") and self.sampling.n_frames % self.n_frames:
            taken = f"the graph takes {self.n_frames} at a time"
            raise ValueError(f"sampling.n_frames is {self.sampling.n_frames}, {taken}")


@dataclass(frozen=True)
class TextEncoderSpec:
    """The text tower, for search.

    A text is given to it as `start` (None: nothing), its tokens, `end`, at most `max_length` in all. The tower pools at
    the largest id, so `end` must be the last token of its vocabulary. `tokenizer` is a `tokenizer.json` of the package
    tokenizers; None is the LLM's own.
    """

    file: str
    embedding_size: int
    max_length: int
    sha256: str = ""
    external: dict[str, str] = field(default_factory=dict, metadata=LATER)
    tokenizer: str | None = field(default=None, metadata=LATER)
    tokenizer_sha256: str = field(default="", metadata=LATER)
    start: str | None = field(default=None, metadata=LATER)
    end: str = field(default="<|endoftext|>", metadata=LATER)

    def __post_init__(self) -> None:
        _at_least_one(self, "embedding_size", "max_length")


@dataclass(frozen=True)
class EncodersSpec:
    """All encoders of a bundle."""

    image: EncoderSpec
    video: VideoEncoderSpec
    text: TextEncoderSpec | None = None


@dataclass(frozen=True)
class CompressorSpec:
    """What joins the tokens of a clip's frames (`vidqa.model.compressors`). The defaults are the published sizes.

    type:
        `video_chatgpt`: `n_frames` frame means, then a mean over time for each patch; in front of the projector.
        `valley_v1`: a mean over time for each patch, then the class token of each frame; behind the projector.
        `valley_v2`: the same with a learned weight for each frame, made from its `n_patches` tokens.
        `valley_v3`: the same with a transformer over time (`n_heads`, `inner_size`, at most `n_frames` frames).

    A number that the type does not use is left as it is.
    """

    type: Literal["video_chatgpt", "valley_v1", "valley_v2", "valley_v3"]
    n_frames: int = 100
    n_patches: int = 256
    n_heads: int = 8
    inner_size: int = 2048

    def __post_init__(self) -> None:
        _at_least_one(self, "n_frames", "n_patches", "n_heads", "inner_size")

    @property
    def needs_cls(self) -> bool:
        """Whether the class token of each frame must be kept."""
        return self.type != "video_chatgpt"


@dataclass(frozen=True)
class ConnectorSpec:
    """What stands between encoders and LLM: a projector from `in_size` D to `out_size` L, and maybe a compressor."""

    file: str
    type: Literal["linear", "mlp2x_gelu", "identity"]
    in_size: int
    out_size: int
    sha256: str = ""
    compressor: CompressorSpec | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        _at_least_one(self, "in_size", "out_size")
        if self.type == "identity" and self.in_size != self.out_size:
            raise ValueError(f"a connector that changes nothing has one size, got {self.in_size=} {self.out_size=}")
        if self.compressor and self.compressor.type == "valley_v3" and self.out_size % self.compressor.n_heads:
            raise ValueError(f"out_size {self.out_size} is no multiple of compressor.n_heads {self.compressor.n_heads}")


@dataclass(frozen=True)
class LlmSpec:
    """An ordinary transformers folder. `files` holds the digest of every file in it; `context` counts all positions."""

    folder: str
    context: int
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _at_least_one(self, "context")


@dataclass(frozen=True)
class PromptSpec:
    """Chat format by name; `system` replaces its system text, None keeps it."""

    format: str
    system: str | None = None

    def __post_init__(self) -> None:
        get_format(self.format, self.system)


@dataclass(frozen=True)
class GenerationSpec:
    """What the model answers with unless the user says otherwise."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _at_least_one(self, "max_new_tokens")
        if not (self.temperature >= 0 and 0 < self.top_p <= 1):
            raise ValueError(f"need temperature >= 0 and 0 < top_p <= 1, got {self.temperature=} {self.top_p=}")


@dataclass(frozen=True)
class CompatSpec:
    """What a converted model is, and how near it is to what was published.

    `variant` says in a sentence which model this is; `follows` and `fixed` list, one thing each, what is done exactly
    as in the published code and what is done otherwise on purpose.
    """

    mode: Literal["fixed", "original"]
    variant: str
    follows: tuple[str, ...]
    fixed: tuple[str, ...]


@dataclass(frozen=True)
class SourceSpec:
    """Where a converted model comes from: the layout of its files, and each origin (`repository@revision`, `local`)."""

    layout: str
    origins: tuple[str, ...]
    vidqa_version: str


@dataclass(frozen=True)
class BundleSpec:
    """The whole of `bundle.json`. `notice` is said once to every user of the model."""

    name: str
    encoders: EncodersSpec
    connector: ConnectorSpec
    llm: LlmSpec
    prompt: PromptSpec
    generation: GenerationSpec = GenerationSpec()
    notice: str | None = None
    architecture: Literal["video_llava", "video_chatgpt", "valley"] = "video_llava"
    format: int = FORMAT_VERSION
    compat: CompatSpec | None = field(default=None, metadata=LATER)
    source: SourceSpec | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        if self.format != FORMAT_VERSION:
            raise ValueError(f"bundle format {self.format} is not the one this version reads ({FORMAT_VERSION})")
        for name in ("image", "video"):
            if (size := getattr(self.encoders, name).hidden_size) != self.connector.in_size:
                raise ValueError(f"encoders.{name}.hidden_size is {size}, connector.in_size {self.connector.in_size}")
            compressor = self.connector.compressor
            if compressor and getattr(self.encoders, name).keep_cls != compressor.needs_cls:
                raise ValueError(f"encoders.{name}.keep_cls does not go with the compressor {compressor.type}")
