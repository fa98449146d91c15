"""The Llama that is read without transformers: logits and tokens are those of transformers; other folders are left."""

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
from vidqa.model.llama.loader import PlainTokenizer, load_plain
from vidqa.model.llama.model import GrowingCache, Llama, LlamaConfig
from vidqa.model.llama.packed_linear import packs
from vidqa.model.llama.weights import load_published, published_weights
from vidqa.model.llm import load_llm


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that tests may spoil."""
    return Path(shutil.copytree(tiny_bundle / "llm", tmp_path / "llm"))


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("kind", [None, torch.float32, torch.bfloat16])
def test_logits_are_those_of_transformers(kind: torch.dtype | None) -> None:
    """Of the bundled model, but for the rounding of sums: a prompt, a few tokens more, one token more."""
    folder = built_in_bundles()["demo"] / "llm"
    theirs, _ = load_llm(folder, kind)
    ours, _ = load_llm(folder, kind, answers_only=True)
    assert isinstance(ours, Llama) and not isinstance(theirs, Llama)
    assert ours.get_input_embeddings().weight.dtype == theirs.lm_head.weight.dtype
    ids = torch.arange(40).view(2, 20) % 600 + 3
    stores: tuple[Any, Any] = (DynamicCache(), GrowingCache())
    at = 0
    with torch.inference_mode():
        for n in (14, 5, 1):
            positions = torch.arange(at, at + n).expand(2, -1)
            new = ids[:, at : at + n]
            one, other = (
                llm(input_ids=new, position_ids=positions, past_key_values=store, use_cache=True).logits
                for llm, store in zip((theirs, ours), stores, strict=True)
            )
            assert one.shape == other.shape == (2, n, theirs.config.vocab_size)
            if kind is torch.bfloat16:  # the norms round elsewhere
                torch.testing.assert_close(one, other, rtol=0.05, atol=0.2)
            else:
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
                assert torch.equal(one.argmax(-1), other.argmax(-1))
            at += n


def random_llama(width: int = 256, tied: bool = False) -> Llama:
    """Two layers, three query heads to a key head."""
    torch.manual_seed(0)
    llm = Llama(LlamaConfig(500, width, width * 2, 2, 6, 2, 32, 1e-6, 10000.0, tied))
    for weight in llm.parameters():
        torch.nn.init.normal_(weight, std=width**-0.5)
    return llm.eval().requires_grad_(False)


def logits_of(llm: Llama, n_lines: int, n_tokens: int) -> torch.Tensor:
    ids = torch.arange(n_lines * n_tokens).view(n_lines, n_tokens) * 7 % 500
    positions = torch.arange(n_tokens).expand(n_lines, -1)
    with torch.inference_mode():
        return llm(input_ids=ids, position_ids=positions, past_key_values=GrowingCache()).logits


@pytest.mark.parametrize("tied", [False, True])
def test_packed_weights_give_the_same_logits(tied: bool) -> None:
    assert packs(), "this torch cannot pack: another signature?"
    plain, packed_ = random_llama(tied=tied), random_llama(tied=tied)
    packed_.pack()
    assert packed_.packed and packed_.model.layers[0].mlp.gate_up_proj.weight.is_mkldnn  # type: ignore[union-attr]
    # The head that is the table of embeddings is looked up in, too, and stays as it is.
    assert packed_.lm_head.weight.is_mkldnn is not tied and not packed_.get_input_embeddings().weight.is_mkldnn
    for n_lines, n_tokens in ((1, 1), (8, 1), (3, 5), (1, 300)):
        one, other = logits_of(plain, n_lines, n_tokens), logits_of(packed_, n_lines, n_tokens)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
        assert torch.equal(one.argmax(-1), other.argmax(-1))
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in packed_.parameters())
    with pytest.raises(ValueError, match="packed"):
        published_weights(packed_)


def test_weights_are_not_packed_where_that_is_not_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another device or type, weights that fit the caches, a torch whose products come out wrong."""
    half, small = random_llama().bfloat16(), random_llama(32)
    half.pack()
    small.pack()
    assert not half.packed and not any(p.is_mkldnn for p in small.parameters())
    packs.cache_clear()
    monkeypatch.setattr("vidqa.model.llama.packed_linear.packed_linear", lambda x, weight: x.new_zeros(1, 2, 8))
    one = random_llama()
    one.pack()
    packs.cache_clear()
    assert not one.packed and not any(p.is_mkldnn for p in one.parameters())


def test_weights_by_their_published_names() -> None:
    """Taken out and given to another: the same model; wrong ones change nothing."""
    one = random_llama()
    weights = published_weights(one)
    assert weights["model.layers.1.self_attn.k_proj.weight"].shape == (64, 256)
    other = Llama(one.config, device="meta")
    assert not load_published(other, weights | {"spare": torch.zeros(2)})
    assert not load_published(other, weights | {"model.norm.weight": torch.zeros(255)})
    assert other.lm_head.weight.is_meta
    assert load_published(other, weights)
    assert torch.equal(logits_of(one, 2, 5), logits_of(other.eval(), 2, 5))


