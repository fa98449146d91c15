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

from vidqa.common import atomic_io
from vidqa.pipeline.monitor.summary import Summary
from vidqa.pipeline.run.loaded_model import LoadedModel

RATES_NAME = "rates.json"
_FORMAT = 2
#: What a run adds to the sums of the ones before it.
_KEEP = 0.5
#: A run of more than so many times what was measured is estimated roughly: small runs do not fill their batches.
_FAR = 20


@dataclass(frozen=True)
class Rates:
    """Sums over earlier runs. Seconds are those in which nothing else was done; see `StageClock`."""

    n_runs: int = 0
    files: float = 0.0  # found by the scan
    read_s: float = 0.0  # scan and reading the table
    frames: float = 0.0  # decoded and encoded: a picture is one, a segment of a clip some
    encode_s: float = 0.0  # decoding, hashing and encoding them
    answers: float = 0.0  # asked of the language model
    generate_s: float = 0.0
    llm_s: float = 0.0  # in which the LLM was busy on a device of its own, also while others worked beside it
    load_s: float = 0.0  # of models and of the start of decoding, in the last run that did any of it
    write_s: float = 0.0  # into the table, sum as for answers

    def estimate_s(self, files: int, frames: int, answers: int) -> float | None:
        """Seconds that a run would take; None where nothing like it was measured.

        Args:
            files: found.
            frames: to decode and encode.
            answers: to ask for.
        """
        if (frames and not self.frames) or (answers and not self.answers) or not self.files:
            return None
        seconds = files * self.read_s / self.files
        if frames:
            seconds += frames * self.encode_s / self.frames
        if answers:
            seconds += answers * (self.generate_s + self.write_s) / self.answers
            # With other features or other questions than before, the LLM may no longer hide behind the encoder.
            seconds = max(seconds, answers * self.llm_s / self.answers)
        return seconds + (self.load_s if frames or answers else 0.0)

    def is_rough(self, frames: int, answers: int) -> bool:
        """Whether an estimate reaches far beyond what was measured."""
        return frames > _FAR * self.frames or answers > _FAR * self.answers

    def with_run(self, summary: Summary, *, own_device: bool = False) -> Rates:
        """These and one run more.

        Args:
            summary: of the run.
            own_device: whether the LLM has a device that decoding does not use; else its busy seconds are also those of
                others.
        """
        seconds, meter = summary.seconds, summary.meter
        frames, answers = meter.decode.n, sum(summary.rows.values()) - summary.rows["failed"]
        llm_s = meter.prefill.busy_s + meter.step.busy_s if own_device else 0.0

        def added(old: float, new: float, counts: float) -> float:
            return _KEEP * old + new if counts else old

        return Rates(
            n_runs=self.n_runs + 1,
            files=added(self.files, summary.files, True),
            read_s=added(self.read_s, seconds["read"], True),
            frames=added(self.frames, frames, frames),
            encode_s=added(self.encode_s, seconds["decode"] - summary.start_s + seconds["encode"], frames),
            answers=added(self.answers, answers, answers),
            generate_s=added(self.generate_s, seconds["generate"], answers),
            llm_s=added(self.llm_s, llm_s, answers),
            write_s=added(self.write_s, seconds["write"], answers),
            load_s=seconds["load"] + summary.start_s if frames or answers else self.load_s,
        )


def recall(cache_dir: Path, model: LoadedModel) -> Rates:
    """What earlier runs with this model on this machine measured; zeros where there were none."""
    return _read(cache_dir / RATES_NAME).get(_key(model), Rates())


def remember(cache_dir: Path, model: LoadedModel, summary: Summary) -> None:
    """Add a run. A cache folder that cannot be written keeps no rates; that harms nothing."""
    path = cache_dir / RATES_NAME
    known = _read(path)
    known[_key(model)] = known.get(_key(model), Rates()).with_run(summary, own_device=str(model.device) != "cpu")
    data = {"format": _FORMAT, "rates": {key: asdict(rates) for key, rates in known.items()}}
    with contextlib.suppress(OSError), atomic_io.atomic_write(path) as f:
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
