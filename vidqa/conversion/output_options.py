"""Folder, name and dtypes of a converted model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from vidqa.common.output_paths import check_output_parent
from vidqa.errors import UsageError
from vidqa.model.bundle.bundle import check_output_folder

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "keep": None}
ENCODERS = ("float32", "float16")


@dataclass(frozen=True)
class OutputOptions:
    """Options of the bundle to write.

    Attributes:
        folder: folder of the bundle.
        name: name of the model; None means the name of `folder`.
        dtype: dtype of LLM and connector, a key of `DTYPES`; "keep" keeps that of the checkpoint.
        replace_old: whether to replace an existing bundle.
        encoders: dtype of the image and video encoder, one of `ENCODERS`. float16 is for GPUs; its features differ
            slightly, so they have another encoder id and their own cache entries.

    Raises:
        UsageError: `dtype` or `encoders` is unknown.
    """

    folder: Path
    name: str | None = None
    dtype: str = "keep"
    replace_old: bool = False
    encoders: str = "float32"

    def __post_init__(self) -> None:
        if self.encoders not in ENCODERS:
            raise UsageError(f"unknown encoder dtype {self.encoders!r}; choose from {', '.join(ENCODERS)}")
        if self.dtype not in DTYPES:
            raise UsageError(f"unknown dtype {self.dtype!r}; choose from {', '.join(DTYPES)}")

    @property
    def title(self) -> str:
        """The name of the model."""
        return self.name or self.folder.name

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The torch dtype; None keeps that of the checkpoint."""
        return DTYPES[self.dtype]

    def check(self, parts: Iterable[Path]) -> None:
        """Check that the bundle may be written and would not replace the weights it is made from.

        Raises:
            UsageError: as `check_output_parent` and `check_output_folder`, or one of `parts` is inside the folder to be
                replaced.
        """
        check_output_parent(self.folder)
        check_output_folder(self.folder, self.replace_old)
        for part in parts:
            if self.folder.exists() and (self.folder.resolve() in (part.resolve(), *part.resolve().parents)):
                raise UsageError(
                    f"{part} is inside {self.folder}, which would be replaced", hint="choose another --out"
                )
