"""Free memory of this machine -> what of a 7B model fits into it.

Arithmetic on the sizes of the published 7B models (LLaMA-7B, two ViT-L/14 towers). Does not know which model is used,
and promises nothing: what is free changes.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

#: LLaMA-7B: values of its linear layers, and of embeddings, head and norms, which are never quantised.
_LINEAR, _OTHER = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 2 * 32000 * 4096 + 65 * 4096
#: Image tower 303 M and video tower 404 M values in float32 (Video-LLaVA; both are loaded at once at most).
_TOWERS = 4 * (303_180_000 + 404_190_000)
#: Keys and values of one prompt with a clip (2056 visual tokens and some text) in 16 bits: 32 layers, 4096 wide.
_PROMPT = 2 * 2 * 32 * 4096 * 2300
_BYTES = {"float32": 4.0, "float16": 2.0, "8bit": 1.0, "4bit": 0.52}


def need_bytes(precision: str) -> int:
    """Memory of a 7B model at work: weights, both towers, one prompt with a clip.

    Args:
        precision: `float32`, `float16`, `8bit` or `4bit`. 4-bit weights carry 0.02 bytes of scales each (nf4, doubly
            quantised: a scale of 8 bits for 64 values and a little more).
    """
    other = 4 if precision == "float32" else 2
    prompt = _PROMPT * (2 if precision == "float32" else 1)
    return round(_LINEAR * _BYTES[precision]) + _OTHER * other + _TOWERS + prompt


def describe_room(free_bytes: int) -> tuple[bool, str]:
    """Whether anything of a 7B model fits, and a sentence."""
    words = [f"{name} {need_bytes(name) / 1e9:.1f} GB" for name in _BYTES]
    fits = [name for name in _BYTES if need_bytes(name) <= free_bytes]
    says = f"{free_bytes / 1e9:.1f} GB free; fits: {', '.join(fits) or 'nothing'} (needs: {', '.join(words)})"
    return bool(fits), says


def free_memory() -> dict[str, int]:
    """Free bytes of the CPU's memory and of every CUDA device; places that do not tell are left out."""
    free = {}
    if (cpu := _cpu_free()) is not None:
        free["cpu"] = cpu
    try:
        cuda = import_module("torch").cuda
        if cuda.is_available():
            free |= {f"cuda:{i}": int(cuda.mem_get_info(i)[0]) for i in range(cuda.device_count())}
    except Exception:  # a broken torch or driver is the finding of other checks
        pass
    return free


def _cpu_free() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pass
    try:  # the whole of it, where nobody says how much is free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
