"""Features + prompts -> what the language model reads: connector, splice and any causal LLM of transformers.

Knows tensors and one tokenizer. Does not know videos, encoders, the cache or how answers are searched for.

Letters: B prompts, S positions of a prompt, V visual tokens, D encoder width, L LLM width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidqa.errors import BundleError, DeviceError
from vidqa.model.bundle.bundle import Bundle
from vidqa.model.connector import Connector, build_connector
from vidqa.model.llm import Quantise, load_llm
from vidqa.model.visual_tokens import fill_slots
from vidqa.prompts.chat_formats import ChatFormat, get_format
from vidqa.records import Features, MediaShape, Prompt


class VideoLlava(nn.Module):
    """A connector in front of a causal LLM.

    Args:
        connector: makes visual tokens of the LLM's width L from encoder tokens of width D.
        llm: a causal LLM of transformers that accepts `inputs_embeds`.
        tokenizer: the LLM's own.
        chat: format that the LLM was tuned with.
        context: longest sequence, visual tokens and answer included.
    """

    def __init__(self, connector: Connector, llm: nn.Module, tokenizer: Any, chat: ChatFormat, context: int) -> None:
        super().__init__()
        self.connector = connector
        self.llm: Any = llm
        self.tokenizer = tokenizer
        self.chat = chat
        self.context = context

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.llm.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the LLM's weights."""
        return self.llm.get_input_embeddings().weight.dtype

    def media_shape(self, features: Features) -> MediaShape:
        """How much room a picture or clip takes in a prompt; `visual_tokens` gives as many."""
        n_frames, n_tokens = features.tokens.shape[:2]
        runs = self.connector.runs(n_frames, n_tokens, features.keep_cls)
        return MediaShape(features.kind, n_frames, n_tokens, runs)

    def visual_tokens(self, features: Sequence[Features]) -> list[Tensor]:
        """Visual tokens of several pictures or clips.

        Args:
            features: tokens [T, P, D] each, of any T and P.

        Returns:
            One float [V, L] for each; V as `media_shape` says.

        Raises:
            ValueError: a width D that the connector does not take.
        """
        weight = self._projecting()
        tokens = [torch.from_numpy(f.tokens).to(weight.device) for f in features]
        return self.connector.visual(tokens, weight.dtype)

    def no_visual_tokens(self) -> Tensor:
        """float [0, L], by way of every weight of the connector: their gradients are zero, and are there.

        Processes that train together must run the same modules in the same order, also where one of them has text
        only: DeepSpeed adds up gradients as they come (another order mixes up weights), and weights in pieces (FSDP,
        ZeRO-3) are gathered by all processes at once.
        """
        weight = self._projecting()
        return self.connector.visual([self.connector.least().to(weight.device)], weight.dtype)[0][:0]

    def _projecting(self) -> Tensor:
        """A weight with the device and type of the connector."""
        return next(self.connector.parameters(), self.llm.get_input_embeddings().weight)  # an identity has none

    def embed(self, ids: Tensor, slots: Tensor, visual: Tensor) -> Tensor:
        """Look ids up and put the visual tokens in their slots.

        Args:
            ids: int64 [B, S] or [S]; what stands in a slot does not matter.
            slots: bool, like ids.
            visual: float [V, L], of all prompts one after another.

        Returns:
            float [B, S, L] or [S, L].

        Raises:
            ValueError: slots and visual tokens differ in number.
        """
        table = self.llm.get_input_embeddings()
        return fill_slots(table(ids.masked_fill(slots, 0)), slots, visual)

    def embed_prompt(self, prompt: Prompt, visual: Sequence[Tensor] = ()) -> Tensor:
        """Embed one prompt with its own media.

        Args:
            prompt: ids and slots [S].
            visual: float [V_i, L] of each medium, in the prompt's order.

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
        """Logits of whole sequences, and the loss where labels are given (for training).

        Args:
            ids: int64 [B, S], padded on the right.
            slots: bool [B, S].
            visual: float [V, L], of all prompts one after another.
            mask: int64 or bool [B, S], 0 on padding; None where nothing is padded.
            labels: int64 [B, S], -100 where there is no loss.

        Returns:
            The LLM's output: `.logits` float [B, S, vocabulary], `.loss`.
        """
        embeds = self.embed(ids, slots, visual)
        return self.llm(inputs_embeds=embeds, attention_mask=mask, labels=labels, use_cache=False)


def load_model(
    bundle: Bundle,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    quantise: Quantise | None = None,
    answers_only: bool = False,
) -> VideoLlava:
    """Read connector, LLM and tokenizer of a bundle.

    Nothing is fetched, no code from the folder runs, and every weight must have its place and every place its weight.

    Args:
        bundle: as read by `load_bundle`.
        device: `auto` (CUDA when there is one), `cpu`, `cuda`, `cuda:N`, or `map` (the LLM's layers over all devices).
        dtype: of all weights; None is float32 on the CPU and what the LLM was saved in on a GPU.
        quantise: linear layers of the LLM in 8 or 4 bits; None keeps them whole.
        answers_only: see `load_llm`.

    Returns:
        The model in evaluation mode.

    Raises:
        DeviceError: the device was asked for by name and cannot be had.
        BundleError: a part does not fit its description; names file and key.
    """
    spread = device == "map"
    where = pick_device("auto" if spread else device)
    kind = dtype or (torch.float32 if where.type == "cpu" else None)
    spec = bundle.spec
    c = spec.connector
    connector = build_connector(c.type, c.in_size, c.out_size, c.compressor)
    try:
        weights = load_file(bundle.connector_file)
    except (SafetensorError, OSError) as e:
        raise BundleError(f"{bundle.connector_file} cannot be read: {e}") from e
    load_strictly(connector, weights, str(bundle.connector_file))
    place: torch.device | Literal["map"] | None = "map" if spread else where if quantise else None
    llm, tokenizer = load_llm(
        bundle.llm_folder, kind, quantise=quantise, place=place, answers_only=answers_only, device=where
    )
    width = llm.get_input_embeddings().weight.shape[1]
    if width != spec.connector.out_size:
        raise BundleError(f"{bundle.folder}: connector.out_size is {spec.connector.out_size}, the LLM is {width} wide")
    chat = get_format(spec.prompt.format, spec.prompt.system)
    if problem := _format_problem(chat, tokenizer):
        raise BundleError(f"{bundle.folder}: prompt.format is {chat.name}, but {problem}")
    table = llm.get_input_embeddings().weight
    model = VideoLlava(connector.to(table.device, table.dtype), llm, tokenizer, chat, spec.llm.context)
    # What was placed while it was read stays where it is.
    return (model if place else model.to(where)).eval().requires_grad_(False)


def save_parts(model: VideoLlava, connector_file: Path, llm_folder: Path) -> None:
    """Write what `load_model` reads; for the `fill` of `save_bundle`.

    Args:
        model: its weights are written in the type they have.
        connector_file: a safetensors file.
        llm_folder: becomes an ordinary transformers folder: config, safetensors, tokenizer.
    """
    connector_file.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().cpu() for k, v in model.connector.state_dict().items()}, connector_file)
    model.llm.save_pretrained(llm_folder)
    model.tokenizer.save_pretrained(llm_folder)


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights whose keys and shapes are exactly those of the module.

    Args:
        module: changed in place.
        weights: by key; any float type.
        source: the file they came from, for the message.

    Raises:
        BundleError: a key is missing or unknown, or a shape differs; all are named.
    """
    wanted = module.state_dict()
    problems = [f"{key}: missing" for key in wanted if key not in weights]
    problems += [f"{key}: unknown key" for key in weights if key not in wanted]
    problems += [
        f"{key}: shape {list(weights[key].shape)}, must be {list(value.shape)}"
        for key, value in wanted.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if problems:
        raise BundleError("\n".join(f"{source}: {p}" for p in problems))
    module.load_state_dict(dict(weights))


def pick_device(device: str) -> torch.device:
    """The torch device behind a name.

    Raises:
        DeviceError: CUDA was asked for and there is none, or not that many.
    """
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        return torch.device("cpu")
    name, _, index = device.partition(":")
    if name != "cuda" or (index and not index.isdecimal()) or device.endswith(":"):
        raise DeviceError(f"unknown device {device!r}", hint="auto, cpu, cuda, cuda:N or map")
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= n:
        raise DeviceError(f"{device} was asked for, but torch sees {n} CUDA devices", hint="--device auto or cpu")
    return torch.device("cuda", int(index or 0))


def _format_problem(chat: ChatFormat, tokenizer: Any) -> str | None:
    """What the tokenizer lacks for a chat format."""
    if chat.kind == "template" and not tokenizer.chat_template:
        return "the tokenizer has no chat template"
    tags = (
        ("<image>", "<video>")
        if chat.media == "placeholder"
        else tuple(word for marks in chat.special_tokens for word in marks)
    )
    for tag in tags:
        if tokenizer.encode(tag, add_special_tokens=False) != [tokenizer.convert_tokens_to_ids(tag)]:
            return f"the tokenizer has no token {tag}"
    return None
