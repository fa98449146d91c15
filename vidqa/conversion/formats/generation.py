"""`generation_config.json`: its end tokens and stop strings are taken over; what else changes answers is reported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidqa.common.foreign_files import JsonSettings, as_whole, is_unset, read_settings

GENERATION_CONFIG = "generation_config.json"
#: Settings without effect on an answer.
_HARMLESS = frozenset(
    {
        "_from_model_config",
        "transformers_version",
        "eos_token_id",
        "bos_token_id",
        "pad_token_id",
        "stop_strings",
        "decoder_start_token_id",
        "use_cache",
        "cache_implementation",
        "cache_config",
        "return_dict_in_generate",
        "return_legacy_cache",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "compile_config",
        "disable_compile",
        "low_memory",
        "prefill_chunk_size",
        "remove_invalid_values",
    }
)
#: Settings that have no effect unless tokens are sampled.
_SAMPLING = frozenset({"temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"})
#: Defaults of transformers that are not null, false or empty.
_DEFAULTS: Mapping[str, float] = {
    "max_length": 20,
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "diversity_penalty": 0.0,
    "guidance_scale": 1.0,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
}


@dataclass(frozen=True)
class PublishedGeneration:
    """What a published model declares about generation.

    Attributes:
        tokens: end, start and padding tokens, for the `generation_config.json` of the bundle; empty if the checkpoint
            has no such file.
        stop: strings that end an answer.
        notes: a message about settings that are not taken over.
    """

    tokens: Mapping[str, Any]
    stop: tuple[str, ...]
    notes: tuple[str, ...]


def read_generation(folder: Path, config: JsonSettings, vocab_size: int) -> PublishedGeneration:
    """Read the generation settings of a checkpoint.

    Args:
        folder: folder of the checkpoint. Without a `generation_config.json`, the settings are those in `config.json`.
        config: the language model's `config.json`.
        vocab_size: number of token ids.

    Raises:
        BundleError: a token is not in the vocabulary, or a value is of a wrong type; names file and key.
    """
    file = folder / GENERATION_CONFIG
    is_there = file.is_file()
    found = read_settings(file) if is_there else config
    end = _end_tokens(found, vocab_size) or (_end_tokens(config, vocab_size) if is_there else [])
    tokens: dict[str, Any] = {"eos_token_id": end[0] if len(end) == 1 else end} if end else {}
    for key in ("bos_token_id", "pad_token_id"):
        if (value := _token(found, key)) is not None and 0 <= value < vocab_size:  # -1 stands for none
            tokens[key] = value
    stop = found.get("stop_strings") if is_there else None
    listed = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(listed, list) or not all(isinstance(text, str) and text for text in listed):
        raise found.error("stop_strings", f"must be a list of strings, got {stop!r:.80}")
    return PublishedGeneration(tokens if is_there else {}, tuple(listed), _notes(found, is_there))


def _end_tokens(config: JsonSettings, vocab_size: int) -> list[int]:
    value = config.get("eos_token_id")
    ids = [as_whole(token) for token in (value if isinstance(value, list) else [value])]
    if value is not None and any(token is None or not 0 <= token < vocab_size for token in ids):
        problem = f"must be a token id, or a list of them, below the vocabulary size {vocab_size}, got {value!r:.80}"
        raise config.error("eos_token_id", problem)
    return [token for token in dict.fromkeys(ids) if token is not None]


def _token(config: JsonSettings, key: str) -> int | None:
    value = config.get(key)
    if value is not None and as_whole(value) is None:
        raise config.error(key, f"must be a token id, got {value!r:.80}")
    return as_whole(value)


def _notes(config: JsonSettings, is_there: bool) -> tuple[str, ...]:
    lost = [f"{key} {value!r:.60}" for key, value in _changes(config, is_there)]
    if not lost:
        return ()
    sampled = " (answers are greedy unless bundle.json sets a temperature)" if config.get("do_sample") is True else ""
    return (f"{config.file}: not taken over: {', '.join(lost)}{sampled}",)


def _changes(config: JsonSettings, is_there: bool) -> Iterator[tuple[str, Any]]:
    """Yield the settings that change answers and are not taken over."""
    from vidqa.conversion.formats.recognized_keys import GENERATION

    samples = not is_unset(config.get("do_sample"))
    for key, value in config.items():
        if key in _HARMLESS or (not is_there and key not in GENERATION) or is_unset(value):
            continue
        if value != _DEFAULTS.get(key) and (samples or key not in _SAMPLING):
            yield key, value
