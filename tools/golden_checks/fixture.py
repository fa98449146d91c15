"""A fixture on disk -> its description and tensors; tracks which outputs have been compared."""

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
    """A fixture: `NAME.json` and `NAME.safetensors` of a folder."""

    name: str
    folder: Path
    meta: dict[str, Any]
    tensors: dict[str, Tensor]
    _seen: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, folder: Path, name: str) -> Fixture:
        """Read both files; a fixture without tensors has no second file."""
        meta = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        file = folder / f"{name}.safetensors"
        return cls(name, folder, meta, load_file(file) if file.is_file() else {})

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors with a prefix, without that prefix."""
        return {k[len(prefix) :]: v for k, v in self.tensors.items() if k.startswith(prefix)}

    def input(self, key: str) -> Tensor:
        """Return an input; float16 storage is converted to float32, as for the reference."""
        value = self.tensors[f"in/{key}"]
        return value.float() if value.is_floating_point() else value

    def outputs(self, prefix: str = "") -> list[str]:
        """Return the names of the stored outputs with a prefix."""
        return sorted(self.part(f"out/{prefix}"))

    def has(self, key: str) -> bool:
        """Return whether an output is stored."""
        return f"out/{key}" in self.tensors

    def expected(self, key: str) -> Tensor:
        """Return a stored output and mark it as compared."""
        self._seen.add(f"out/{key}")
        return self.tensors[f"out/{key}"]

    def report(self) -> Report:
        """Return an empty report with the fixture's tolerance."""
        tolerance = self.meta.get("tolerance")
        numbers = tolerance if isinstance(tolerance, dict) else {}
        values = {k: float(numbers[k]) for k in ("atol", "rtol") if isinstance(numbers.get(k), int | float)}
        return Report(self.name, **values)

    def close(self, report: Report) -> Report:
        """Report outputs that were not compared, and whether the tensors match the digest in the description."""
        if left := sorted(k for k in self.tensors if k.startswith("out/") and k not in self._seen):
            report.notes.append(f"{len(left)} stored outputs not compared: {', '.join(left[:8])}" + _more(left, 8))
        digest = self.meta.get("sha256_safetensors")
        file = self.folder / f"{self.name}.safetensors"
        if digest and file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            report.misses.append(f"{file.name}: not the file that {self.name}.json describes (sha256 differs)")
        return report


def _more(items: list[str], shown: int) -> str:
    return f", ... {len(items) - shown} more" if len(items) > shown else ""
