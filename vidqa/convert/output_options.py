"""Where a converted model goes, and in which form. Knows nothing of the weights that it is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from vidqa.errors import UsageError
from vidqa.model.bundle.bundle import check_output_folder

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "keep": None}
ENCODERS = ("float32", "float16")


@dataclass(frozen=True)
class OutputOptions:
    """A model to be written.

    Args:
        folder: of the bundle.
        name: of the model; None takes the name of `folder`.
        dtype: of LLM and connector: a key of `DTYPES`; "keep" is that of the checkpoint.
        replace_old: put it in the place of an older bundle.
        encoders: type of the image and video encoder, of `ENCODERS`: float16 is for GPUs. Its features are others,
            and so are the encoders' id and what the cache keeps.

    Raises:
        UsageError: unknown `dtype` or `encoders`.
    """

    folder: Path
    name: str | None = None
    dtype: str = "keep"
    replace_old: bool = False
    encoders: str = "float32"

    def __post_init__(self) -> None:
        if self.encoders not in ENCODERS:
            raise UsageError(f"encoders cannot be {self.encoders!r}; one of {', '.join(ENCODERS)}")
        if self.dtype not in DTYPES:
            raise UsageError(f"unknown type {self.dtype!r}; one of {', '.join(DTYPES)}")

    @property
    def title(self) -> str:
        """Name of the model."""
        return self.name or self.folder.name

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """`dtype` in torch's words; None keeps what the checkpoint has."""
        return DTYPES[self.dtype]

    def check(self, parts: Iterable[Path]) -> None:
        """Whether a bundle may be written there: the weights that it is made of must outlive it.

        Raises:
            UsageError: as `check_output_folder`, or one of `parts` lies in the folder that would be replaced.
        """
        check_output_folder(self.folder, self.replace_old)
        for part in parts:
            if self.folder.exists() and (self.folder.resolve() in (part.resolve(), *part.resolve().parents)):
                raise UsageError(f"{part} lies in {self.folder}, which would be replaced", hint="another --out")
