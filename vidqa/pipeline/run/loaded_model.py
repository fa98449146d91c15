"""A bundle with its two engines, each loaded when it is first used: a run that has nothing to do loads neither.

Knows bundles, the encoder and the LLM; does not know media, cache or tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from vidqa import __version__
from vidqa.encoders.onnx_session import resolve_device
from vidqa.errors import DeviceError
from vidqa.model.bundle.bundle import Bundle, load_bundle
from vidqa.pipeline.monitor.reporter import QUIET, Reporter
from vidqa.pipeline.run.run_options import Identity

if TYPE_CHECKING:  # they pull in heavy packages
    from vidqa.encoders.encoder import Encoder
    from vidqa.encoders.text_encoder import TextEncoder
    from vidqa.model.video_llava import VideoLlava


@dataclass(frozen=True)
class Precision:
    """How exactly the LLM computes. `dtype` None: float32 on the CPU, what it was saved in on a GPU."""

    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    quantize: Literal["8bit", "4bit"] | None = None

    @property
    def words(self) -> list[str]:
        """What was asked for, as it stands behind the model's id."""
        return [word for word in (self.dtype, self.quantize) if word]


class LoadedModel:
    """What answers questions: encoder, connector and LLM of one bundle on one device.

    Args:
        bundle: as read by `load_bundle`.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, or `map`: the LLM over all devices, the encoders as for `auto`.
        batch_size: segments that the encoder takes at once; None lets it choose.
        precision: of the LLM; it is part of the model's identity, because it changes answers.
        reporter: hears once which provider and device were chosen, and the bundle's notice.

    Raises:
        DeviceError: the device was asked for by name and cannot be had.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str = "auto",
        *,
        batch_size: int | None = None,
        precision: Precision | None = None,
        reporter: Reporter = QUIET,
    ) -> None:
        self.bundle = bundle
        self.device = resolve_device("auto" if device == "map" else device)
        self.precision = precision or Precision()
        self._asked_device = device
        self._batch_size = batch_size
        self.reporter = reporter

    @cached_property
    def encoder(self) -> Encoder:
        """Image and video encoder, loaded on first use."""
        from vidqa.encoders.encoder import Encoder

        encoder = Encoder.from_bundle(self.bundle, self.device)
        self.reporter.say_once(f"encoder: {encoder.provider}")
        return encoder

    @cached_property
    def llava(self) -> VideoLlava:
        """Connector, LLM and tokenizer, loaded on first use.

        Raises:
            DeviceError: they do not fit into the memory of the device.
        """
        from vidqa.common.devices import is_out_of_memory
        from vidqa.model.llm import dtype_from_name
        from vidqa.model.video_llava import load_model as load_llava

        wanted = self.precision
        try:
            llava = load_llava(
                self.bundle, self._asked_device, dtype_from_name(wanted.dtype), wanted.quantize, inference_only=True
            )
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            what = f"the language model of {self.bundle.spec.name} does not fit into the memory of {self._asked_device}"
            raise DeviceError(what, hint="--quantize 4bit, or --device cpu; vidqa doctor says what fits") from error
        self.reporter.say_once(f"language model: {llava.device}")
        if self.bundle.spec.notice:
            self.reporter.say_once(f"note: {self.bundle.spec.notice}")
        return llava

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """Text tower and its tokenizer, loaded on first use.

        Raises:
            UsageError: the bundle has no text tower.
        """
        from vidqa.encoders.text_encoder import TextEncoder

        return TextEncoder.from_bundle(self.bundle, self.device)

    @property
    def identity(self) -> Identity:
        """What the rows of this model carry."""
        model_id = "-".join([self.bundle.model_id, *self.precision.words])
        return Identity(self.bundle.spec.name, model_id, self.bundle.encoder_id, __version__)


def load_model(
    model: str = "demo", device: str = "auto", *, precision: Precision | None = None, reporter: Reporter = QUIET
) -> LoadedModel:
    """Open a bundle.

    Args:
        model: name of a bundle (`demo` is the bundled one) or its folder.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `map` (a large LLM over several devices).
        precision: of the LLM; None is float32 on the CPU, and on a GPU what it was saved in.
        reporter: where messages go; nowhere by default.

    Raises:
        BundleError: there is no such bundle, or it is damaged.
        DeviceError: the device was asked for by name and cannot be had.
    """
    return LoadedModel(load_bundle(model), device, precision=precision, reporter=reporter)
