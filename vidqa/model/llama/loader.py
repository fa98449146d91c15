"""An LLM folder -> Llama and tokenizer, without importing transformers, if both are standard.

On a cached clip `vidqa ask` spends most of its time on imports, of which transformers would be the slowest. An LLM
qualifies if its config describes nothing but a standard Llama, a tokenizer if all of it is in `tokenizer.json`.
Anything else (other models, scaled positions, quantized weights, adapters, chat templates, missing or mismatched files)
returns None; transformers then reads the folder or reports what is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from vidqa.common.foreign_files import LARGEST_SIZE, as_whole
from vidqa.model.bundle.bundle import ADAPTER_FOLDER
from vidqa.model.llama.model import Llama, LlamaConfig, SequenceEnds
from vidqa.model.llama.weights import load_published

#: Config values of a standard Llama, apart from sizes; any other value disqualifies.
_STANDARD: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rope_scaling": None,
    "sliding_window": None,
    "layer_types": None,
    "quantization_config": None,
}
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
#: Tokenizer settings that make no difference here.
_IRRELEVANT = {"backend", "is_local", "local_files_only", "model_max_length", "padding_side", "tokenizer_class"}
#: If one of these files exists, the tokenizer is not defined by its tokenizer.json alone.
_EXTRA_FILES = ("chat_template.jinja", "special_tokens_map.json", "added_tokens.json")


def load_llama(folder: Path, dtype: torch.dtype | None, device: torch.device | None = None) -> Llama | None:
    """Load a standard Llama.

    Args:
        folder: LLM folder with config and safetensors.
        dtype: dtype of the weights; None is the one in the config.
        device: device of the weights; None is the CPU.

    Returns:
        The LLM in evaluation mode, or None if transformers has to read the folder.
    """
    config = _read_json(folder / "config.json")
    if config is None or (sizes := _sizes(config)) is None or (folder / ADAPTER_FOLDER).exists():
        return None
    named = config.get("dtype") or config.get("torch_dtype")
    dtype = dtype or {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}.get(str(named))
    generation = _read_json(folder / "generation_config.json") or config
    ends = generation.get("eos_token_id")
    weights = _read_weights(folder)
    if dtype is None or weights is None or not valid_end_tokens(ends):
        return None
    llm = Llama(sizes, SequenceEnds(ends), device="meta")
    if not load_published(llm, weights, dtype, device):
        return None
    llm.pack()
    return llm.eval()


def valid_end_tokens(value: object) -> bool:
    """Return whether `eos_token_id` is a token id, a list of them, or None."""
    return value is None or all(type(token) is int for token in (value if isinstance(value, list) else [value]))


class FastTokenizer:
    """The part of a transformers tokenizer that vidqa uses, with the same names.

    Args:
        backend: a tokenizer of the tokenizers package.
        named: special tokens by role: `bos_token`, `eos_token`, ...
    """

    chat_template = None

    def __init__(self, backend: Tokenizer, named: dict[str, str]) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.added_tokens_decoder: dict[int, AddedToken] = backend.get_added_tokens_decoder()
        self.all_special_tokens = list(dict.fromkeys(named.values()))
        self.bos_token_id, self.eos_token_id, self._unknown_id = (
            backend.token_to_id(named[role]) if role in named else None
            for role in ("bos_token", "eos_token", "unk_token")
        )

    @classmethod
    def read(cls, folder: Path) -> FastTokenizer | None:
        """Read the tokenizer of a folder; None if its files have settings that this class does not support."""
        settings = _read_json(folder / "tokenizer_config.json")
        backend = _read_json(folder / "tokenizer.json")
        if settings is None or backend is None or any((folder / name).exists() for name in _EXTRA_FILES):
            return None
        if settings.get("tokenizer_class") not in ("TokenizersBackend", "PreTrainedTokenizerFast"):
            return None
        named = {role: settings[role] for role in _NAMED_TOKENS if settings.get(role) is not None}
        rest = {k: v for k, v in settings.items() if k not in _IRRELEVANT and k not in _NAMED_TOKENS}
        special = {token["content"] for token in backend.get("added_tokens", ()) if token["special"]}
        if rest.pop("clean_up_tokenization_spaces", False) or rest or not all(t in special for t in named.values()):
            return None
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")), named)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Encode a text as token ids."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Decode token ids to text."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """Return the id of a token; for any other string the id of the unknown token, or None."""
        token_id: int | None = self._backend.token_to_id(token)
        return self._unknown_id if token_id is None else token_id


def _sizes(config: dict[str, Any]) -> LlamaConfig | None:
    """Return the sizes of a standard Llama; None for any other model."""
    rope = config.get("rope_parameters") or {"rope_type": "default", "rope_theta": config.get("rope_theta", 10000.0)}
    is_standard = all(config.get(key, value) == value for key, value in _STANDARD.items())
    if config.get("model_type") != "llama" or not is_standard or not {"rope_type", "rope_theta"} >= set(rope):
        return None
    if rope.get("rope_type") != "default" or "rope_theta" not in rope:
        return None
    try:
        sizes = {key: _size(config[key]) for key in _SIZES}
        heads = sizes["num_attention_heads"]
        return LlamaConfig(
            **sizes,
            num_key_value_heads=_size(config.get("num_key_value_heads") or heads),
            head_dim=_size(config.get("head_dim") or sizes["hidden_size"] // heads),
            rms_norm_eps=float(config["rms_norm_eps"]),
            rope_theta=float(rope["rope_theta"]),
            tie_word_embeddings=bool(config["tie_word_embeddings"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _size(value: object) -> int:
    size = as_whole(value)
    if size is None or not 1 <= size <= LARGEST_SIZE:
        raise ValueError(f"not a size: {value!r:.80}")
    return size


def _read_weights(folder: Path) -> dict[str, Tensor] | None:
    index = _read_json(folder / "model.safetensors.index.json")
    weights: dict[str, Tensor] = {}
    try:
        for name in sorted(set(index["weight_map"].values())) if index else ["model.safetensors"]:
            weights |= load_file(folder / name)
    except (SafetensorError, OSError, KeyError, AttributeError, TypeError):
        return None
    return weights


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
