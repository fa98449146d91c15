"""Conversation files -> samples. Reads the LLaVA JSON layout as Video-LLaVA uses it.

A record: `id`, `image` or `video` (a path below the media folder) or neither, and `conversations`, a list of
`{"from": "human" | "gpt", "value": text}` that starts with human and alternates; the first human text holds one
`<image>` or `<video>` tag for the medium.

Knows files of text. Does not open media, and knows no model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidqa.errors import UsageError
from vidqa.records import MediaKind


@dataclass(frozen=True)
class Sample:
    """One conversation about at most one picture or clip."""

    id: str
    media: str | None  # path below the media folder
    kind: MediaKind | None
    turns: tuple[tuple[str, str], ...]  # (question, answer); the tag stands in the first question


def read_conversations(path: str | Path) -> list[Sample]:
    """All samples of a JSON file.

    Raises:
        UsageError: the file cannot be read, or records are malformed; the first ten are named.
    """
    try:
        records = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UsageError(f"{path}: cannot be read as JSON: {e}") from e
    if not isinstance(records, list):
        raise UsageError(f"{path}: must hold a list of records")
    samples, problems = [], []
    for number, record in enumerate(records):
        try:
            samples.append(_sample(record, number))
        except (KeyError, TypeError, ValueError) as e:
            problems.append(f"{path}: record {number}: {e}")
    if problems:
        raise UsageError("\n".join(problems[:10]) + (f"\n... {len(problems)} in all" if len(problems) > 10 else ""))
    return samples


def by_media(samples: Iterable[Sample]) -> list[tuple[Sample, ...]]:
    """Group the samples by their medium, in the order of first mention; each text-only sample stays alone."""
    groups: dict[object, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.media if sample.media is not None else (sample.id, len(groups)), []).append(sample)
    return [tuple(group) for group in groups.values()]


def _sample(record: dict[str, Any], number: int) -> Sample:
    media = {kind: record[kind] for kind in ("image", "video") if kind in record}
    if len(media) > 1 or not all(isinstance(m, str) for m in media.values()):
        raise ValueError("one image or one video is needed, or neither")
    said = record["conversations"]
    if not said or len(said) % 2:
        raise ValueError("conversations must hold pairs of human and gpt")
    turns = []
    for human, gpt in zip(said[::2], said[1::2], strict=True):
        if human["from"] != "human" or gpt["from"] != "gpt":
            raise ValueError("conversations must alternate human, gpt")
        if not gpt["value"].strip():
            raise ValueError("an answer is empty")
        turns.append((str(human["value"]), str(gpt["value"])))
    kind: MediaKind | None = next(iter(media), None)
    tags = sum(q.count("<image>") + q.count("<video>") for q, _ in turns)
    if tags != len(media) or (kind and turns[0][0].count(f"<{kind}>") != 1):
        raise ValueError(f"{tags} tags in the text for {len(media)} media; one, in the first question, is needed")
    return Sample(str(record.get("id", number)), media.get(kind) if kind else None, kind, tuple(turns))
