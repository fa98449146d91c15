"""Plan a causal LLM: any model type of transformers, including the names that LLaVA models use for LLaMA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidqa.convert.lazy_tensors import LazyTensor
from vidqa.convert.plan import LlmPlan
from vidqa.errors import BundleError

#: Model types of published LLaMA models with a vision part.
LLAMA_NAMES = frozenset({"llama", "llava", "llava_llama", "videochatgpt", "valley", "VideoChatGPT"})
#: A folder with one of these files has a tokenizer.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def llm_plan(
    config: Mapping[str, Any], tensors: Mapping[str, LazyTensor], tokenizer: Path, new_tokens: tuple[str, ...] = ()
) -> LlmPlan:
    """Plan an LLM.

    Args:
        config: the content of its `config.json`; keys that do not belong to the model type (LLaVA's) are ignored.
        tensors: tensors under the LLM's own keys.
        tokenizer: the folder of the tokenizer.
        new_tokens: as in `LlmPlan`.

    Raises:
        BundleError: the model type is missing or unknown, or the folder has no tokenizer.
    """
    from transformers import CONFIG_MAPPING

    named = config.get("model_type")
    kind = "llama" if named in LLAMA_NAMES else named
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise BundleError(f"the language model has the model type {named!r}, which transformers does not support")
    if config.get("quantization_config"):
        raise BundleError("the language model is quantized; use the checkpoint it was quantized from")
    cls = CONFIG_MAPPING[kind]
    keys = {*cls().to_dict(), "rope_theta", "rope_scaling"}
    unwanted = {
        "architectures",
        "transformers_version",
        "model_type",
        "dtype",
        "torch_dtype",
        "auto_map",
        "_name_or_path",
    }
    try:
        llm_config = cls(**{k: v for k, v in config.items() if k in keys and k not in unwanted})
    except (TypeError, ValueError) as e:
        raise BundleError(f"the configuration of the language model is not valid for {kind}: {e}") from e
    context = getattr(llm_config, "max_position_embeddings", None)
    if not isinstance(context, int):
        raise BundleError(
            f"the configuration of the language model ({kind}) has no context length (max_position_embeddings)"
        )
    if not any((tokenizer / name).is_file() for name in _TOKENIZER_FILES):
        raise BundleError(f"{tokenizer}: the folder has no tokenizer ({', '.join(_TOKENIZER_FILES)})")
    return LlmPlan(llm_config, tensors, tokenizer, context, new_tokens)
