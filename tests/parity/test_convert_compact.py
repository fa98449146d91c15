"""Video-ChatGPT and Valley as users run them: files with the original key names, converted, loaded, and run on a clip.

Logits and greedy tokens equal those recorded from the original code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compact_files import fixture, valley_weights, write_valley, write_valley_delta, write_video_chatgpt
from golden_checks import valley, video_chatgpt
from golden_checks.language import greedy
from onnxruntime import InferenceSession
from safetensors.torch import load_file, save_file

import vidqa
from vidqa.conversion import write
from vidqa.conversion.convert import convert, plan
from vidqa.conversion.output_options import OutputOptions
from vidqa.encoders.encoder import Encoder
from vidqa.errors import BundleError
from vidqa.model.bundle.bundle import Bundle, load_bundle
from vidqa.model.video_llava import load_model
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.records import EncoderInput

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def chatgpt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[Path]]:
    folder = tmp_path_factory.mktemp("chatgpt")
    parts = write_video_chatgpt(folder / "parts", grown=False)
    return convert(parts, OutputOptions(folder / "bundle"), mode="original").bundle, parts


class TestVideoChatGPT:
    def test_the_recorded_numbers(self, chatgpt: tuple[Bundle, list[Path]]) -> None:
        bundle = load_bundle(chatgpt[0].folder)
        model = load_model(bundle, "cpu")
        report = video_chatgpt.check(fixture("video_chatgpt"), model)
        assert report.ok, report.misses
        assert report.max_error <= 1e-4 and report.n_tokens_equal == report.n_tokens >= 140

    def test_what_the_bundle_says(self, chatgpt: tuple[Bundle, list[Path]]) -> None:
        spec = chatgpt[0].spec
        assert (spec.architecture, spec.prompt.format) == ("video_chatgpt", "video-chatgpt_v1")
        assert (spec.encoders.video.sampling.rule, spec.encoders.video.sampling.n_frames) == ("segments", 100)
        assert spec.encoders.video.file == spec.encoders.image.file, "one graph serves both"
        assert spec.encoders.video.preprocess.mode == "video_chatgpt" and not spec.encoders.video.keep_cls
        assert spec.connector.compressor and spec.connector.compressor.type == "video_chatgpt"
        assert spec.compat and spec.compat.mode == "original" and any("last letters" in f for f in spec.compat.fixed)
        assert not chatgpt[0].verify()

    def test_a_clip_by_hand(
        self, chatgpt: tuple[Bundle, list[Path]], tmp_path: Path, make_clip: Callable[..., Path]
    ) -> None:
        """The whole way once more with nothing of ours behind the decoder: CLIP and LLaMA of transformers."""
        clip = make_clip(tmp_path / "clip.mp4", n_frames=12, size=40)
        bundle, parts = chatgpt
        options = RunOptions(cache_dir=tmp_path / "cache", max_new_tokens=6)
        (row,) = vidqa.ask(clip, "Why?", model=str(bundle.folder), options=options)
        wanted, n_tokens = by_hand(bundle, parts, clip, "Why?", 6)
        assert row.answer == wanted
        assert row.n_visual_tokens == 100 + 16
        assert row.n_prompt_tokens == n_tokens
        assert row.frame_times_s is not None and len(row.frame_times_s) == 12

    def test_three_words_more(self, tmp_path: Path) -> None:
        """The LLM as published is three words shorter; its new output rows are the mean of the others."""
        planned = plan(write_video_chatgpt(tmp_path, grown=True))
        fx = fixture("video_chatgpt")
        weights, n = fx.part("weights/"), fx.meta["config"]["vid_patch_token"]
        head = planned.llm.tensors["lm_head.weight"].read()
        torch.testing.assert_close(head[:n], weights["lm_head.weight"][:n])
        torch.testing.assert_close(head[n:], weights["lm_head.weight"][:n].mean(0).expand(3, -1))
        assert planned.prompt.format == "vicuna_v1_1", "the prompt of tuning, unless the original is asked for"
        assert planned.compat.mode == "fixed" and planned.ignored

    def test_without_its_tower(self, tmp_path: Path) -> None:
        small, llm, _ = write_video_chatgpt(tmp_path, grown=True)
        with pytest.raises(BundleError, match="vision tower of Video-ChatGPT is missing") as e:
            plan([small, llm])
        assert "CLIP ViT-L/14" in (e.value.hint or "")

    def test_languagebind_is_not_clip(self, tmp_path: Path) -> None:
        parts = write_video_chatgpt(tmp_path, grown=True)
        assert plan(parts).notes == ()
        config = json.loads((parts[2] / "config.json").read_text())
        (parts[2] / "config.json").write_text(json.dumps(config | {"model_type": "LanguageBindImage"}))
        with pytest.raises(
            BundleError, match=r"clip: LanguageBind's tower according to its config.json, not OpenAI's CLIP"
        ):
            plan(parts)
        del config["model_type"]
        (parts[2] / "config.json").write_text(json.dumps(config))
        (note,) = plan(parts).notes
        assert "is assumed to be OpenAI's CLIP: it has no config.json" in note

    def test_an_llm_of_another_vocabulary(self, tmp_path: Path) -> None:
        parts = write_video_chatgpt(tmp_path, grown=True)
        file = parts[0] / "video_chatgpt-7B.bin"
        weights = torch.load(file, weights_only=True)
        weights["model.embed_tokens.weight"] = torch.zeros(240, 64)
        torch.save(weights, file)
        with pytest.raises(
            BundleError, match="vocabulary has 203 tokens, but the embedding of the projector file has 240"
        ):
            plan(parts)

    def test_a_tokenizer_with_other_ids(self, tmp_path: Path) -> None:
        from compact_files import write_tokenizer

        parts = write_video_chatgpt(tmp_path, grown=True)
        write_tokenizer(parts[1], 190)
        with pytest.raises(BundleError, match="<vid_patch>: id 190, the weights expect 203"):
            plan(parts)


def ask(bundle: Bundle, clip: Path, question: str, n: int) -> list[Any]:
    """Decode, encode, answer: what a run does."""
    from vidqa.generate.engine import GenerationSettings, Request, generate

    frames = frames_of(bundle, clip)
    features = Encoder.from_bundle(bundle, "cpu").encode([frames])
    settings = GenerationSettings(max_new_tokens=n)
    return list(generate(load_model(bundle, "cpu"), [Request(tuple(features), ((question, None),))], settings))


def decoded(bundle: Bundle, clip: Path) -> np.ndarray:
    """uint8 [T, H, W, 3]: the frames that the bundle's rule asks for, by another decoder."""
    import av

    from vidqa.media.frame_sampling import frame_indices

    with av.open(str(clip)) as container:
        every = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    return np.stack([every[i] for i in frame_indices(len(every), bundle.spec.encoders.video.sampling)[0]])


