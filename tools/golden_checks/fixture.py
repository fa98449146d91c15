"""A fixture on disk -> its description and tensors, with a memory of which outputs were looked at."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from golden_checks.report import Report


@dataclass
class Fixture:
    """`NAME.json` and `NAME.safetensors` of a folder."""

    name: str
    folder: Path
    meta: dict[str, Any]
    tensors: dict[str, Tensor]
    _seen: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, folder: Path, name: str) -> Fixture:
        """Read both files; the second may be missing where a fixture has no tensors."""
        meta = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        file = folder / f"{name}.safetensors"
        return cls(name, folder, meta, load_file(file) if file.is_file() else {})

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors below a prefix, which is taken off."""
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}

    def input(self, key: str) -> Tensor:
        """An input; what is stored as float16 is given as the float32 that the reference got."""
        value = self.tensors[f"in/{key}"]
        return value.float() if value.is_floating_point() else value

    def outputs(self, prefix: str = "") -> list[str]:
        """Names of the stored outputs below a prefix."""
        return sorted(self.part(f"out/{prefix}"))

    def has(self, key: str) -> bool:
        """Whether an output is stored."""
        return f"out/{key}" in self.tensors

    def want(self, key: str) -> Tensor:
        """A stored output, which now counts as compared."""
        self._seen.add(f"out/{key}")
        return self.tensors[f"out/{key}"]

    def report(self) -> Report:
        """An empty report with the fixture's own tolerance."""
        tolerance = self.meta.get("tolerance")
        numbers = tolerance if isinstance(tolerance, dict) else {}
        values = {k: float(numbers[k]) for k in ("atol", "rtol") if isinstance(numbers.get(k), int | float)}
        return Report(self.name, **values)

    def close(self, report: Report) -> Report:
        """Say what was not looked at, and whether the tensors are those that the description names."""
        if left := sorted(k for k in self.tensors if k.startswith("out/") and k not in self._seen):
            report.notes.append(f"{len(left)} stored outputs not compared: {', '.join(left[:8])}" + _more(left, 8))
        digest = self.meta.get("sha256_safetensors")
        file = self.folder / f"{self.name}.safetensors"
        if digest and file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            report.misses.append(f"{file.name}: not the file that {self.name}.json describes (sha256 differs)")
        return report


def _more(items: list[str], shown: int) -> str:
    return f", ... {len(items) - shown} more" if len(items) > shown else ""
