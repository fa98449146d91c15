"""Keys and configuration of a causal LLM -> its plan. Any model type of transformers, LLaVA's own names for LLaMA too.

Does not know towers or projectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidqa.convert.lazy_tensors import LazyTensor
from vidqa.convert.plan import LlmPlan
from vidqa.errors import BundleError

#: How publications call a LLaMA with something in front of it.
LLAMA_NAMES = frozenset({"llama", "llava", "llava_llama", "videochatgpt", "valley", "VideoChatGPT"})
#: A folder with one of these has a tokenizer.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def llm_plan(
    config: Mapping[str, Any], tensors: Mapping[str, LazyTensor], tokenizer: Path, new_tokens: tuple[str, ...] = ()
) -> LlmPlan:
    """Plan of an LLM.

    Args:
        config: as in its `config.json`; keys that the model type does not know (those of LLaVA) are left out.
        tensors: by the LLM's own names.
        tokenizer: the folder that holds it.
        new_tokens: as in `LlmPlan`.

    Raises:
        BundleError: no or an unknown model type, or no tokenizer in the folder.
    """
    from transformers import CONFIG_MAPPING

    named = config.get("model_type")
    kind = "llama" if named in LLAMA_NAMES else named
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise BundleError(f"the language model has the type {named!r}, which transformers does not know")
    if config.get("quantization_config"):
        raise BundleError("the language model is quantised; give the checkpoint that it was made from")
    cls = CONFIG_MAPPING[kind]
    known = {*cls().to_dict(), "rope_theta", "rope_scaling"}
    left_out = {
        "architectures",
        "transformers_version",
        "model_type",
        "dtype",
        "torch_dtype",
        "auto_map",
        "_name_or_path",
    }
    try:
        made = cls(**{k: v for k, v in config.items() if k in known and k not in left_out})
    except (TypeError, ValueError) as e:
        raise BundleError(f"the configuration of the language model is not one of {kind}: {e}") from e
    context = getattr(made, "max_position_embeddings", None)
    if not isinstance(context, int):
        raise BundleError(f"the configuration of the language model ({kind}) does not say how long its context is")
    if not any((tokenizer / name).is_file() for name in _TOKENIZER_FILES):
        raise BundleError(f"{tokenizer}: no tokenizer here ({', '.join(_TOKENIZER_FILES)})")
    return LlmPlan(made, tensors, tokenizer, context, new_tokens)
