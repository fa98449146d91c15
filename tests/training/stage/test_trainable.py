"""Every kind of stage changes its trainable parameters, and all other weights stay bit-identical."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vidqa.errors import UsageError
from vidqa.model.bundle.spec import CompressorSpec
from vidqa.model.lora import attach_lora, merge_lora
from vidqa.training.recipe import load
from vidqa.training.recipe.definition import Lora, Stage
from vidqa.training.recipe.load import read_recipe

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[3] / "examples" / "recipes"
BASE = {"batch_size": 4, "per_device_batch_size": 4, "steps": 4, "learning_rate": 1e-2, "warmup_ratio": 0.0}


def changed_weights(lab, model, tmp_path, stage, **kwargs):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    lab.train(model, tmp_path, stage, **kwargs)
    after = model.state_dict()
    assert after.keys() == before.keys()
    return {k for k in after if not torch.equal(after[k], before[k])}, before, after


def keys(model, *starts):
    return {k for k in model.state_dict() if k.startswith(starts)}


@pytest.mark.parametrize(
    ("words", "starts"),
    [
        ({"kind": "connector"}, ["connector."]),
        ({"kind": "instruct"}, ["connector.", "llm."]),
        ({"kind": "instruct", "freeze": ("lm_head",)}, ["connector.", "llm.model."]),
        ({"kind": "connector", "train": ("connector", "embeddings")}, ["connector.", "llm.model.embed_tokens"]),
        ({"kind": "instruct", "train": ("llm",), "freeze": ("embeddings",)},
         ["llm.model.layers", "llm.model.norm", "llm.lm_head"]),
    ],
)  # fmt: skip
def test_a_stage_changes_its_weights_and_no_others(lab, tiny_model, tmp_path, words, starts):
    changed, _, _ = changed_weights(lab, tiny_model, tmp_path, Stage(**words, **BASE))
    assert changed == keys(tiny_model, *starts)


def test_a_language_stage_trains_on_text_only(lab, tiny_model, tmp_path):
    text = [lab.make_sample(n, None, answer) for n, answer in enumerate(("a", "b c", "d"))]
    changed, _, _ = changed_weights(lab, tiny_model, tmp_path, Stage(kind="language", **BASE), samples=text)
    assert changed == keys(tiny_model, "llm.")


def test_only_the_embeddings_of_the_named_tokens_are_trained(lab, tiny_model, tmp_path):
    words = {"train": ("connector", "embeddings"), "embedding_tokens": ("What", "clip"), "weight_decay": 0.1}
    samples = [lab.make_sample(0, "1.mp4", question="What is the clip ?"), lab.make_sample(1, "2.png")]
    changed, before, after = changed_weights(
        lab, tiny_model, tmp_path, Stage(kind="instruct", **words, **BASE), samples=samples
    )
    assert changed == keys(tiny_model, "connector.", "llm.model.embed_tokens")
    name = "llm.model.embed_tokens.weight"
    rows = (after[name] != before[name]).any(dim=1).nonzero().flatten().tolist()
    vocabulary = tiny_model.tokenizer.get_vocab()
    assert rows == sorted([vocabulary["What"], vocabulary["clip"]])


def test_lora_changes_adapters_and_connector(lab, tiny_model, tmp_path):
    attach_lora(tiny_model.llm, 2, 4.0, 0.0)
    stage = Stage(kind="instruct", lora=Lora(r=2, alpha=4.0), **BASE)
    changed, _, _ = changed_weights(lab, tiny_model, tmp_path, stage)
    assert changed == keys(tiny_model, "connector.") | {k for k in tiny_model.state_dict() if ".lora_" in k}
    assert any("down_proj.lora_B" in k for k in changed) and not any("lm_head" in k for k in changed)


def test_an_error_names_a_part_that_the_model_lacks(lab, tiny_model, tmp_path):
    with pytest.raises(UsageError, match="no weights for temporal"):
        lab.train(tiny_model, tmp_path, Stage(kind="instruct", train=("connector", "temporal"), **BASE))
    with pytest.raises(UsageError, match="no token '<nowhere>'"):
        lab.train(
            tiny_model,
            tmp_path,
            Stage(kind="instruct", train=("embeddings",), embedding_tokens=("<nowhere>",), **BASE),
        )


def test_tied_weights_cannot_be_trained_separately(lab, tiny_model, tmp_path):
    tiny_model.llm.lm_head.weight = tiny_model.llm.model.embed_tokens.weight
    with pytest.raises(UsageError, match="shares its weights"):
        lab.train(tiny_model, tmp_path, Stage(kind="instruct", freeze=("lm_head",), **BASE))


def test_the_connector_may_have_its_own_learning_rate(lab, tiny_model, tmp_path):
    before = {k: v.clone() for k, v in tiny_model.state_dict().items()}
    lab.train(tiny_model, tmp_path, Stage(kind="instruct", connector_learning_rate=1e-6, **BASE))
    after = tiny_model.state_dict()
    moved = {k: (after[k] - before[k]).abs().max().item() for k in after}
    assert max(v for k, v in moved.items() if k.startswith("connector.")) < 1e-5
    assert moved["llm.lm_head.weight"] > 1e-3


def released(connector, compressor=None):
    """Connector of a published model, in small."""
    sizes = {"n_frames": 4, "n_patches": 2, "n_heads": 2, "inner_size": 16}
    return {"connector": connector, "compressor": CompressorSpec(compressor, **sizes) if compressor else None}


@pytest.mark.parametrize(
    ("name", "released", "trained"),
    [
        ("video_llava_stage1", released("mlp2x_gelu"), ["connector."]),
        ("video_llava_stage2", released("mlp2x_gelu"), ["connector.", "llm."]),
        ("video_chatgpt", released("linear", "video_chatgpt"), ["connector.", "llm.model.embed_tokens"]),
        ("valley_stage1", released("linear", "valley_v3"),
         ["connector.weight", "connector.bias", "llm.model.embed_tokens"]),
        ("valley_stage2", released("linear", "valley_v3"), ["connector.", "llm.model."]),
    ],
)  # fmt: skip
def test_a_shipped_recipe_trains_the_published_parts(lab, tmp_path, monkeypatch, name, released, trained):
    monkeypatch.setattr(load, "_missing", lambda *_: [])  # their data is hundreds of gigabytes
    (stage,) = read_recipe(RECIPES / f"{name}.toml").stage
    stage = stage.model_copy(update=BASE | {"epochs": None})
    model, has_cls = lab.make_model(**released), name.startswith("valley")
    model.connector.float()
    question = "<vid_start> What <vid_end> ?"
    samples = [lab.make_sample(n, f"{n + 1}.mp4", answer, question) for n, answer in enumerate(("a", "b c"))]

    def features(path):
        return replace(lab.make_features(int(path.split(".")[0])), keep_cls=has_cls)

    changed, before, after = changed_weights(
        lab, model, tmp_path, stage, samples=[*samples, lab.make_sample(5)], features=features
    )
    table = "connector.compressor.position_matrix"  # not a parameter
    assert changed == keys(model, *trained) - {table}
    if name == "video_chatgpt":
        rows = (after[trained[1] + ".weight"] != before[trained[1] + ".weight"]).any(dim=1).nonzero().flatten().tolist()
        assert rows == [model.tokenizer.get_vocab()[token] for token in ("<vid_start>", "<vid_end>")]


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_adapters_of_a_half_precision_model_are_float32(tiny_model, half):
    """As on a GPU. In half precision small steps vanish, and the gradient scaler rejects float16 gradients."""
    llm = tiny_model.llm.to(half)
    attach_lora(llm, 2, 4.0, 0.0)
    trainable = [p for name, p in llm.named_parameters() if ".lora_" in name]
    assert trainable and {p.dtype for p in trainable} == {torch.float32}
    for p in trainable:
        p.data += 0.01
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        before = llm(input_ids=ids).logits
        merged = merge_lora(llm)
        assert {p.dtype for p in merged.parameters()} == {half}
        torch.testing.assert_close(merged(input_ids=ids).logits, before, atol=0.02, rtol=0.02)