def frames_of(bundle: Bundle, clip: Path) -> EncoderInput:
    """The clip as the encoder takes it."""
    from vidqa.encoders.preprocess import preprocess
    from vidqa.records import FrameBatch

    pixels = decoded(bundle, clip)
    n, e = len(pixels), bundle.spec.encoders
    return preprocess(
        FrameBatch(pixels, np.arange(n) / 10.0, np.zeros(n, np.bool_)), e.image.preprocess, e.video.preprocess
    )


@torch.no_grad()
def by_hand(bundle: Bundle, parts: list[Path], clip: Path, question: str, n: int) -> tuple[str, int]:
    """Text of the answer and length of the prompt, from the published files and transformers alone."""
    from transformers import AutoTokenizer, CLIPModel, LlamaForCausalLM

    tower = CLIPModel.from_pretrained(parts[2]).vision_model
    size = tower.config.image_size
    pixels = torch.from_numpy(decoded(bundle, clip)).permute(0, 3, 1, 2).float()
    pixels = torch.nn.functional.interpolate(pixels, (size, size)) / 255
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1)
        for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    tokens = tower((pixels - mean) / std, output_hidden_states=True).hidden_states[-2][:, 1:]
    in_time = torch.zeros(100, tokens.shape[2])
    in_time[: len(tokens)] = tokens.mean(1)
    small = torch.load(parts[0] / "video_chatgpt-7B.bin", weights_only=True)
    pooled = torch.cat([in_time, tokens.mean(0)])
    visual = pooled @ small["model.mm_projector.weight"].T + small["model.mm_projector.bias"]
    tokenizer = AutoTokenizer.from_pretrained(bundle.llm_folder)
    from vidqa.prompts.chat_formats import FORMATS

    system = FORMATS["video-chatgpt_v1"].system
    places = "<vid_start>" + "<vid_patch>" * len(visual) + "<vid_end>"
    ids = torch.tensor(tokenizer.encode(f"{system} USER: {question}\n{places} ASSISTANT:", add_special_tokens=False))
    llm = LlamaForCausalLM.from_pretrained(bundle.llm_folder)
    embeds = llm.get_input_embeddings()(ids)
    embeds[ids == tokenizer.convert_tokens_to_ids("<vid_patch>")] = visual
    said = llm.generate(inputs_embeds=embeds[None], max_new_tokens=n, do_sample=False, pad_token_id=0)[0]
    return tokenizer.decode(said, skip_special_tokens=True).strip(), len(ids)


