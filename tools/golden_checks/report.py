"""The result of a comparison: number of values, largest error, equal tokens, and what was skipped."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Report:
    """The result of one fixture; a failed comparison adds a line to `misses`, and the others still run."""

    name: str
    atol: float = 1e-4
    rtol: float = 1e-4
    n_arrays: int = 0
    n_values: int = 0
    max_error: float = 0.0
    worst: str = ""
    n_tokens: int = 0
    n_tokens_equal: int = 0
    n_exact: int = 0  # comparisons without a tolerance, except tokens
    misses: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def close(self, what: str, got: Any, expected: Any, atol: float | None = None, rtol: float | None = None) -> None:
        """Compare numbers: |got - expected| <= atol + rtol * |expected| everywhere."""
        ours, theirs = (torch.as_tensor(v).detach().double() for v in (got, expected))
        self.n_arrays += 1
        if ours.shape != theirs.shape:
            self.misses.append(f"{what}: shape {list(ours.shape)}, the reference has {list(theirs.shape)}")
            return
        self.n_values += theirs.numel()
        error = (ours - theirs).abs()
        largest = float(error.max()) if error.numel() else 0.0
        if math.isnan(largest) or largest > self.max_error:
            self.max_error, self.worst = largest, what
        allowed = (self.atol if atol is None else atol) + (self.rtol if rtol is None else rtol) * theirs.abs()
        if not bool((error <= allowed).all()):
            self.misses.append(f"{what}: off by up to {largest:.2e}")

    def tokens(self, what: str, got: Any, expected: Any) -> None:
        """Compare lists of token ids."""
        ours, theirs = _flat(got), _flat(expected)
        self.n_tokens += len(theirs)
        equal = sum(a == b for a, b in zip(ours, theirs, strict=False))
        self.n_tokens_equal += equal
        if ours != theirs:
            self.misses.append(f"{what}: {equal} of {len(theirs)} tokens equal, got {len(ours)}")

    def exact(self, what: str, got: object, expected: object) -> None:
        """Compare values that must be equal."""
        self.n_exact += 1
        if got != expected:
            self.misses.append(f"{what}: {got!r:.80}, the reference has {expected!r:.80}")

    @property
    def ok(self) -> bool:
        """Whether something was compared and everything agreed."""
        return not self.misses and bool(self.n_arrays + self.n_tokens + self.n_exact)

    def line(self) -> str:
        """Return a one-line summary."""
        parts = []
        if self.n_arrays:
            at = f" ({self.worst})" if self.worst else ""
            parts += [f"{self.n_arrays} arrays ({self.n_values} values)", f"max error {self.max_error:.1e}{at}"]
        if self.n_exact:
            parts.append(f"{self.n_exact} exact comparisons")
        parts.append(f"tokens {self.n_tokens_equal}/{self.n_tokens} equal" if self.n_tokens else "no tokens")
        return f"{'ok  ' if self.ok else 'MISS'}  {self.name:<20} {'; '.join(parts)}"


def _flat(ids: Any) -> list[int]:
    if isinstance(ids, Tensor):
        ids = ids.tolist()
    out: list[int] = []
    for one in ids:
        out += _flat(one) if isinstance(one, (list, tuple, Tensor)) else [int(one)]
    return out
