"""The Llama loaded without transformers equals that of transformers; other folders are left to transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache

from vidqa.model.bundle.registry import built_in_bundles
from vidqa.model.llama.loader import FastTokenizer, load_llama
from vidqa.model.llama.model import DynamicKVCache, Llama, LlamaConfig
from vidqa.model.llama.packed_linear import supports_packing
from vidqa.model.llama.weights import load_published, published_weights
from vidqa.model.llm import load_llm


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that tests may damage."""
    return Path(shutil.copytree(tiny_bundle / "llm", tmp_path / "llm"))


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_logits_equal_those_of_transformers(dtype: torch.dtype | None) -> None:
    """The bundled model, apart from rounding: a prompt, a few more tokens, one more token."""
    folder = built_in_bundles()["demo"] / "llm"
    theirs, _ = load_llm(folder, dtype)
    ours, _ = load_llm(folder, dtype, inference_only=True)
    assert isinstance(ours, Llama) and not isinstance(theirs, Llama)
    assert ours.get_input_embeddings().weight.dtype == theirs.lm_head.weight.dtype
    ids = torch.arange(40).view(2, 20) % 600 + 3
    caches: tuple[Any, Any] = (DynamicCache(), DynamicKVCache())
    at = 0
    with torch.inference_mode():
        for n in (14, 5, 1):
            positions = torch.arange(at, at + n).expand(2, -1)
            new = ids[:, at : at + n]
            one, other = (
                llm(input_ids=new, position_ids=positions, past_key_values=cache, use_cache=True).logits
                for llm, cache in zip((theirs, ours), caches, strict=True)
            )
            assert one.shape == other.shape == (2, n, theirs.config.vocab_size)
            if dtype is torch.bfloat16:  # the norms round differently
                torch.testing.assert_close(one, other, rtol=0.05, atol=0.2)
            else:
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
                assert torch.equal(one.argmax(-1), other.argmax(-1))
            at += n


def random_llama(width: int = 256, tied: bool = False) -> Llama:
    """Two layers, three query heads per KV head."""
    torch.manual_seed(0)
    llm = Llama(LlamaConfig(500, width, width * 2, 2, 6, 2, 32, 1e-6, 10000.0, tied))
    for weight in llm.parameters():
        torch.nn.init.normal_(weight, std=width**-0.5)
    return llm.eval().requires_grad_(False)


def logits_of(llm: Llama, n_sequences: int, n_tokens: int) -> torch.Tensor:
    ids = torch.arange(n_sequences * n_tokens).view(n_sequences, n_tokens) * 7 % 500
    positions = torch.arange(n_tokens).expand(n_sequences, -1)
    with torch.inference_mode():
        return llm(input_ids=ids, position_ids=positions, past_key_values=DynamicKVCache()).logits


@pytest.mark.parametrize("tied", [False, True])
def test_packed_weights_yield_the_same_logits(tied: bool) -> None:
    assert supports_packing(), "this torch cannot pack: did a signature change?"
    plain, packed_ = random_llama(tied=tied), random_llama(tied=tied)
    packed_.pack()
    assert packed_.packed and packed_.model.layers[0].mlp.gate_up_proj.weight.is_mkldnn  # type: ignore[union-attr]
    # A tied head is also the embedding table, so it is not packed.
    assert packed_.lm_head.weight.is_mkldnn is not tied and not packed_.get_input_embeddings().weight.is_mkldnn
    for n_sequences, n_tokens in ((1, 1), (8, 1), (3, 5), (1, 300)):
        one, other = logits_of(plain, n_sequences, n_tokens), logits_of(packed_, n_sequences, n_tokens)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
        assert torch.equal(one.argmax(-1), other.argmax(-1))
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in packed_.parameters())
    with pytest.raises(ValueError, match="packed"):
        published_weights(packed_)


def test_weights_that_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another dtype, weights that fit into caches, a torch whose packed matmuls are wrong."""
    half, small = random_llama().bfloat16(), random_llama(32)
    half.pack()
    small.pack()
    assert not half.packed and not any(p.is_mkldnn for p in small.parameters())
    supports_packing.cache_clear()
    monkeypatch.setattr("vidqa.model.llama.packed_linear.packed_linear", lambda x, weight: x.new_zeros(1, 2, 8))
    one = random_llama()
    one.pack()
    supports_packing.cache_clear()
    assert not one.packed and not any(p.is_mkldnn for p in one.parameters())


def test_export_and_load_by_published_names() -> None:
    """Exported weights loaded into another Llama make the same model; wrong weights change nothing."""
    one = random_llama()
    weights = published_weights(one)
    assert weights["model.layers.1.self_attn.k_proj.weight"].shape == (64, 256)
    other = Llama(one.config, device="meta")
    assert not load_published(other, weights | {"spare": torch.zeros(2)})
    assert not load_published(other, weights | {"model.norm.weight": torch.zeros(255)})
    assert other.lm_head.weight.is_meta
    assert load_published(other, weights)
    assert torch.equal(logits_of(one, 2, 5), logits_of(other.eval(), 2, 5))


def test_kv_only_stores_what_a_full_run_stores() -> None:
    """Only the last layer's attention and everything after it are skipped."""
    torch.manual_seed(0)
    sizes = LlamaConfig(50, 32, 48, 3, 4, 2, 8, 1e-6, 10000.0, False)
    llm = Llama(sizes)
    for weight in llm.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    embeds, positions = torch.randn(2, 9, 32), torch.arange(9).expand(2, -1)
    full, kv_only = DynamicKVCache(), DynamicKVCache()
    with torch.inference_mode():
        logits = llm(inputs_embeds=embeds, position_ids=positions, past_key_values=full, logits_to_keep=1).logits
        empty = llm(inputs_embeds=embeds, position_ids=positions, past_key_values=kv_only, kv_only=True).logits
    assert logits.shape == (2, 1, 50) and empty.shape == (2, 0, 50)
    assert len(full.layers) == len(kv_only.layers) == 3
    for one, other in zip(full.layers, kv_only.layers, strict=True):
        assert torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)


