"""`bundle.json` as frozen records: field names, types and consistency.

`spec_json` converts them from and to JSON.

Scope: settings only. The parts are not opened and torch is not imported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal

from vidqa.encoders.preprocess import PreprocessSpec
from vidqa.prompts.chat_formats import get_format
from vidqa.records import SamplingSpec

FORMAT_VERSION = 1

#: Metadata of a field that was added after the first bundles: if `bundle.json` lacks it, its default applies.
OPTIONAL = {"optional": True}


def _at_least_one(record: Any, *names: str) -> None:
    for name in names:
        if getattr(record, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(record, name)}")


@dataclass(frozen=True)
class EncoderSpec:
    """One vision encoder in ONNX.

    `external` holds the digests of external data files (for graphs above 2 GB), by their path inside the bundle.
    `layer` is the hidden state that the tokens are taken from (-2: the second to last). `n_patches` does not include
    the class token.
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

    @property
    def n_sampled_frames(self) -> int:
        """Maximum number of frames of a segment; the graph takes `n_frames` of them at a time."""
        return self.n_frames

    @property
    def entry_bytes(self) -> int:
        """Maximum size in bytes of a cache entry, which holds the features of one segment."""
        from vidqa.cache.entry import entry_bytes

        n_tokens = self.n_patches + self.keep_cls
        return entry_bytes(self.n_sampled_frames, n_tokens, self.hidden_size, self.embedding_size)


@dataclass(frozen=True, kw_only=True)
class VideoEncoderSpec(EncoderSpec):
    """A vision encoder for videos, with the rule that selects its frames."""

    sampling: SamplingSpec

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling.rule in ("linspace", "arange") and self.sampling.n_frames % self.n_frames:
            sampled = f"sampling.n_frames is {self.sampling.n_frames}"
            raise ValueError(f"{sampled}, not a multiple of the {self.n_frames} frames of the graph")

    @property
    def n_sampled_frames(self) -> int:
        """Maximum number of frames of a segment; the graph takes `n_frames` of them at a time."""
        return self.sampling.n_frames


@dataclass(frozen=True)
class TextEncoderSpec:
    """The text encoder in ONNX, for search.

    Its input is `start` (None: nothing), the tokens of the text, and `end`, at most `max_length` tokens in total. It
    pools at the largest id, so `end` must be the last token of its vocabulary. `tokenizer` is a `tokenizer.json` file
    in the format of the tokenizers package; None is that of the LLM.
    """

    file: str
    embedding_size: int
    max_length: int
    sha256: str = ""
    external: dict[str, str] = field(default_factory=dict, metadata=OPTIONAL)
    tokenizer: str | None = field(default=None, metadata=OPTIONAL)
    tokenizer_sha256: str = field(default="", metadata=OPTIONAL)
    start: str | None = field(default=None, metadata=OPTIONAL)
    end: str = field(default="<|endoftext|>", metadata=OPTIONAL)

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
    """Compressor of the tokens of all frames (`vidqa.model.compressors`). The defaults are the published sizes.

    type:
        `video_chatgpt`: `n_frames` frame means, then a mean over time for each patch; before the projector.
        `valley_v1`: a mean over time for each patch, then the class token of each frame; after the projector.
        `valley_v2`: the same with a trainable weight for each frame, computed from its `n_patches` tokens.
        `valley_v3`: the same with a transformer over time (`n_heads`, `inner_size`, at most `n_frames` frames).

    Sizes that the type does not use are ignored.
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
        """True if the class token of each frame is needed."""
        return self.type != "video_chatgpt"


@dataclass(frozen=True)
class ConnectorSpec:
    """Connector between encoders and LLM: a projector from `in_size` D to `out_size` L, optionally a compressor."""

    file: str
    type: Literal["linear", "mlp2x_gelu", "identity"]
    in_size: int
    out_size: int
    sha256: str = ""
    compressor: CompressorSpec | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        _at_least_one(self, "in_size", "out_size")
        if self.type == "identity" and self.in_size != self.out_size:
            raise ValueError(f"an identity connector needs equal sizes, got {self.in_size=} {self.out_size=}")
        if self.compressor and self.compressor.type == "valley_v3" and self.out_size % self.compressor.n_heads:
            raise ValueError(
                f"out_size {self.out_size} is not a multiple of compressor.n_heads {self.compressor.n_heads}"
            )


@dataclass(frozen=True)
class LlmSpec:
    """A transformers folder; `files` holds the digest of every file, `context` the maximum sequence length."""

    folder: str
    context: int
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _at_least_one(self, "context")


@dataclass(frozen=True)
class PromptSpec:
    """Chat format by name; `system` replaces its system prompt, None keeps it."""

    format: str
    system: str | None = None

    def __post_init__(self) -> None:
        get_format(self.format, self.system)


def decoding_problems(max_new_tokens: Any, temperature: Any, top_p: Any, stop: Any) -> list[str]:
    """Check decoding settings.

    Args:
        max_new_tokens: a whole number of at least 1.
        temperature: a finite number of at least 0.
        top_p: a number above 0 and at most 1.
        stop: a list or tuple of strings.

    Returns:
        One sentence per problem.
    """
    problems = []
    if not _is_number(max_new_tokens, Integral) or max_new_tokens < 1:
        problems.append(f"max_new_tokens must be a whole number of at least 1, got {max_new_tokens!r:.80}")
    if not _is_number(temperature, Real) or not 0 <= _as_float(temperature) < math.inf:
        problems.append(f"temperature must be a number of 0 or more, got {temperature!r:.80}")
    if not _is_number(top_p, Real) or not 0 < top_p <= 1:
        problems.append(f"top_p must be a number above 0 and at most 1, got {top_p!r:.80}")
    if not isinstance(stop, list | tuple) or not all(isinstance(text, str) for text in stop):
        problems.append(f"stop must be a list of strings, got {stop!r:.80}")
    return problems


def _as_float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True)
class GenerationSpec:
    """The model's default decoding settings."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if problems := decoding_problems(self.max_new_tokens, self.temperature, self.top_p, self.stop):
            raise ValueError("; ".join(problems))