def test_keys_only_stores_what_a_whole_run_stores() -> None:
    """The last layer's attention and everything behind it are left out, and nothing else."""
    torch.manual_seed(0)
    sizes = LlamaConfig(50, 32, 48, 3, 4, 2, 8, 1e-6, 10000.0, False)
    llm = Llama(sizes)
    for weight in llm.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    embeds, positions = torch.randn(2, 9, 32), torch.arange(9).expand(2, -1)
    whole, keys = GrowingCache(), GrowingCache()
    with torch.inference_mode():
        logits = llm(inputs_embeds=embeds, position_ids=positions, past_key_values=whole, logits_to_keep=1).logits
        nothing = llm(inputs_embeds=embeds, position_ids=positions, past_key_values=keys, keys_only=True).logits
    assert logits.shape == (2, 1, 50) and nothing.shape == (2, 0, 50)
    assert len(whole.layers) == len(keys.layers) == 3
    for one, other in zip(whole.layers, keys.layers, strict=True):
        assert torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)


@pytest.mark.parametrize("which", ["demo", "tiny"])
def test_the_tokenizer_is_that_of_transformers(which: str, tiny_bundle: Path) -> None:
    bundle = built_in_bundles()["demo"] if which == "demo" else tiny_bundle
    _, theirs = load_llm(bundle / "llm", torch.float32)
    ours = PlainTokenizer.read(bundle / "llm")
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
    before = load_plain(folder, torch.float32)
    _sharded(folder)
    after = load_plain(folder, torch.float32)
    assert before is not None and after is not None
    for (key, one), (other_key, other) in zip(before.state_dict().items(), after.state_dict().items(), strict=True):
        assert key == other_key and torch.equal(one, other)


def _drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _one_weight_more(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"spare": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})


NOT_PLAIN: dict[str, Callable[[Path], object]] = {
    "another model": lambda f: edit(f / "config.json", model_type="mistral"),
    "scaled positions": lambda f: edit(
        f / "config.json", rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    ),
    "scaled positions, as older files say it": lambda f: edit(
        f / "config.json", rope_parameters=None, rope_scaling={"type": "linear", "factor": 2.0}
    ),
    "biases": lambda f: edit(f / "config.json", attention_bias=True),
    "another activation": lambda f: edit(f / "config.json", hidden_act="gelu"),
    "quantised": lambda f: edit(f / "config.json", quantization_config={"load_in_8bit": True}),
    "other sizes": lambda f: edit(f / "config.json", num_hidden_layers=2),
    "no config": lambda f: (f / "config.json").unlink(),
    "a weight is missing": _drop_a_weight,
    "a weight too many": _one_weight_more,
    "weights cut off": lambda f: (f / "model.safetensors").write_bytes(b"12"),
    "an adapter": lambda f: (f / "adapter").mkdir(),
}
OTHER_TOKENIZERS: dict[str, Callable[[Path], object]] = {
    "a chat template": lambda f: edit(f / "tokenizer_config.json", chat_template="{{ messages }}"),
    "a chat template of its own file": lambda f: (f / "chat_template.jinja").write_text("x"),
    "a tokenizer of another class": lambda f: edit(f / "tokenizer_config.json", tokenizer_class="LlamaTokenizer"),
    "a token that is not in the file": lambda f: edit(f / "tokenizer_config.json", eos_token="<end>"),
    "an unknown setting": lambda f: edit(f / "tokenizer_config.json", add_prefix_space=True),
    "spaces cleaned up": lambda f: edit(f / "tokenizer_config.json", clean_up_tokenization_spaces=True),
}


@pytest.mark.parametrize("what", sorted(NOT_PLAIN))
def test_everything_else_is_left_to_transformers(what: str, folder: Path) -> None:
    assert load_plain(folder, torch.float32) is not None
    NOT_PLAIN[what](folder)
    assert load_plain(folder, torch.float32) is None


@pytest.mark.parametrize("what", sorted(OTHER_TOKENIZERS))
def test_other_tokenizers_are_left_to_transformers(what: str, folder: Path) -> None:
    assert PlainTokenizer.read(folder) is not None
    OTHER_TOKENIZERS[what](folder)
    assert PlainTokenizer.read(folder) is None


def test_a_plain_llama_with_another_tokenizer(folder: Path) -> None:
    """Published models: the Llama is ours all the same."""
    edit(folder / "tokenizer_config.json", extra_special_tokens=["<s>"])
    llm, tokenizer = load_llm(folder, torch.float32, answers_only=True)
    assert isinstance(llm, Llama) and not isinstance(tokenizer, PlainTokenizer)


def test_training_gets_transformers_model(folder: Path) -> None:
    llm, tokenizer = load_llm(folder, None)
    assert hasattr(llm, "save_pretrained") and hasattr(tokenizer, "save_pretrained")
