"""Throughput of earlier runs, kept in the cache folder -> the time estimate of `--dry-run`.

There is one entry for each machine, device and model, because several machines may share a cache folder. An entry holds
sums of seconds and of the work they were spent on; an older run counts half as much with each later one.
"""

from __future__ import annotations

import contextlib
import json
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from vidqa.common import atomic_io
from vidqa.pipeline.monitor.summary import Summary

RATES_NAME = "rates.json"
_FORMAT = 2
#: Weight of the earlier runs when a run is added.
_DECAY = 0.5
#: An estimate is rough if the run is more than this many times larger than the measured ones: small runs do not fill
#: their batches.
_ROUGH_ABOVE = 20
#: Larger sums of seconds or frames than any run can reach.
_MAX_SUM = 1e15


@dataclass(frozen=True)
class HistoryKey:
    """What throughput depends on: the device and the model."""

    device: str
    encoder_id: str
    model_id: str

    def __str__(self) -> str:
        """Return the key of the JSON object, which includes the name of this machine."""
        return " ".join((socket.gethostname(), self.device, self.encoder_id, self.model_id))


@dataclass(frozen=True)
class Rates:
    """Sums over earlier runs. Seconds are those in which the run did nothing else; see `StageClock`."""

    n_runs: int = 0
    files: float = 0.0  # found by the scan
    read_s: float = 0.0  # scanning and reading the table
    frames: float = 0.0  # decoded and encoded; an image has one, a segment of a video several
    encode_s: float = 0.0  # hashing, decoding and encoding
    answers: float = 0.0  # of the LLM
    generate_s: float = 0.0
    llm_s: float = 0.0  # busy seconds of an LLM on its own device, including those in parallel to other stages
    load_s: float = 0.0  # loading models and starting decoder processes, in the last run that did so
    write_s: float = 0.0  # writing the table

    def estimate_s(self, files: int, frames: int, answers: int) -> float | None:
        """Estimate the seconds of a run; None if no comparable run was measured.

        Args:
            files: found by the scan.
            frames: to decode and encode.
            answers: to compute.
        """
        if (frames and not self.frames) or (answers and not self.answers) or not self.files:
            return None
        seconds = files * self.read_s / self.files
        if frames:
            seconds += frames * self.encode_s / self.frames
        if answers:
            seconds += answers * (self.generate_s + self.write_s) / self.answers
            # With other features or questions than before, the LLM may become the bottleneck instead of the encoder.
            seconds = max(seconds, answers * self.llm_s / self.answers)
        return seconds + (self.load_s if frames or answers else 0.0)

    def is_rough(self, frames: int, answers: int) -> bool:
        """Return whether an estimate extrapolates far beyond what was measured.

        Args:
            frames: to decode and encode.
            answers: to compute.
        """
        return frames > _ROUGH_ABOVE * self.frames or answers > _ROUGH_ABOVE * self.answers

    def with_run(self, summary: Summary, *, own_device: bool = False) -> Rates:
        """Return the rates with one more run.

        Args:
            summary: of the run.
            own_device: whether the LLM has a device that decoding does not use. Otherwise its busy seconds include
                those of other stages.
        """
        seconds, meter = summary.seconds, summary.meter
        frames, answers = meter.decode.n, sum(summary.rows.values()) - summary.rows["failed"]
        llm_s = meter.prefill.busy_s + meter.step.busy_s if own_device else 0.0

        def added(old: float, new: float, counts: float) -> float:
            return _DECAY * old + new if counts else old

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


def load_rates(cache_dir: Path, key: HistoryKey) -> Rates:
    """Return what earlier runs on this machine measured; zeros if there were none.

    Args:
        cache_dir: the cache folder.
        key: device and model.
    """
    return _read(cache_dir / RATES_NAME).get(str(key), Rates())


def record_rates(cache_dir: Path, key: HistoryKey, summary: Summary) -> None:
    """Add a run. Nothing is recorded if the cache folder is not writable.

    Args:
        cache_dir: the cache folder.
        key: device and model.
        summary: of the run.
    """
    path = cache_dir / RATES_NAME
    all_rates = _read(path)
    all_rates[str(key)] = all_rates.get(str(key), Rates()).with_run(summary, own_device=key.device != "cpu")
    data = {"format": _FORMAT, "rates": {name: asdict(rates) for name, rates in all_rates.items()}}
    with contextlib.suppress(OSError), atomic_io.atomic_write(path) as f:
        f.write(json.dumps(data, indent=1).encode())


def _read(path: Path) -> dict[str, Rates]:
    try:
        data = json.loads(path.read_bytes())
        if data["format"] != _FORMAT:
            return {}
        return {str(key): Rates(**values) for key, values in data["rates"].items() if _is_valid(values)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # missing, damaged or of another version: the next run writes it again


def _is_valid(values: dict[str, float]) -> bool:
    """Return whether all values are numbers that a long history of runs may have reached."""
    return all(0 <= value < _MAX_SUM for value in values.values())
