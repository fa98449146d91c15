"""VideoLlava: features and prompts -> input embeddings of the LLM, through the connector.

Letters: B prompts, S positions of a prompt, V visual tokens, T frames, P tokens of a frame, D encoder width, L LLM
hidden size.

Scope: tensors, one tokenizer, and the weights of a bundle. Decoding is in `vidqa.generate`; media and encoders are in
layers below `vidqa.model`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidqa.common.devices import parse_device
from vidqa.errors import BundleError, DeviceError
from vidqa.model.bundle.bundle import Bundle
from vidqa.model.connector import Connector, build_connector
from vidqa.model.llm import Quantization, load_llm
from vidqa.model.visual_tokens import fill_slots
from vidqa.prompts.build import format_problem
from vidqa.prompts.chat_formats import ChatFormat, get_format
from vidqa.records import Features, MediaShape, Prompt


class VideoLlava(nn.Module):
    """A connector and a causal LLM.

    Args:
        connector: converts encoder tokens of width D to visual tokens of width L.
        llm: a causal LLM that accepts `inputs_embeds`.
        tokenizer: the LLM's tokenizer.
        chat: chat format that the LLM was fine-tuned with.
        context: maximum sequence length, including visual tokens and answer.
    """

    def __init__(self, connector: Connector, llm: nn.Module, tokenizer: Any, chat: ChatFormat, context: int) -> None:
        super().__init__()
        self.connector = connector
        self.llm: Any = llm
        self.tokenizer = tokenizer
        self.chat = chat
        self.context = context
        #: Held while the model runs: generation temporarily replaces its attention function.
        self.lock = threading.RLock()

    @property
    def device(self) -> torch.device:
        """Device of the LLM's embeddings, where inputs belong."""
        return self.llm.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the LLM's weights."""
        return self.llm.get_input_embeddings().weight.dtype

    def media_shape(self, features: Features) -> MediaShape:
        """Return the number of visual tokens of an image or video in a prompt; `visual_tokens` returns as many."""
        n_frames, n_tokens = features.tokens.shape[:2]
        runs = self.connector.runs(n_frames, n_tokens, features.keep_cls)
        return MediaShape(features.kind, n_frames, n_tokens, runs)

    def visual_tokens(self, features: Sequence[Features]) -> list[Tensor]:
        """Compute the visual tokens of several images or videos.

        Args:
            features: features with tokens [T, P, D], for any T and P.

        Returns:
            Float [V, L] for each image or video; V as in `media_shape`.

        Raises:
            ValueError: the connector does not accept the width D.
        """
        weight = self._connector_weight()
        tokens = [torch.from_numpy(f.tokens).to(weight.device) for f in features]
        return self.connector.visual_tokens(tokens, weight.dtype)

    def empty_visual_tokens(self) -> Tensor:
        """Return float [0, L], computed with every weight of the connector, so that their gradients exist and are zero.

        In distributed training all processes must run the same modules in the same order, even if one of them has a
        batch of text only: DeepSpeed adds up gradients in order of arrival, and sharded weights (FSDP, ZeRO-3) are
        gathered by all processes together.
        """
        weight = self._connector_weight()
        return self.connector.visual_tokens([self.connector.smallest_input().to(weight.device)], weight.dtype)[0][:0]

    def _connector_weight(self) -> Tensor:
        """Return a weight that has the device and dtype of the connector."""
        return next(self.connector.parameters(), self.llm.get_input_embeddings().weight)  # an identity has no weights

    def embed(self, ids: Tensor, slots: Tensor, visual: Tensor) -> Tensor:
        """Embed token ids and write the visual tokens into their slots.

        Args:
            ids: int64 [B, S] or [S]; the ids in slots do not matter.
            slots: bool, shape of `ids`, True where a visual token belongs.
            visual: float [V, L], of all prompts, concatenated.

        Returns:
            float [B, S, L] or [S, L].

        Raises:
            ValueError: slots and visual tokens differ in number.
        """
        embed = self.llm.get_input_embeddings()
        return fill_slots(embed(ids.masked_fill(slots, 0)), slots, visual)

    def embed_prompt(self, prompt: Prompt, visual: Sequence[Tensor] = ()) -> Tensor:
        """Embed one prompt with its media.

        Args:
            prompt: ids and slots [S].
            visual: float [V_i, L] of each media item, in the prompt's order.

        Returns:
            float [S, L].

        Raises:
            ValueError: slots and visual tokens differ in number.
        """
        ids, slots = torch.from_numpy(prompt.ids).to(self.device), torch.from_numpy(prompt.slots).to(self.device)
        width = self.llm.get_input_embeddings().weight.shape[1]
        joined = torch.cat(list(visual)) if visual else torch.empty(0, width, device=self.device, dtype=self.dtype)
        return self.embed(ids, slots, joined)

    def forward(
        self, ids: Tensor, slots: Tensor, visual: Tensor, mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Any:
        """Compute the logits of whole sequences, and the loss if labels are given (for training).

        Args:
            ids: int64 [B, S], padded on the right.
            slots: bool [B, S].
            visual: float [V, L], of all prompts, concatenated.
            mask: int64 or bool [B, S], 0 on padding; None without padding.
            labels: int64 [B, S], -100 for tokens without loss.

        Returns:
            The LLM's output: `.logits` float [B, S, vocabulary], `.loss`.
        """
        embeds = self.embed(ids, slots, visual)
        return self.llm(inputs_embeds=embeds, attention_mask=mask, labels=labels, use_cache=False)


def load_model(
    bundle: Bundle,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    quantize: Quantization | None = None,
    inference_only: bool = False,
) -> VideoLlava:
    """Load connector, LLM and tokenizer of a bundle.

    Nothing is downloaded, no code from the folder runs, and weights must match the modules exactly.

    Args:
        bundle: a bundle from `load_bundle`.
        device: `auto` (CUDA if available), `cpu`, `cuda`, `cuda:N`, or `map` (the LLM's layers over all devices).
        dtype: dtype of all weights; None is float32 on the CPU and the saved dtype of the LLM on a GPU.
        quantize: load the linear layers of the LLM with 8-bit or 4-bit weights; None keeps them as they are.
        inference_only: see `load_llm`.

    Returns:
        The model in evaluation mode.

    Raises:
        DeviceError: the device was requested by name and is not available.
        BundleError: a part does not match its description; names file and key.
    """
    use_map = device == "map"
    target = torch_device("auto" if use_map else device)
    dtype = dtype or (torch.float32 if target.type == "cpu" else None)
    spec = bundle.spec
    c = spec.connector
    connector = build_connector(c.type, c.in_size, c.out_size, c.compressor)
    try:
        weights = load_file(bundle.connector_file)
    except (SafetensorError, OSError) as e:
        raise BundleError(f"{bundle.connector_file} cannot be read: {e}") from e
    load_strictly(connector, weights, str(bundle.connector_file))
    device_map: torch.device | Literal["map"] | None = "map" if use_map else target if quantize else None
    llm, tokenizer = load_llm(
        bundle.llm_folder,
        dtype,
        quantize=quantize,
        device_map=device_map,
        inference_only=inference_only,
        device=target,
    )
    width = llm.get_input_embeddings().weight.shape[1]
    if width != spec.connector.out_size:
        raise BundleError(f"{bundle.folder}: connector.out_size is {spec.connector.out_size}, but the LLM has {width}")
    chat = get_format(spec.prompt.format, spec.prompt.system)
    if problem := format_problem(tokenizer, chat):
        raise BundleError(f"{bundle.folder}: prompt.format is {chat.name}, but {problem}")
    table = llm.get_input_embeddings().weight
    model = VideoLlava(connector.to(table.device, table.dtype), llm, tokenizer, chat, spec.llm.context)
    # A model with a device map was placed while loading and must not be moved.
    return (model if device_map else model.to(target)).eval().requires_grad_(False)


def save_parts(model: VideoLlava, connector_file: Path, llm_folder: Path) -> None:
    """Write the parts that `load_model` reads, for use in the `fill` function of `save_bundle`.

    Args:
        model: saved in the dtype of its weights.
        connector_file: safetensors file to write.
        llm_folder: transformers folder to write: config, safetensors, tokenizer.
    """
    connector_file.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().cpu() for k, v in model.connector.state_dict().items()}, connector_file)
    model.llm.save_pretrained(llm_folder)
    model.tokenizer.save_pretrained(llm_folder)


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights whose keys and shapes must match the module exactly.

    Args:
        module: changed in place.
        weights: by key; any float dtype.
        source: the file that they come from, for error messages.

    Raises:
        BundleError: a key is missing or unknown, or a shape differs; all of them are named.
    """
    expected = module.state_dict()
    problems = [f"{key}: missing" for key in expected if key not in weights]
    problems += [f"{key}: unknown key" for key in weights if key not in expected]
    problems += [
        f"{key}: shape {list(weights[key].shape)}, must be {list(value.shape)}"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if problems:
        raise BundleError("\n".join(f"{source}: {p}" for p in problems))
    module.load_state_dict(dict(weights))


def torch_device(device: str) -> torch.device:
    """Return the torch device of a name.

    Args:
        device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`.

    Raises:
        DeviceError: any other name, or torch does not see this CUDA device.
    """
    kind, index = parse_device(device)
    n_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not n_cuda):
        return torch.device("cpu")
    if (index or 0) >= n_cuda:
        raise DeviceError(f"{device} was requested, but torch sees {n_cuda} CUDA devices", hint="--device auto or cpu")
    return torch.device("cuda", index or 0)
