"""Plan a causal LLM: any model type of transformers, including the names that LLaVA models use for LLaMA."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from vidqa.common.foreign_files import JsonSettings
from vidqa.conversion.formats.generation import read_generation
from vidqa.conversion.formats.llm_config import llm_config
from vidqa.conversion.lazy_tensors import LazyTensor
from vidqa.conversion.plan import LlmPlan
from vidqa.errors import BundleError

#: Model types of published LLaMA models with a vision part.
LLAMA_NAMES = frozenset({"llama", "llava", "llava_llama", "videochatgpt", "valley", "VideoChatGPT"})
#: A folder with one of these files has a tokenizer.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_BLOCK = re.compile(r"model\.layers\.(\d+)\.")


def llm_plan(
    config: JsonSettings, tensors: Mapping[str, LazyTensor], folder: Path, new_tokens: tuple[str, ...] = ()
) -> LlmPlan:
    """Plan an LLM.

    Args:
        config: the content of its `config.json`, which may have LLaVA's keys too.
        tensors: tensors under the LLM's own keys.
        folder: the folder of the tokenizer and of `generation_config.json`.
        new_tokens: as in `LlmPlan`.

    Raises:
        BundleError: the model type is missing or unknown, a setting is not valid or does not match the weights, or the
            folder has no tokenizer.
    """
    from transformers import CONFIG_MAPPING

    named = config.text("model_type", "")
    kind = "llama" if named in LLAMA_NAMES else named
    if kind not in CONFIG_MAPPING:
        raise config.error("model_type", f"the language model is {named!r:.80}, which transformers does not support")
    if config.get("quantization_config"):
        what = "the language model is quantized; use the checkpoint it was quantized from"
        raise config.error("quantization_config", what)
    _check_blocks(config, tensors)
    built = llm_config(config, kind)
    context = getattr(built, "max_position_embeddings", None)
    if not isinstance(context, int):
        raise config.error("max_position_embeddings", f"missing: the context length of the language model ({kind})")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise BundleError(f"{folder}: the folder has no tokenizer ({', '.join(_TOKENIZER_FILES)})")
    generation = read_generation(folder, config, built.vocab_size)
    code = (f"{config.file}: auto_map names code, which is not run",) if config.get("auto_map") else ()
    return LlmPlan(
        built,
        tensors,
        folder,
        context,
        new_tokens,
        generation=generation.tokens,
        stop=generation.stop,
        notes=(*generation.notes, *code),
        config_file=config.file,
    )


def _check_blocks(config: JsonSettings, tensors: Mapping[str, LazyTensor]) -> None:
    """Compare the number of blocks with the weights, before a model of any size is built."""
    found = {int(m[1]) for key in tensors if (m := _BLOCK.match(key))}
    n_blocks = config.whole("num_hidden_layers", 0) if "num_hidden_layers" in config else None
    if found and n_blocks is not None and n_blocks != max(found) + 1:
        raise config.error("num_hidden_layers", f"{n_blocks}, but the weights have {max(found) + 1} blocks")
