"""Conversion of towers from separate folders, through the commands that users run.

The transformers port's LLM with LanguageBind's original towers, and complete LanguageBind repositories with the text
tower that search needs.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_checks.fixture import Fixture
from golden_checks.language import greedy
from onnxruntime import InferenceSession
from published_files import GOLDEN, golden, write_hf, write_json, write_languagebind, write_llm
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, LlamaConfig, LlamaForCausalLM

import vidqa
from vidqa.cli.main import run
from vidqa.encoders.text_encoder import TextEncoder
from vidqa.generate.fallback import PromptSequence
from vidqa.model.bundle.bundle import Bundle, load_bundle
from vidqa.model.towers.clip_tokenizer import END, START
from vidqa.model.video_llava import load_model
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.records import Prompt

pytestmark = pytest.mark.parity


def graph_run(path: Path, pixels: Tensor) -> list[Tensor]:
    """Run a graph: float32 [B, T, 3, S, S] -> tokens, embedding. Features in float16 would exceed the tolerance."""
    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(v) for v in session.run(["tokens", "embedding"], {"pixel_values": pixels.numpy()})]


@torch.no_grad()
def test_the_port_with_the_original_towers(tmp_path: Path) -> None:
    """An image and a video in one prompt, compared with a composition of reference parts.

    These are recorded features of the original towers, the port's projector as two matrices, and LLaMA of transformers.
    """
    towers = [write_languagebind(tmp_path / f"tower{i}", kind) for i, kind in enumerate(("video", "image"))]
    options = [part for tower in towers for part in ("--towers", str(tower))]
    done = run(
        ["models", "convert", str(write_hf(tmp_path / "hf", "hub")), *options, "--out", str(tmp_path / "b"), "-q"]
    )
    assert done == 0
    bundle = load_bundle(tmp_path / "b")
    assert bundle.spec.compat and "LanguageBind's own towers" in bundle.spec.compat.variant
    recorded = Fixture.read(GOLDEN, "video_llava_forward")
    image, _ = graph_run(bundle.image_graph, recorded.input("image")[None, None])
    video, _ = graph_run(bundle.video_graph, recorded.input("video").transpose(0, 1)[None])
    model = load_model(bundle, "cpu")
    visual = [*model.connector(image[0, :, 1:]), *model.connector(video[0])]

    meta, weights = golden("video_llava_hf")
    text = meta["config_json_as_saved"]["text_config"]
    llm = LlamaForCausalLM(LlamaConfig(**text)).eval()
    own = {k.removeprefix("language_model."): v for k, v in weights.items() if k.startswith("language_model.")}
    llm.load_state_dict(own)
    features = torch.cat([recorded.expected(f"{kind}_tower_features").flatten(0, -2) for kind in ("image", "video")])
    w = {k.removeprefix("multi_modal_projector."): v for k, v in weights.items() if k.startswith("multi_modal")}
    inner = F.gelu(F.linear(features, w["linear_1.weight"], w["linear_1.bias"]))
    projected = F.linear(inner, w["linear_2.weight"], w["linear_2.bias"])
    n_image = visual[0].shape[0]
    parts = [([1, 9, 5], n_image), ([30], len(projected) - n_image), ([7, 11, 4, 21], 0)]
    ids = np.concatenate([[*words, *[0] * n] for words, n in parts]).astype(np.int64)
    slots = np.concatenate([[*[False] * len(words), *[True] * n] for words, n in parts])
    embeds = llm.get_input_embeddings()(torch.from_numpy(ids))
    embeds[torch.from_numpy(slots)] = projected
    expected = llm(inputs_embeds=embeds[None]).logits[0]
    generated = llm.generate(inputs_embeds=embeds[None], max_new_tokens=12, do_sample=False, eos_token_id=None)

    row = PromptSequence(Prompt(ids, slots), tuple(visual), 12)
    ours = model.llm(inputs_embeds=model.embed_prompt(row.prompt, row.visual)[None]).logits[0]
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    tokens, _ = greedy(model, [row])
    assert tokens == generated.tolist() and len(set(tokens[0])) > 1


def write_repository(folder: Path, name: str) -> Path:
    """Write a LanguageBind repository: all recorded weights (towers and projections) and a CLIP tokenizer."""
    meta, weights = golden(name)
    folder.mkdir()
    torch.save(weights, folder / "pytorch_model.bin")
    c = meta["config"]
    write_json(folder / "config.json", {"vision_config": c["vision"], "text_config": c["text"]})
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>"]
    words += [f"<unused{i}>" for i in range(c["text"]["bos_token_id"] - len(words))]
    write_json(folder / "vocab.json", {word: i for i, word in enumerate([*words, START, END])})
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    return folder


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[Path]]:
    """A bundle converted from both repositories and an LLM, and the folders of the repositories."""
    folder = tmp_path_factory.mktemp("repositories")
    towers = [write_repository(folder / name, name) for name in ("languagebind_image", "languagebind_video")]
    llm = write_llm(folder / "llm")
    torch.manual_seed(4)
    (folder / "stage1").mkdir()
    projector = {"model.mm_projector.weight": torch.randn(64, 64) / 8, "model.mm_projector.bias": torch.randn(64)}
    torch.save(projector, folder / "stage1" / "mm_projector.bin")
    write_json(folder / "stage1" / "config.json", {"mm_projector_type": "linear", "mm_hidden_size": 64})
    parts = [folder / "stage1", *towers, llm]
    assert run(["models", "convert", *map(str, parts), "--out", str(folder / "bundle"), "-q"]) == 0
    return load_bundle(folder / "bundle"), towers


@pytest.mark.parametrize("kind", ["image", "video"])
def test_embeddings_are_the_recorded_ones(kind: str, repositories: tuple[Bundle, list[Path]]) -> None:
    """The converted graphs compute the embeddings that the original classes computed from the same pixels and ids."""
    bundle, _ = repositories
    recorded = Fixture.read(GOLDEN, f"languagebind_{kind}")
    pixels = recorded.input("pixel_values")
    pixels = pixels[:, None] if kind == "image" else pixels.transpose(1, 2)
    _, seen = graph_run(getattr(bundle, f"{kind}_graph"), pixels.contiguous())
    torch.testing.assert_close(seen, recorded.expected("image_features_unnormalised"), atol=1e-4, rtol=1e-4)
    if kind == "image":  # the text tower comes from the first repository; the published ones are equal
        ids, mask = (recorded.tensors[f"in/{k}"].numpy() for k in ("input_ids", "attention_mask"))
        texts = torch.from_numpy(TextEncoder.from_bundle(bundle, "cpu").embed(ids, mask))
        torch.testing.assert_close(F.normalize(texts, dim=-1), recorded.expected("text_embeds"), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_text_embeddings_equal_transformers(repositories: tuple[Bundle, list[Path]]) -> None:
    """Texts through TextEncoder, and through tokenizer and text model of transformers from the published files."""
    bundle, towers = repositories
    assert bundle.spec.encoders.text and bundle.verify() == []
    meta, weights = golden("languagebind_image")
    theirs = CLIPTextModelWithProjection(CLIPTextConfig(**meta["config"]["text"])).eval()
    theirs.load_state_dict({k: v for k, v in weights.items() if k.startswith("text_")}, strict=False)
    tokenizer = CLIPTokenizer.from_pretrained(towers[0])
    texts = ["red", "a red dog 7", "reddish"]
    ours = TextEncoder.from_bundle(bundle, "cpu").encode(texts)
    for text, row in zip(texts, ours, strict=True):
        expected = theirs(**tokenizer(text, return_tensors="pt")).text_embeds[0]
        np.testing.assert_allclose(row, expected.numpy(), atol=1e-4, rtol=1e-4)


def test_search_in_a_converted_model(repositories: tuple[Bundle, list[Path]], make_clip, tmp_path: Path) -> None:
    """Scores are cosines, and the second search decodes nothing."""
    bundle, _ = repositories
    clips = [make_clip(tmp_path / "clips" / f"{n}.mp4", n_frames=n, size=60) for n in (9, 12)]
    options = RunOptions(cache_dir=tmp_path / "cache")
    first = vidqa.search("a red dog", [str(tmp_path / "clips")], model=str(bundle.folder), options=options)
    again = vidqa.search("a red dog", [str(tmp_path / "clips")], model=str(bundle.folder), options=options)
    assert (first.n_encoded, again.n_encoded) == (len(clips), 0)
    assert [h.score for h in first.hits] == [h.score for h in again.hits]
    assert all(-1 <= h.score <= 1 for h in first.hits) and first.hits[0].score >= first.hits[1].score
    assert json.loads((bundle.folder / "bundle.json").read_text())["encoders"]["text"]["tokenizer"]


def test_no_projector_at_all(tmp_path: Path) -> None:
    """Connector `identity`: the towers have the width of the LLM, and their tokens are used unchanged."""
    towers = [write_repository(tmp_path / name, name) for name in ("languagebind_image", "languagebind_video")]
    llm = write_llm(tmp_path / "llm")
    config = json.loads((llm / "config.json").read_text())
    write_json(llm / "config.json", config | {"mm_projector_type": "identity", "mm_hidden_size": 64})
    assert run(["models", "convert", *map(str, [llm, *towers]), "--out", str(tmp_path / "bundle"), "-q"]) == 0
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.spec.connector.type == "identity" and bundle.verify() == []
    tokens = torch.randn(2, 5, 64)
    assert torch.equal(load_model(bundle, "cpu").connector(tokens), tokens)
    clip = Path(__file__).parents[2] / "examples" / "clips" / "clip01.mp4"
    options = RunOptions(cache_dir=tmp_path / "cache", max_new_tokens=3)
    (row,) = vidqa.ask(clip, "why", model=str(bundle.folder), options=options)
    assert row.error is None and row.n_visual_tokens == 8 * 17