@dataclass(frozen=True)
class CompatSpec:
    """How a converted model relates to the published one.

    `variant` describes the model in a sentence. `follows` lists what is done exactly as in the published code, `fixed`
    what is deliberately done differently.
    """

    mode: Literal["fixed", "original"]
    variant: str
    follows: tuple[str, ...]
    fixed: tuple[str, ...]


@dataclass(frozen=True)
class SourceSpec:
    """Where a model comes from.

    Attributes:
        layout: layout of the files that it was converted from.
        origins: its parts: `repository@revision`, or `local:NAME` for a folder or file.
        vidqa_version: version that wrote the bundle.
        licences: the licence that each origin states, in the same order; empty strings where none is stated.
        base: `NAME@MODEL_ID` of the model that it was fine-tuned from.
    """

    layout: str
    origins: tuple[str, ...]
    vidqa_version: str
    licences: tuple[str, ...] = field(default=(), metadata=OPTIONAL)
    base: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class BundleSpec:
    """The content of `bundle.json`. `notice` is shown once per run to users of the model."""

    name: str
    encoders: EncodersSpec
    connector: ConnectorSpec
    llm: LlmSpec
    prompt: PromptSpec
    generation: GenerationSpec = GenerationSpec()
    notice: str | None = None
    architecture: Literal["video_llava", "video_chatgpt", "valley"] = "video_llava"
    format: int = FORMAT_VERSION
    compat: CompatSpec | None = field(default=None, metadata=OPTIONAL)
    source: SourceSpec | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if self.format != FORMAT_VERSION:
            raise ValueError(f"bundle format {self.format} is not supported by this version ({FORMAT_VERSION} is)")
        for name in ("image", "video"):
            if (size := getattr(self.encoders, name).hidden_size) != self.connector.in_size:
                raise ValueError(f"encoders.{name}.hidden_size is {size}, connector.in_size {self.connector.in_size}")
            compressor = self.connector.compressor
            if compressor and getattr(self.encoders, name).keep_cls != compressor.needs_cls:
                raise ValueError(f"encoders.{name}.keep_cls does not match the compressor {compressor.type}")
