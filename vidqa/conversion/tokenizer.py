"""Save a published tokenizer as the `tokenizer.json` of the LLM, which needs no additional packages to be read.

A `tokenizer.json` is kept as it is. A `tokenizer.model` of LLaMA is converted so that it returns the ids of the slow
tokenizer in transformers 4.31, which dates from the time of these models. The conversion of transformers 5 differs: it
drops the space before text that starts with one, always treats text after `</s>` as the middle of a word, and keeps
white space around added tokens. No code of a checkpoint is executed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vidqa.common.extras import require
from vidqa.common.foreign_files import JsonSettings, read_magic, read_settings
from vidqa.conversion.plan import LlmPlan
from vidqa.errors import BundleError

#: How sentencepiece writes a space.
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
#: Small files of settings; the others are vocabularies.
_SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json")


def save_tokenizer(plan: LlmPlan, folder: Path) -> None:
    """Read the tokenizer of a plan and save it in `folder`.

    Args:
        plan: the LLM with the folder of its tokenizer and the tokens to add.
        folder: the output folder.

    Raises:
        BundleError: the tokenizer cannot be read, or has more tokens than the LLM has embedding rows.
    """
    tokenizer = _read(plan.tokenizer, plan.config.model_type)
    vocabulary = tokenizer.get_vocab()
    if missing := [_added_token(t) for t in plan.new_tokens if t not in vocabulary]:
        tokenizer.add_tokens(missing, special_tokens=True)
    if len(tokenizer) > plan.config.vocab_size:
        raise BundleError(
            f"{plan.tokenizer}: {len(tokenizer)} tokens, but the language model has {plan.config.vocab_size} rows"
        )
    tokenizer.save_pretrained(folder)


def _read(source: Path, model_type: str) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as path:
        # Copied next to a config.json with the LLM's own type: LLaVA's would select another tokenizer class.
        for name in _FILES:
            if (source / name).is_file():
                read_settings(source / name) if name in _SETTINGS_FILES else read_magic(source / name)
                shutil.copyfile(source / name, Path(path) / name)
        (Path(path) / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
        complete = (source / "tokenizer.json").is_file()
        kind = PreTrainedTokenizerFast if complete else AutoTokenizer  # AutoTokenizer would rebuild the file's rules
        if not complete and (source / "tokenizer.model").is_file():
            require("reading a tokenizer.model", "convert", "sentencepiece", "google.protobuf")
        try:
            tokenizer = kind.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            return tokenizer if complete or model_type != "llama" else _with_slow_rules(tokenizer, source)
        except Exception as e:  # the parsers of transformers and tokenizers may raise anything on a malformed file
            why = " ".join(str(e).split())[:500] or type(e).__name__
            raise BundleError(f"cannot read the tokenizer in {source}: {why}") from e


def _with_slow_rules(tokenizer: Any, source: Path) -> Any:
    """Return LLaMA's fast tokenizer with the rules of the slow one.

    The rules depend on `legacy` in its configuration (default true): if true, every piece between special tokens
    starts with a space, otherwise only the first piece. Text starts with `<s>` unless `add_bos_token` is false. One
    detail of 4.31 is not reproduced: with `legacy` false it split the word after a special token as if a space
    preceded it, and then dropped the space.
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
    settings = read_settings(file) if file.is_file() else JsonSettings({}, file)
    bos = tokenizer.bos_token if settings.get("add_bos_token", True) else None
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A" if bos else "$A", special_tokens=[(bos, tokenizer.bos_token_id)] if bos else []
    )
    if settings.get("legacy", True):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
        backend.pre_tokenizer = None
    else:
        backend.normalizer = normalizers.Replace(Regex("^ "), "  ")  # a leading space of the text is kept in addition
        backend.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, "first", False)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **named,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
        **({"chat_template": tokenizer.chat_template} if tokenizer.chat_template else {}),
    )


def _added_token(text: str) -> Any:
    """Return a token with the rules of a slow tokenizer: it absorbs the white space around it."""
    from tokenizers import AddedToken

    return AddedToken(text, lstrip=True, rstrip=True, normalized=False, special=True)
