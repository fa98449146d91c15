"""A bundle without temporal attention has the same logits as its export for transformers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from vidqa.encoders.encoder import Encoder
from vidqa.encoders.preprocess import preprocess
from vidqa.errors import VidqaError
from vidqa.generate.engine import generate
from vidqa.generate.requests import GenerationSettings, Request
from vidqa.model.bundle.bundle import DEMO, Bundle, load_bundle
from vidqa.model.video_llava import load_model
from vidqa.prompts.build import build_prompt
from vidqa.prompts.chat_formats import get_format, render
from vidqa.records import EncoderInput, FrameBatch, SamplingSpec
from vidqa.training.outputs.hf_export import export_transformers, exportable

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def single_frame_bundle():
    """The demo bundle with its image encoder also as the encoder of one-frame videos."""
    base = load_bundle(DEMO)
    image = base.spec.encoders.image
    one = {"file": image.file, "sha256": image.sha256, "external": image.external, "n_frames": 1}
    video = replace(base.spec.encoders.video, sampling=SamplingSpec("linspace", 1), **one)
    return Bundle(base.folder, replace(base.spec, encoders=replace(base.spec.encoders, video=video)))


def test_the_export_has_the_logits_of_the_bundle(single_frame_bundle, tmp_path):
    from transformers import VideoLlavaForConditionalGeneration

    folder = tmp_path / "exported"
    export_transformers(single_frame_bundle, folder)
    exported = VideoLlavaForConditionalGeneration.from_pretrained(folder).eval()
    size = single_frame_bundle.spec.encoders.video.preprocess.image_size
    values = np.random.default_rng(1).standard_normal((1, 3, size, size)).astype(np.float32)
    clip = EncoderInput(values, np.zeros(1), np.zeros(1, np.bool_), "video")
    (features,) = Encoder.from_bundle(single_frame_bundle, "cpu").encode([clip])
    model = load_model(single_frame_bundle, "cpu")
    (visual,) = model.visual_tokens([features])
    tag = exported.config.video_token_index
    ids = torch.tensor([[5, 6, 7, *[tag] * len(visual), 8, 9, 10]])
    slots = ids == tag
    with torch.no_grad():
        actual = exported(input_ids=ids, pixel_values_videos=torch.from_numpy(values)[None]).logits
        expected = model(ids.masked_fill(slots, 0), slots, visual).logits
    torch.testing.assert_close(actual[..., : expected.shape[-1]], expected, atol=5e-2, rtol=2e-2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["exported"]


def has_torchvision():
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):  # RuntimeError: built for another torch
        return False
    return True


@pytest.fixture(scope="module")
def exported(single_frame_bundle, tmp_path_factory):
    """The bundle in mode `hf`, like the published port, and its export."""
    encoders = single_frame_bundle.spec.encoders
    hf = {}
    for kind in ("image", "video"):
        encoder = getattr(encoders, kind)
        hf[kind] = replace(encoder, preprocess=replace(encoder.preprocess, mode="hf", pad=False))
    bundle = Bundle(single_frame_bundle.folder, replace(single_frame_bundle.spec, encoders=replace(encoders, **hf)))
    folder = tmp_path_factory.mktemp("export") / "transformers"
    export_transformers(bundle, folder)
    return bundle, folder


@pytest.fixture(scope="module")
def image():
    """Random squares, uint8 [112, 160, 3]."""
    rng = np.random.default_rng(3)
    return np.kron(rng.integers(0, 256, (7, 10, 3)), np.ones((16, 16, 1))).astype(np.uint8)


class TestProcessor:
    def ours(self, bundle, image, question, kind):
        """Return pixel values and the answer of the bundle."""
        e = bundle.spec.encoders
        frames = FrameBatch(image[None], np.zeros(1), np.zeros(1, np.bool_), kind)
        values = preprocess(frames, e.image.preprocess, e.video.preprocess)
        model = load_model(bundle, "cpu")
        features = Encoder.from_bundle(bundle, "cpu").encode([values])
        (answer,) = generate(model, [Request(tuple(features), ((question, None),))], GenerationSettings(12))
        prompt = build_prompt(model.tokenizer, model.chat, [(question, None)], [model.media_shape(features[0])])
        return values.values, answer.text, prompt

    def test_the_files_that_auto_processor_reads(self, exported, image):
        """The image processor needs no torchvision; the settings of the video processor are the same."""
        from transformers import AutoImageProcessor

        bundle, folder = exported
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        pixels, _, _ = self.ours(bundle, image, "What is it?", "image")
        found = np.asarray(processor(images=image, return_tensors="np")["pixel_values_images"][0])
        np.testing.assert_allclose(found, pixels[0], atol=1e-5)
        files = {p.name: json.loads(p.read_text()) for p in folder.glob("*processor_config.json")}
        video, image_settings = (files[f"{kind}preprocessor_config.json"] for kind in ("video_", ""))
        assert video["video_processor_type"] == "VideoLlavaVideoProcessor"
        assert all(video[key] == value for key, value in image_settings.items() if key != "image_processor_type")
        assert files["processor_config.json"]["processor_class"] == "VideoLlavaProcessor"

    def test_greedy_tokens(self, exported, image):
        from transformers import AutoModelForImageTextToText

        bundle, folder = exported
        theirs = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True).eval()
        for kind, name in (("image", "pixel_values_images"), ("video", "pixel_values_videos")):
            pixels, text, prompt = self.ours(bundle, image, "What is it?", kind)
            tag = getattr(theirs.config, f"{kind}_token_index")
            ids = torch.from_numpy(np.where(prompt.slots, tag, prompt.ids))[None]
            values = torch.from_numpy(pixels) if kind == "image" else torch.from_numpy(pixels)[None]
            with torch.no_grad():
                out = theirs.generate(input_ids=ids, **{name: values}, max_new_tokens=12, do_sample=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip() == text != ""

    @pytest.mark.skipif(not has_torchvision(), reason="transformers' VideoLlavaProcessor needs torchvision")
    def test_auto_processor(self, exported, image):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        bundle, folder = exported
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        theirs = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True).eval()
        chat = get_format(bundle.spec.prompt.format, bundle.spec.prompt.system)
        for kind in ("image", "video"):
            _, text, prompt = self.ours(bundle, image, "What is it?", kind)
            question = render(chat, [(f"<{kind}>\nWhat is it?", None)]).text
            media = {"images": [image]} if kind == "image" else {"videos": [image[None]]}
            inputs = processor(text=question, **media, return_tensors="pt")
            assert inputs["input_ids"].shape[1] == len(prompt.ids)
            with torch.no_grad():
                out = theirs.generate(**inputs, max_new_tokens=12, do_sample=False)
            answer = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            assert answer.strip() == text

    def test_end_tokens(self, single_frame_bundle, tmp_path, monkeypatch):
        from transformers import GenerationConfig

        import vidqa.training.outputs.hf_export as module

        model = load_model(single_frame_bundle, "cpu")
        own = model.tokenizer.eos_token_id
        model.llm.generation_config.eos_token_id = [own, 7, 9]
        monkeypatch.setattr(module, "load_model", lambda *args: model)
        export_transformers(single_frame_bundle, tmp_path / "out")
        assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [own, 7, 9]


def test_temporal_attention_is_rejected():
    with pytest.raises(VidqaError, match="temporal attention"):
        exportable(load_bundle(DEMO))
