"""A published tokenizer, of whatever form -> `tokenizer.json` beside the LLM, which needs no further package to read.

A `tokenizer.json` is taken as it is. A `tokenizer.model` of LLaMA gives the ids that the slow tokenizer of its time
gave (checked against transformers 4.31): what transformers 5 makes of it leaves out the space before a text that begins
with one, always takes what follows `</s>` for the middle of a word, and keeps the white space around added tokens.

Knows the file names of tokenizers. No code of a checkpoint runs.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vidqa.convert.checks import refuse_pointer
from vidqa.convert.plan import LlmPlan
from vidqa.errors import BundleError

#: What sentencepiece writes for a space.
_SPACE = "\u2581"
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
    words = tokenizer.get_vocab()
    if missing := [_mark(t) for t in plan.new_tokens if t not in words]:
        tokenizer.add_tokens(missing, special_tokens=True)
    if len(tokenizer) > plan.config.vocab_size:
        raise BundleError(
            f"{plan.tokenizer}: the tokenizer has {len(tokenizer)} tokens, the language model {plan.config.vocab_size}"
        )
    tokenizer.save_pretrained(folder)


def _read(source: Path, model_type: str) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as place:
        # Alone with the model's own kind: a config.json of LLaVA would make transformers look for another tokenizer.
        for name in _FILES:
            if (source / name).is_file():
                refuse_pointer(source / name)
                shutil.copyfile(source / name, Path(place) / name)
        (Path(place) / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
        whole = (source / "tokenizer.json").is_file()
        kind = PreTrainedTokenizerFast if whole else AutoTokenizer  # the second would make the file's rules anew
        try:
            tokenizer = kind.from_pretrained(place, local_files_only=True, trust_remote_code=False)
            return tokenizer if whole or model_type != "llama" else _as_slow(tokenizer, source)
        except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError) as e:
            raise BundleError(
                f"the tokenizer in {source} cannot be read: {e}",
                hint='a tokenizer.model needs the package sentencepiece: pip install "vidqa[convert]"',
            ) from e


def _as_slow(tokenizer: Any, source: Path) -> Any:
    """LLaMA's tokenizer with the rules of its slow form.

    Those rules depend on `legacy` in its configuration, which is true where nothing is said: then every piece between
    special tokens begins with a space, else the first alone. A text begins with `<s>` unless `add_bos_token` says no.
    Not followed: with `legacy` false 4.31 cut a word behind a mark as if the space were there and then dropped it.
    """
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    named = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    own = {"<unk>", *(named.get(f"{k}_token") for k in ("unk", "bos", "eos"))}
    added = {"lstrip": True, "rstrip": True, "normalized": False}
    rules["added_tokens"] = [t if t["content"] in own else t | added for t in rules["added_tokens"]]
    backend = Tokenizer.from_str(json.dumps(rules))
    file = source / "tokenizer_config.json"
    said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    bos = tokenizer.bos_token if said.get("add_bos_token", True) else None
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A" if bos else "$A", special_tokens=[(bos, tokenizer.bos_token_id)] if bos else []
    )
    if said.get("legacy", True):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
        backend.pre_tokenizer = None
    else:
        backend.normalizer = normalizers.Replace(Regex("^ "), "  ")  # a text's own space is kept beside the first one
        backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, "first", False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **named,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
        **({"chat_template": tokenizer.chat_template} if tokenizer.chat_template else {}),
    )


def _mark(word: str) -> Any:
    """A token that was added to a slow tokenizer: white space around it belongs to it."""
    from tokenizers import AddedToken

    return AddedToken(word, lstrip=True, rstrip=True, normalized=False, special=True)
