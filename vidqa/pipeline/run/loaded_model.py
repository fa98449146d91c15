"""A bundle with its encoder and LLM, each loaded on first use: a run without pending work loads neither."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from vidqa import __version__
from vidqa.common.extras import require
from vidqa.encoders.onnx_session import resolve_device
from vidqa.errors import DeviceError
from vidqa.model.bundle.bundle import ADAPTER_FOLDER, Bundle, load_bundle
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.pipeline.monitor.throughput_history import HistoryKey
from vidqa.pipeline.run.run_options import Identity

if TYPE_CHECKING:  # these import heavy packages
    from vidqa.encoders.encoder import Encoder
    from vidqa.encoders.text_encoder import TextEncoder
    from vidqa.model.video_llava import VideoLlava


T = TypeVar("T")


class _LoadedOnce(cached_property[T]):
    """A cached property that one thread computes while others wait: loading twice would need the memory twice."""

    def __init__(self, load: Callable[[Any], T]) -> None:
        super().__init__(load)
        self._loading = threading.RLock()

    def __get__(self, instance: object, owner: type[Any] | None = None) -> T:  # type: ignore[override]
        with self._loading:
            return super().__get__(instance, owner)


@dataclass(frozen=True)
class Precision:
    """Numeric precision of the LLM. `dtype` None: float32 on the CPU, the saved dtype on a GPU."""

    dtype: Literal["float32", "float16", "bfloat16"] | None = None  # of the LLM; None for the default
    quantize: Literal["8bit", "4bit"] | None = None  # 8-bit or 4-bit weights

    @property
    def suffixes(self) -> list[str]:
        """Suffixes of the model_id for settings that are not the default."""
        return [suffix for suffix in (self.dtype, self.quantize) if suffix]


class LoadedModel:
    """Encoder, connector and LLM of one bundle on one device.

    Args:
        bundle: from `load_bundle`.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, or `map` to distribute the LLM over all devices (the encoders then use
            the device of `auto`).
        precision: of the LLM; part of the model_id, because it changes answers.
        reporter: receives one message each about the execution provider, the device and the bundle's notice.

    Raises:
        DeviceError: the requested device is not available.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str = "auto",
        *,
        precision: Precision | None = None,
        reporter: Reporter = QUIET,
    ) -> None:
        self.bundle = bundle
        self.device = resolve_device("auto" if device == "map" else device)
        self.precision = precision or Precision()
        self._requested_device = device
        self.reporter = reporter

    def __repr__(self) -> str:
        """Return name, device and model_id, and which parts are loaded."""
        loaded = [part for part in ("encoder", "llava", "text_encoder") if part in vars(self)]
        identity, parts = self.identity, ", ".join(loaded) or "nothing"
        return f"<LoadedModel {identity.model} on {self.device}, model_id {identity.model_id}, loaded: {parts}>"

    def require_packages(self) -> None:
        """Check that the packages that the LLM needs are installed, before a run decodes and encodes files for it.

        Raises:
            UsageError: one is missing; the message has the extra that installs it.
        """
        if quantize := self.precision.quantize:
            require(f"--quantize {quantize}", "quantize", "bitsandbytes", "accelerate")
        if self._requested_device == "map":
            require("--device map", "map", "accelerate")
        if (self.bundle.llm_folder / ADAPTER_FOLDER).is_dir():
            require(f"the LoRA adapter of {self.bundle.spec.name}", "train", "peft")

    @_LoadedOnce
    def encoder(self) -> Encoder:
        """Image and video encoder, loaded on first use."""
        from vidqa.encoders.encoder import Encoder

        encoder = Encoder.from_bundle(self.bundle, self.device)
        self.reporter.message_once(f"encoder: {encoder.provider}")
        return encoder

    @_LoadedOnce
    def llava(self) -> VideoLlava:
        """Connector, LLM and tokenizer, loaded on first use.

        Raises:
            DeviceError: the device does not have enough memory.
        """
        from vidqa.common.devices import is_out_of_memory
        from vidqa.model.llm import dtype_from_name
        from vidqa.model.video_llava import load_model as load_llava

        precision = self.precision
        try:
            llava = load_llava(
                self.bundle,
                self._requested_device,
                dtype_from_name(precision.dtype),
                precision.quantize,
                inference_only=True,
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            name = self.bundle.spec.name
            what = f"the language model of {name} does not fit into the memory of {self._requested_device}"
            raise DeviceError(what, hint="--quantize 4bit or --device cpu; `vidqa doctor` lists what fits") from error
        self.reporter.message_once(f"language model: {llava.device}")
        if notice := self.bundle.notice:
            self.reporter.message_once(f"note: {notice}")
        return llava

    @_LoadedOnce
    def text_encoder(self) -> TextEncoder:
        """Text tower and its tokenizer, loaded on first use.

        Raises:
            UsageError: the bundle has no text tower.
        """
        from vidqa.encoders.text_encoder import TextEncoder

        return TextEncoder.from_bundle(self.bundle, self.device)

    @property
    def history_key(self) -> HistoryKey:
        """What the throughput of earlier runs is recorded under."""
        identity = self.identity
        return HistoryKey(str(self.device), identity.encoder_id, identity.model_id)

    @property
    def identity(self) -> Identity:
        """What rows record about this model."""
        model_id = "-".join([self.bundle.model_id, *self.precision.suffixes])
        return Identity(self.bundle.spec.name, model_id, self.bundle.encoder_id, __version__)


def load_model(
    model: str = "demo", device: str = "auto", *, precision: Precision | None = None, reporter: Reporter = QUIET
) -> LoadedModel:
    """Open a model. Its encoder and LLM are loaded on first use.

    Args:
        model: name of a bundle (`demo` is included) or its folder.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, or `map` to distribute the LLM over all devices.
        precision: of the LLM; None for float32 on the CPU and the saved dtype on a GPU.
        reporter: receives messages; by default they are dropped.

    Returns:
        The model, for `describe`, `ask`, `chat` and `search`.

    Raises:
        BundleError: there is no such bundle, or it is damaged.
        DeviceError: the requested device is not available.
    """
    return LoadedModel(load_bundle(model), device, precision=precision, reporter=reporter)