@pytest.fixture(scope="module")
def convert_valley(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """`convert_valley(version, delta=False)`."""

    @cache
    def call(version: str, delta: bool = False) -> Bundle:
        folder = tmp_path_factory.mktemp("valley")
        parts = write_valley_delta(folder, version) if delta else [write_valley(folder / "whole", version)]
        return convert(parts, OutputOptions(folder / "bundle"), mode="original").bundle

    return call


class TestValley:
    @pytest.mark.parametrize(("version", "delta"), [("v1", False), ("v2", True), ("v3", False)])
    def test_the_recorded_numbers(self, convert_valley: Callable[..., Bundle], version: str, delta: bool) -> None:
        bundle = load_bundle(convert_valley(version, delta).folder)
        fx, spec = fixture("valley"), bundle.spec
        assert spec.connector.compressor and spec.connector.compressor.type == f"valley_{version}"
        assert (spec.architecture, spec.prompt.format, spec.encoders.video.preprocess.mode) == (
            "valley",
            "valley",
            "valley",
        )
        model, report = load_model(bundle, "cpu"), fx.report()
        # In float32: what the cache keeps is float16, which is coarser than the tolerance.
        session = InferenceSession(str(bundle.video_graph), providers=["CPUExecutionProvider"])
        tokens = {
            name: torch.from_numpy(session.run(["tokens"], {"pixel_values": fx.input(name)[:, None].numpy()})[0][:, 0])
            for name in ("video", "image")
        }
        valley.compare(report, fx, version, model, tokens)
        assert report.ok, report.misses
        assert report.max_error <= 1e-4 and report.n_tokens_equal == report.n_tokens >= 48
        if version == "v1":
            rounded_to_half(bundle, model, fx)

    def test_a_clip_and_a_picture(
        self, convert_valley: Callable[..., Bundle], tmp_path: Path, make_clip: Callable[..., Path]
    ) -> None:
        bundle = convert_valley("v1", False)
        (answer,) = ask(bundle, make_clip(tmp_path / "clip.mp4", n_frames=12, size=40), "Why?", 5)
        assert answer.n_visual_tokens == 256 + 8
        encoder = Encoder.from_bundle(bundle, "cpu")
        features = encoder.encode(
            [EncoderInput(np.zeros((1, 3, 32, 32), np.float32), np.zeros(1), np.zeros(1, np.bool_), "image")]
        )
        assert load_model(bundle, "cpu").media_shape(features[0]).lengths == (256, 1)
        assert encoder.session("image") is encoder.session("video"), "one graph is loaded once"

    def test_no_other_tower(self, tmp_path: Path) -> None:
        clip = write_video_chatgpt(tmp_path, grown=True)[2]
        with pytest.raises(BundleError, match="cannot be replaced"):
            plan([write_valley(tmp_path / "valley", "v1")], towers=[clip])

    def test_a_difference_needs_its_base(self, tmp_path: Path) -> None:
        delta, base = write_valley_delta(tmp_path, "v1")
        with pytest.raises(BundleError, match="these are delta weights"):
            plan([delta])
        with pytest.raises(BundleError, match="complete weights"):
            plan([write_valley(tmp_path / "whole", "v1"), base])
        planned = plan([delta, base])
        whole = valley_weights("v1")
        for key in ("lm_head.weight", "model.norm.weight", "model.layers.0.mlp.up_proj.weight"):
            torch.testing.assert_close(planned.llm.tensors[key].read(), whole[key])
        assert "delta weights" in planned.compat.variant and planned.prompt.format == "valley_tuned"

    @pytest.mark.parametrize(
        ("spoil", "problem"),
        [
            (lambda w: w.pop("model.mm_projector.bias"), "connector: bias: missing"),
            (lambda w: w.update({"model.surprise.weight": torch.zeros(2)}), "surprise"),
            (lambda w: w.pop("model.pooling_layer.weight"), "compressor.pooling_layer.weight: missing"),
            (lambda w: w.pop("model.vision_tower.vision_model.post_layernorm.bias"), "post_layernorm.bias: missing"),
        ],
    )
    def test_keys_that_are_missing_or_too_many(self, spoil: Callable, problem: str, tmp_path: Path) -> None:
        folder = write_valley(tmp_path / "valley", "v2")
        weights = load_file(folder / "model.safetensors")
        spoil(weights)
        save_file(weights, folder / "model.safetensors")
        with pytest.raises(BundleError, match=problem):
            convert([folder], OutputOptions(tmp_path / "bundle"))
        assert not (tmp_path / "bundle").exists()

    def test_numbers_of_a_difference_that_are_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(write, "export_tower", lambda *_: None)
        delta, base = write_valley_delta(tmp_path, "v1")
        weights = load_file(base / "model.safetensors")
        weights["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.inf
        save_file(weights, base / "model.safetensors")
        named = r"delta.*: model\.layers\.0\.mlp\.up_proj\.weight \+ .*llama.*up_proj\.weight: 1 of"
        with pytest.raises(BundleError, match=named):
            convert([delta, base], OutputOptions(tmp_path / "bundle"))
        assert not (tmp_path / "bundle").exists()

    def test_modules_that_the_configuration_turns_off_are_said(self, tmp_path: Path) -> None:
        assert not plan([write_valley(tmp_path / "v3", "v3")]).notes
        assert not plan([write_valley(tmp_path / "v1", "v1")]).notes
        (note,) = plan([folder := write_valley(tmp_path / "off", "v1", valley_weights("v3"))]).notes
        assert note == f"{folder}: config.json disables use_delta_transformer, but its weights exist, so v3 is used"
        both = valley_weights("v3") | valley_weights("v2")
        planned = plan([folder := write_valley(tmp_path / "both", "v3", both)])
        assert planned.ignored == (f"temporal module v2 of {folder}: not used, since v3 exists too",)

    def test_a_module_that_the_configuration_names_must_be_there(self, tmp_path: Path) -> None:
        folder = write_valley(tmp_path / "valley", "v3", valley_weights("v1"))
        with pytest.raises(BundleError, match="use_delta_transformer"):
            plan([folder])


def rounded_to_half(bundle: Bundle, model: Any, fx: Any) -> None:
    """The way of a run, where features are kept as float16: the same greedy tokens."""
    clip = EncoderInput(fx.input("video").numpy(), np.arange(8.0), np.zeros(8, np.bool_), "video")
    (features,) = Encoder.from_bundle(bundle, "cpu").encode([clip])
    tokens = {"video": torch.from_numpy(features.tokens).float()}
    row = valley.row_of(fx, "v1", "video", model, tokens)
    said, _ = greedy(model, [row])
    assert said == fx.tensors["out/v1/video/greedy_tokens"].tolist()


@pytest.mark.parametrize("layout", ["video_chatgpt", "valley", "valley_delta"])
def test_end_tokens_come_along(layout: str, tmp_path: Path) -> None:
    if layout == "video_chatgpt":
        parts = write_video_chatgpt(tmp_path / "parts", grown=False)
        folder = parts[1]
    else:
        whole = layout == "valley"
        parts = [write_valley(tmp_path / "v", "v1")] if whole else write_valley_delta(tmp_path / "d", "v1")
        folder = parts[0]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7, 9], "repetition_penalty": 1.1}))
    made = plan(parts)
    assert made.llm.generation["eos_token_id"] == [2, 7, 9]
    assert any(note.endswith("not taken over: repetition_penalty 1.1") for note in made.notes)
