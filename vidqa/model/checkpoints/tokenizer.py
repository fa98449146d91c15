"""A published tokenizer, of whatever form -> `tokenizer.json` beside the LLM, which needs no further package to read.

Knows the file names of tokenizers. No code of a checkpoint runs.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vidqa.errors import BundleError
from vidqa.model.checkpoints.recipe import LlmPlan

_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def save_tokenizer(plan: LlmPlan, folder: Path) -> None:
    """Read the plan's tokenizer and save it in `folder`.

    Raises:
        BundleError: it cannot be read, or has more tokens than the LLM has rows for.
    """
    tokenizer = _read(plan.tokenizer, plan.config.model_type)
    if missing := [t for t in plan.new_tokens if t not in tokenizer.get_vocab()]:
        tokenizer.add_tokens(missing, special_tokens=True)
    if len(tokenizer) > plan.config.vocab_size:
        raise BundleError(
            f"{plan.tokenizer}: the tokenizer has {len(tokenizer)} tokens, the language model {plan.config.vocab_size}"
        )
    tokenizer.save_pretrained(folder)


def _read(source: Path, model_type: str) -> Any:
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as place:
        # Alone with the model's own kind: a config.json of LLaVA would make transformers look for another tokenizer.
        for name in _FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, Path(place) / name)
        (Path(place) / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
        try:
            return AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError) as e:
            raise BundleError(
                f"the tokenizer in {source} cannot be read: {e}",
                hint='a tokenizer.model needs the package sentencepiece: pip install "vidqa[convert]"',
            ) from e
