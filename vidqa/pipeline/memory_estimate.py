"""Memory that a 7B model needs at each precision, by arithmetic on the sizes of the published models.

The figures are estimates for LLaMA-7B with two ViT-L/14 towers; which model the user runs is not considered.
"""

from __future__ import annotations

#: LLaMA-7B: parameters of its linear layers, and of embeddings, head and norms, which are never quantized.
_LINEAR, _OTHER = 32 * (4 * 4096**2 + 3 * 4096 * 11008), 2 * 32000 * 4096 + 65 * 4096
#: Image tower (303 M parameters) and video tower (404 M) in float32, as in Video-LLaVA; at most both are loaded.
_TOWERS = 4 * (303_180_000 + 404_190_000)
#: KV cache of one prompt with a video (2056 visual tokens and some text) in 16 bits: 32 layers, width 4096.
_PROMPT = 2 * 2 * 32 * 4096 * 2300
_BYTES = {"float32": 4.0, "float16": 2.0, "8bit": 1.0, "4bit": 0.52}


def required_bytes(precision: str) -> int:
    """Return the memory that a 7B model needs to answer: weights, both towers, one prompt with a video.

    Args:
        precision: `float32`, `float16`, `8bit` or `4bit`. 4-bit weights need 0.02 bytes more each for their scales
            (nf4 with double quantization: one 8-bit scale per 64 weights and a little more).
    """
    other = 4 if precision == "float32" else 2
    prompt = _PROMPT * (2 if precision == "float32" else 1)
    return round(_LINEAR * _BYTES[precision]) + _OTHER * other + _TOWERS + prompt


def describe_fit(free_bytes: int) -> tuple[bool, str]:
    """Return whether a 7B model fits at any precision, and a sentence for people."""
    needs = [f"{name} {required_bytes(name) / 1e9:.1f} GB" for name in _BYTES]
    fits = [name for name in _BYTES if required_bytes(name) <= free_bytes]
    text = f"{free_bytes / 1e9:.1f} GB free; fits: {', '.join(fits) or 'nothing'} (needs: {', '.join(needs)})"
    return bool(fits), text
