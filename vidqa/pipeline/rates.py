"""How fast this machine was in earlier runs, kept in the cache folder: what `--dry-run` estimates from.

One entry for each machine, device and model: a cache folder may be shared. Sums of seconds and of what they were spent
on, older runs counting half as much with each later one. Knows summaries; does not know stages.
"""

from __future__ import annotations

import contextlib
import json
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from vidqa import fsio
from vidqa.pipeline.loaded import LoadedModel
from vidqa.pipeline.summary import Summary

RATES_NAME = "rates.json"
_FORMAT = 1
#: What a run adds to the sums of the ones before it.
_KEEP = 0.5


@dataclass(frozen=True)
class Rates:
    """Sums over earlier runs. Seconds are those in which nothing else was done; see `StageClock`."""

    n_runs: int = 0
    files: float = 0.0  # found by the scan
    read_s: float = 0.0  # scan and reading the table
    segments: float = 0.0  # decoded and encoded
    encode_s: float = 0.0  # decoding, hashing and encoding them
    answers: float = 0.0  # asked of the language model
    generate_s: float = 0.0
    load_s: float = 0.0  # of models, in the last run that loaded any
    write_s: float = 0.0  # into the table, sum as for answers

    def estimate_s(self, files: int, segments: int, answers: int) -> float | None:
        """Seconds that a run would take; None where nothing like it was measured.

        Args:
            files: found.
            segments: to decode and encode.
            answers: to ask for.
        """
        if (segments and not self.segments) or (answers and not self.answers) or not self.files:
            return None
        seconds = files * self.read_s / self.files
        if segments:
            seconds += segments * self.encode_s / self.segments
        if answers:
            seconds += answers * (self.generate_s + self.write_s) / self.answers
        return seconds + (self.load_s if segments or answers else 0.0)

    def with_run(self, summary: Summary) -> Rates:
        """These and one run more."""
        seconds = summary.seconds
        answers = sum(summary.rows.values()) - summary.rows["failed"]
        worked = bool(summary.segments or answers)
        return Rates(
            n_runs=self.n_runs + 1,
            files=_KEEP * self.files + summary.files,
            read_s=_KEEP * self.read_s + seconds["read"],
            segments=(_KEEP * self.segments + summary.segments) if summary.segments else self.segments,
            encode_s=(_KEEP * self.encode_s + seconds["decode"] + seconds["encode"])
            if summary.segments
            else self.encode_s,
            answers=(_KEEP * self.answers + answers) if answers else self.answers,
            generate_s=(_KEEP * self.generate_s + seconds["generate"]) if answers else self.generate_s,
            write_s=(_KEEP * self.write_s + seconds["write"]) if answers else self.write_s,
            load_s=seconds["load"] if worked else self.load_s,
        )


def recall(cache_dir: Path, model: LoadedModel) -> Rates:
    """What earlier runs with this model on this machine measured; zeros where there were none."""
    return _read(cache_dir / RATES_NAME).get(_key(model), Rates())


def remember(cache_dir: Path, model: LoadedModel, summary: Summary) -> None:
    """Add a run. A cache folder that cannot be written keeps no rates; that harms nothing."""
    path = cache_dir / RATES_NAME
    known = _read(path)
    known[_key(model)] = known.get(_key(model), Rates()).with_run(summary)
    data = {"format": _FORMAT, "rates": {key: asdict(rates) for key, rates in known.items()}}
    with contextlib.suppress(OSError), fsio.commit(path) as f:
        f.write(json.dumps(data, indent=1).encode())


def _key(model: LoadedModel) -> str:
    who = model.identity
    return " ".join((socket.gethostname(), str(model.device), who.encoder_id, who.model_id))


def _read(path: Path) -> dict[str, Rates]:
    try:
        data = json.loads(path.read_bytes())
        if data["format"] != _FORMAT:
            return {}
        return {str(key): Rates(**{name: values[name] + 0 for name in values}) for key, values in data["rates"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # none yet, or of another version: they come again with the next run
