"""Work and busy time of each stage -> rates, and how close they come to the limits of the hardware.

The stages count while they run in parallel, so these figures do not show the bottleneck of a run. That is the stage the
run waited for (`StageClock.bottleneck`); in a benchmark it is the stage that takes longest per file.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vidqa.common.display import human_duration


@dataclass
class StageTiming:
    """Work of one stage, and the seconds that it was busy."""

    unit: str
    n: float = 0.0
    busy_s: float = 0.0
    ideal_s: float | None = None  # at the full speed of the hardware; None if that was not measured

    def add(self, n: float, busy_s: float) -> None:
        """Add work.

        Args:
            n: units.
            busy_s: seconds they took.
        """
        self.n += n
        self.busy_s += busy_s

    @property
    def rate(self) -> float | None:
        """Units per busy second."""
        return self.n / self.busy_s if self.busy_s > 0 and self.n else None

    @property
    def hardware_share(self) -> float | None:
        """Fraction of the hardware's limit that was reached; above 1 only by measurement error."""
        return self.ideal_s / self.busy_s if self.ideal_s and self.busy_s > 0 else None


@dataclass
class ThroughputMeter:
    """The stages of a run or benchmark.

    `decode` counts sampled frames over all decoder processes. `prefill` counts prompt tokens; a prefix that several
    questions share counts once. Answers are counted over the whole run.
    """

    decode: StageTiming = field(default_factory=lambda: StageTiming("frames"))
    encode: StageTiming = field(default_factory=lambda: StageTiming("segments"))
    prefill: StageTiming = field(default_factory=lambda: StageTiming("tokens"))
    step: StageTiming = field(default_factory=lambda: StageTiming("tokens"))
    n_answers: int = 0
    encode_operations: float = 0.0
    prefill_operations: float = 0.0
    step_bytes: float = 0.0
    matmul_flop_per_s: float | None = None  # measured on the LLM's device
    copy_bytes_per_s: float | None = None

    def set_hardware_speed(self, matmul_flop_per_s: float, copy_bytes_per_s: float) -> None:
        """Set the measured speed of the hardware.

        Args:
            matmul_flop_per_s: floating-point operations per second in matrix multiplications.
            copy_bytes_per_s: bytes per second in copies.
        """
        self.matmul_flop_per_s, self.copy_bytes_per_s = matmul_flop_per_s, copy_bytes_per_s
        self.encode.ideal_s = self.encode_operations / matmul_flop_per_s
        self.prefill.ideal_s = self.prefill_operations / matmul_flop_per_s
        self.step.ideal_s = self.step_bytes / copy_bytes_per_s

    @property
    def roofline_s(self) -> float | None:
        """Seconds that encoder and LLM would take at the full speed of the hardware; None if not measured."""
        if self.matmul_flop_per_s is None:
            return None
        return sum(s.ideal_s or 0.0 for s in self.stages.values())

    @property
    def stages(self) -> dict[str, StageTiming]:
        """By name, in order of processing."""
        return {"decode": self.decode, "encode": self.encode, "prefill": self.prefill, "generate": self.step}

    def as_dict(self, wall_s: float) -> dict[str, object]:
        """Return plain values for `--json`.

        Args:
            wall_s: seconds in which the answers were computed.
        """
        stages = {
            name: {
                "unit": s.unit,
                "n": round(s.n),
                "busy_s": round(s.busy_s, 3),
                "per_s": _rounded(s.rate),
                "limit_per_s": _rounded(s.n / s.ideal_s if s.ideal_s else None),
                "share_of_limit": _rounded(s.hardware_share),
            }
            for name, s in self.stages.items()
        }
        return {
            "stages": stages,
            "answers_per_s": _rounded(self.n_answers / wall_s if wall_s > 0 else None),
            "matrix_tflops": _rounded(None if self.matmul_flop_per_s is None else self.matmul_flop_per_s / 1e12),
            "roofline_s": _rounded(self.roofline_s),
            "copy_gb_per_s": _rounded(None if self.copy_bytes_per_s is None else self.copy_bytes_per_s / 1e9),
        }

    def as_text(self, wall_s: float, qualifier: str = "overall", *, hardware: bool = False) -> str:
        """Return one line for each stage that did something; empty if none did.

        Args:
            wall_s: seconds in which the answers were computed.
            qualifier: what that time is.
            hardware: compare each stage with the limit of the hardware.
        """
        lines = []
        for name, s in self.stages.items():
            if s.rate is None:
                continue
            line = f"  {name:<9}{s.rate:>12,.1f} {s.unit}/s, busy for {human_duration(s.busy_s)}"
            if hardware and s.hardware_share is not None and s.ideal_s:
                line += f"; {s.hardware_share:.0%} of the hardware's limit of {s.n / s.ideal_s:,.0f}"
            lines.append(line)
        if not lines:  # nothing but failed files
            return ""
        if self.n_answers and wall_s > 0:
            lines.append(f"  {'answers':<9}{self.n_answers / wall_s:>12,.2f} answers/s {qualifier}")
        if hardware and self.matmul_flop_per_s and self.copy_bytes_per_s:
            matmul, copies = f"{self.matmul_flop_per_s / 1e12:.3g}", f"{self.copy_bytes_per_s / 1e9:.3g}"
            lines.append(f"  hardware: {matmul} TFLOP/s in matrix multiplications, {copies} GB/s in copies")
        return "throughput:\n" + "\n".join(lines)


def _rounded(value: float | None) -> float | None:
    """Round to four digits, which is more than the precision of the measurement."""
    return None if value is None else float(f"{value:.4g}")
