"""How much each stage did and how long it was at it: rates, and the share of what is possible.

Counted by the stages while they work, side by side. Which of them limits does not follow from that: in a run it is what
the run waited for (`StageClock.limit`), in a benchmark what takes longest for a clip. Knows numbers only.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class StageTiming:
    """One stage: what it did, in units of its own, and the seconds that it was busy."""

    unit: str
    n: float = 0.0
    busy_s: float = 0.0
    least_s: float | None = None  # what the hardware would have needed, by matrix or copy rate; None: not known

    def add(self, n: float, busy_s: float) -> None:
        """Count some work."""
        self.n += n
        self.busy_s += busy_s

    @property
    def rate(self) -> float | None:
        """Units a second while busy."""
        return self.n / self.busy_s if self.busy_s > 0 and self.n else None

    @property
    def share(self) -> float | None:
        """Share of the hardware's limit that was reached; never above 1 by more than the limit's own error."""
        return self.least_s / self.busy_s if self.least_s and self.busy_s > 0 else None


@dataclass
class ThroughputMeter:
    """The stages of a run, or of a benchmark.

    `decode` are frames that were looked at, in all decode processes together; `prefill` prompts, those of a clip's
    questions counted with its beginning once; `answer` is not a stage but what comes out, over the whole time.
    """

    decode: StageTiming = field(default_factory=lambda: StageTiming("frames"))
    encode: StageTiming = field(default_factory=lambda: StageTiming("clips"))
    prefill: StageTiming = field(default_factory=lambda: StageTiming("tokens"))
    step: StageTiming = field(default_factory=lambda: StageTiming("tokens"))
    n_answers: int = 0
    encode_operations: float = 0.0
    prefill_operations: float = 0.0
    step_bytes: float = 0.0
    matrix_per_s: float | None = None  # measured on the LLM's device
    copy_bytes_per_s: float | None = None

    def hold_against(self, matrix_per_s: float, copy_bytes_per_s: float) -> None:
        """Say what the hardware allows: operations and bytes a second that it reached with nothing else to do."""
        self.matrix_per_s, self.copy_bytes_per_s = matrix_per_s, copy_bytes_per_s
        self.encode.least_s = self.encode_operations / matrix_per_s
        self.prefill.least_s = self.prefill_operations / matrix_per_s
        self.step.least_s = self.step_bytes / copy_bytes_per_s

    @property
    def roofline_s(self) -> float | None:
        """Seconds that encoder and LLM would have needed at the hardware's limit; None where it was not measured."""
        if self.matrix_per_s is None:
            return None
        return sum(s.least_s or 0.0 for s in self.stages.values())

    @property
    def stages(self) -> dict[str, StageTiming]:
        """By name, in the order of the data's way."""
        return {"decode": self.decode, "encode": self.encode, "prefill": self.prefill, "generate": self.step}

    def as_dict(self, wall_s: float) -> dict[str, object]:
        """For `--json`.

        Args:
            wall_s: of the whole run.
        """
        stages = {
            name: {
                "unit": s.unit,
                "n": round(s.n),
                "busy_s": round(s.busy_s, 3),
                "per_s": _rounded(s.rate),
                "limit_per_s": _rounded(s.n / s.least_s if s.least_s else None),
                "share_of_limit": _rounded(s.share),
            }
            for name, s in self.stages.items()
        }
        return {
            "stages": stages,
            "answers_per_s": _rounded(self.n_answers / wall_s if wall_s > 0 else None),
            "matrix_tflops": _rounded(None if self.matrix_per_s is None else self.matrix_per_s / 1e12),
            "roofline_s": _rounded(self.roofline_s),
            "copy_gb_per_s": _rounded(None if self.copy_bytes_per_s is None else self.copy_bytes_per_s / 1e9),
        }

    def as_text(self, wall_s: float, of: str = "over all") -> str:
        """For people: a line for each stage that did something; empty where none did.

        Args:
            wall_s: in which the answers were given.
            of: what that time is.
        """
        lines = []
        for name, s in self.stages.items():
            if s.rate is None:
                continue
            line = f"  {name:<9}{s.rate:>12,.1f} {s.unit}/s, busy {s.busy_s:.1f} s"
            if s.share is not None and s.least_s:
                line += f"; the hardware's limit is {s.n / s.least_s:,.0f}, reached {s.share:.0%}"
            lines.append(line)
        if not lines:  # files that failed, and nothing else
            return ""
        if self.n_answers and wall_s > 0:
            lines.append(f"  {'answers':<9}{self.n_answers / wall_s:>12,.2f} a second {of}")
        if self.matrix_per_s and self.copy_bytes_per_s:
            products, copies = f"{self.matrix_per_s / 1e12:.3g}", f"{self.copy_bytes_per_s / 1e9:.3g}"
            lines.append(f"  measured on this machine: {products} TFLOP/s in products, {copies} GB/s in copies")
        return "rates:\n" + "\n".join(lines)


def _rounded(value: float | None) -> float | None:
    """Four digits are more than such a measurement is good for."""
    return None if value is None else float(f"{value:.4g}")
