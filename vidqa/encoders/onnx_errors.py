"""Faults of graphs and runtimes -> errors with a name.

Knows the texts that onnxruntime fails with (it has no common exception class) and digests. Does not import it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from vidqa.common.atomic_io import sha256_of_file
from vidqa.common.devices import is_out_of_memory
from vidqa.errors import BundleError

VERIFY_HINT = "vidqa models verify, then install the model again"


def verify_file(path: Path, sha256: str | None) -> None:
    """See that a part of a model is there and, where its digest is known, unaltered.

    Raises:
        BundleError: missing or altered; names the file.
    """
    if not path.is_file():
        raise BundleError(f"{path}: missing", hint=VERIFY_HINT)
    if sha256 and (found := sha256_of_file(path)) != sha256:
        raise BundleError(f"{path}: altered (sha256 is {found[:12]}, must be {sha256[:12]})", hint=VERIFY_HINT)


@contextlib.contextmanager
def as_memory_error() -> Iterator[None]:
    """Give the many texts of running out of memory one class, MemoryError; let all else through."""
    try:
        yield
    except Exception as e:  # onnxruntime's exceptions share no base class of their own
        if is_out_of_memory(e):
            raise MemoryError(first_line(e)) from e
        raise


def first_line(e: Exception) -> str:
    """The first line of an error's text, at most 300 characters."""
    return (str(e).strip() or type(e).__name__).splitlines()[0][:300]
