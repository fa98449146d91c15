"""Check model files, and convert errors of onnxruntime, which has no common exception class.

Scope: onnxruntime itself is not imported here.
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
    """Check that a file of a model exists and has the expected digest.

    Args:
        path: path of the file.
        sha256: expected digest in hex; None only checks existence.

    Raises:
        BundleError: the file is missing or altered.
    """
    if not path.is_file():
        raise BundleError(f"{path}: missing", hint=VERIFY_HINT)
    if sha256 and (found := sha256_of_file(path)) != sha256:
        raise BundleError(f"{path}: altered (sha256 is {found[:12]}, must be {sha256[:12]})", hint=VERIFY_HINT)


@contextlib.contextmanager
def as_memory_error() -> Iterator[None]:
    """Convert any out-of-memory error inside the block to MemoryError; other errors pass unchanged."""
    try:
        yield
    except Exception as e:  # exceptions of onnxruntime have no common base class
        if is_out_of_memory(e):
            raise MemoryError(first_line(e)) from e
        raise


def first_line(e: Exception) -> str:
    """Return the first line of an error message, at most 300 characters."""
    return (str(e).strip() or type(e).__name__).splitlines()[0][:300]