@pytest.mark.parametrize("which", ["demo", "tiny"])
def test_the_tokenizer_equals_that_of_transformers(which: str, tiny_bundle: Path) -> None:
    bundle = built_in_bundles()["demo"] if which == "demo" else tiny_bundle
    _, theirs = load_llm(bundle / "llm", torch.float32)
    ours = FastTokenizer.read(bundle / "llm")
    assert ours is not None
    for name in ("bos_token_id", "eos_token_id", "all_special_tokens", "chat_template"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for word in ("<s>", "</s>", "a", "<image>", "no such token"):
        assert ours.convert_tokens_to_ids(word) == theirs.convert_tokens_to_ids(word)
    for text in ("What happens?", "Über </s> <s>a", "", " two  spaces ", "USER: <image> x ASSISTANT:"):
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special) == ids
            assert ours.decode(ids, skip_special_tokens=special) == theirs.decode(ids, skip_special_tokens=special)


def _sharded(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({k: weights[k] for k in keys}, folder / file, {"format": "pt"})
    where = {key: file for file, keys in parts.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "model.safetensors").unlink()


def test_weights_in_several_files(folder: Path) -> None:
    before = load_llama(folder, torch.float32)
    _sharded(folder)
    after = load_llama(folder, torch.float32)
    assert before is not None and after is not None
    for (key, one), (other_key, other) in zip(before.state_dict().items(), after.state_dict().items(), strict=True):
        assert key == other_key and torch.equal(one, other)


def _drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _add_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"spare": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})


OTHER_LLMS: dict[str, Callable[[Path], object]] = {
    "another model": lambda f: edit(f / "config.json", model_type="mistral"),
    "scaled positions": lambda f: edit(
        f / "config.json", rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    ),
    "scaled positions in the older notation": lambda f: edit(
        f / "config.json", rope_parameters=None, rope_scaling={"type": "linear", "factor": 2.0}
    ),
    "biases": lambda f: edit(f / "config.json", attention_bias=True),
    "another activation": lambda f: edit(f / "config.json", hidden_act="gelu"),
    "quantized": lambda f: edit(f / "config.json", quantization_config={"load_in_8bit": True}),
    "other sizes": lambda f: edit(f / "config.json", num_hidden_layers=2),
    "no config": lambda f: (f / "config.json").unlink(),
    "a weight is missing": _drop_a_weight,
    "an extra weight": _add_a_weight,
    "truncated weights": lambda f: (f / "model.safetensors").write_bytes(b"12"),
    "an adapter": lambda f: (f / "adapter").mkdir(),
}
OTHER_TOKENIZERS: dict[str, Callable[[Path], object]] = {
    "a chat template": lambda f: edit(f / "tokenizer_config.json", chat_template="{{ messages }}"),
    "a chat template in its own file": lambda f: (f / "chat_template.jinja").write_text("x"),
    "a tokenizer of another class": lambda f: edit(f / "tokenizer_config.json", tokenizer_class="LlamaTokenizer"),
    "a token that is not in the file": lambda f: edit(f / "tokenizer_config.json", eos_token="<end>"),
    "an unknown setting": lambda f: edit(f / "tokenizer_config.json", add_prefix_space=True),
    "cleaned-up spaces": lambda f: edit(f / "tokenizer_config.json", clean_up_tokenization_spaces=True),
}


@pytest.mark.parametrize("what", sorted(OTHER_LLMS))
def test_other_llms_are_left_to_transformers(what: str, folder: Path) -> None:
    assert load_llama(folder, torch.float32) is not None
    OTHER_LLMS[what](folder)
    assert load_llama(folder, torch.float32) is None


@pytest.mark.parametrize("what", sorted(OTHER_TOKENIZERS))
def test_other_tokenizers_are_left_to_transformers(what: str, folder: Path) -> None:
    assert FastTokenizer.read(folder) is not None
    OTHER_TOKENIZERS[what](folder)
    assert FastTokenizer.read(folder) is None


def test_a_standard_llama_with_another_tokenizer(folder: Path) -> None:
    """As in published models: the Llama is still ours."""
    edit(folder / "tokenizer_config.json", extra_special_tokens=["<s>"])
    llm, tokenizer = load_llm(folder, torch.float32, inference_only=True)
    assert isinstance(llm, Llama) and not isinstance(tokenizer, FastTokenizer)


def test_training_gets_the_transformers_model(folder: Path) -> None:
    llm, tokenizer = load_llm(folder, None)
    assert hasattr(llm, "save_pretrained") and hasattr(tokenizer, "save_pretrained")
