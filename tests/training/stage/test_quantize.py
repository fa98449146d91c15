"""QLoRA trains adapters on a 4-bit or 8-bit LLM whose weights do not change. Requires bitsandbytes."""

from types import SimpleNamespace

import pytest
import torch

from vidqa.errors import UsageError
from vidqa.model.bundle.bundle import ADAPTER_FOLDER
from vidqa.model.connector import build_connector
from vidqa.model.lora import attach_lora
from vidqa.model.video_llava import VideoLlava
from vidqa.prompts.chat_formats import get_format
from vidqa.training.recipe.definition import Lora, Stage
from vidqa.training.stage.quantize import quantize_llm

WIDTH = 64  # 4-bit weights on a CPU require multiples of it


@pytest.fixture
def base(tmp_path, tiny_bundle):
    """The part of a bundle that is used: an LLM in a folder, with an unused tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    folder = tmp_path / "llm"
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bundle / "llm").save_pretrained(folder)
    return SimpleNamespace(llm_folder=folder, folder=tmp_path)


@pytest.mark.parametrize(("bits", "kind"), [("8bit", "Linear8bitLt"), ("4bit", "Linear4bit")])
def test_adapters_train_on_a_quantized_llm(lab, base, tmp_path, bits, kind):
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    tokenizer = lab.make_model().tokenizer
    model = VideoLlava(
        build_connector("mlp2x_gelu", 8, WIDTH), torch.nn.Identity(), tokenizer, get_format("vicuna_v1", None), 128
    )
    quantize_llm(model, base, bits, "cpu", torch.float32)
    assert type(model.llm.model.layers[0].self_attn.q_proj).__name__ == kind
    attach_lora(model.llm, 4, 8.0, 0.0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    stage = Stage(
        kind="instruct", epochs=12, batch_size=4, per_device_batch_size=4, learning_rate=1e-2, lora=Lora(r=4, alpha=8.0)
    )
    trained = lab.train(model, tmp_path / "run", stage)
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if ".lora_" in name or name.startswith("connector.")}
    assert set(trained.result.weights) == changed
    losses = [line["loss"] for line in trained.lines]
    assert losses[-1] < 0.8 * losses[0]


def test_a_base_with_an_adapter_is_rejected(lab, base):
    (base.llm_folder / ADAPTER_FOLDER).mkdir()
    with pytest.raises(UsageError, match="has an adapter; merge it before QLoRA"):
        quantize_llm(lab.make_model(), base, "4bit", "cpu", torch.float32)
