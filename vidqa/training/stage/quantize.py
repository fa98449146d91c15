"""QLoRA: loads the LLM with 4-bit or 8-bit weights, with bitsandbytes.

The resulting bundle is not quantized: the adapter is applied to the LLM as it was saved.
"""

from __future__ import annotations

import torch

from vidqa.errors import UsageError
from vidqa.model.bundle.bundle import ADAPTER_FOLDER, Bundle
from vidqa.model.llm import Quantization, load_llm
from vidqa.model.video_llava import VideoLlava


def quantize_llm(model: VideoLlava, base: Bundle, bits: str, device: str, dtype: torch.dtype) -> None:
    """Replace the LLM of a model by its quantized version.

    Args:
        model: a model on the CPU; modified in place and moved to `device`.
        base: the bundle that contains the LLM.
        bits: `4bit` or `8bit`.
        device: a GPU. `requirements.py` rejects a CPU, which works in tests if layer sizes are multiples of 64.
        dtype: dtype of the computation.

    Raises:
        UsageError: the base has an adapter that is not merged.
    """
    if (base.llm_folder / ADAPTER_FOLDER).is_dir():
        raise UsageError(f"{base.folder} has an adapter; merge it before QLoRA", hint="output.merge_lora = true")
    import peft

    kind: Quantization = "4bit" if bits == "4bit" else "8bit"
    llm, _ = load_llm(base.llm_folder, dtype, quantize=kind, device_map=torch.device(device))
    model.llm = peft.prepare_model_for_kbit_training(llm, use_gradient_checkpointing=False)
    model.connector.to(device)
