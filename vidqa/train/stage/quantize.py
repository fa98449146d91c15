"""An LLM in 4 or 8 bits for QLoRA: bitsandbytes does the work.

The result of a run does not see it: adapters are put on the LLM as it was saved.
"""

from __future__ import annotations

import torch

from vidqa.errors import UsageError
from vidqa.model.bundle.bundle import Bundle
from vidqa.model.llm import Quantization, load_llm
from vidqa.model.lora import ADAPTER_FOLDER
from vidqa.model.video_llava import VideoLlava


def quantise(model: VideoLlava, base: Bundle, bits: str, device: str, dtype: torch.dtype) -> None:
    """Put the quantised LLM in the place of the plain one.

    Args:
        model: on the CPU; changed in place, and on `device` afterwards.
        base: whose LLM.
        bits: `4bit` or `8bit`.
        device: a GPU. A CPU works for the tests, with widths that are multiples of 64; `needs` refuses it to people.
        dtype: to compute in.

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
