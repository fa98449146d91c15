"""A transformers folder -> a causal LLM and its tokenizer, strictly and without a word.

Knows transformers. Does not know bundles, connectors or prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from vidqa.errors import BundleError


def load_llm(folder: Path, dtype: torch.dtype | None) -> tuple[Any, Any]:
    """Read a causal LLM and its tokenizer.

    Nothing is fetched, no code from the folder runs, and only safetensors are read.

    Args:
        folder: config, safetensors, tokenizer.
        dtype: of the weights; None keeps the saved one.

    Returns:
        The LLM on the CPU and its tokenizer.

    Raises:
        BundleError: a file cannot be read, or a weight is missing, unknown or of another shape; all are named.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    # Mismatched shapes are errors below, where all of them are named.
    strict = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with _quiet():
            llm, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or "auto", **strict, **local)
            tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as e:
        raise BundleError(f"{folder} cannot be loaded: {e}") from e
    problems = [f"{key}: missing" for key in sorted(info["missing_keys"])]
    problems += [f"{key}: unknown key" for key in sorted(info["unexpected_keys"])]
    problems += [f"{key}: shape {list(a)}, must be {list(b)}" for key, a, b in sorted(info["mismatched_keys"])]
    if problems:
        raise BundleError("\n".join(f"{folder}: {p}" for p in problems))
    return llm, tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and reports of transformers on stderr: what is wrong with a model is said by our own errors."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
