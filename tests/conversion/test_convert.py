"""Published layouts -> plans: recognised by content, every key accounted for. No graph is exported here."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from published_files import (
    GOLDEN,
    HF_NAMES,
    golden,
    original_config,
    write_bin_shards,
    write_hf,
    write_json,
    write_languagebind,
    write_llm,
    write_original,
    write_projector,
    write_safetensors,
    write_tokenizer,
)
from torch import Tensor

import vidqa
from vidqa.conversion import write
from vidqa.conversion.convert import convert, plan, stated_licence
from vidqa.conversion.output_options import OutputOptions
from vidqa.conversion.plan import ConversionPlan, check_plan
from vidqa.conversion.write import write_llm as write_llm_folder
from vidqa.errors import BundleError, UsageError
from vidqa.model.llm import load_llm


def values(planned: ConversionPlan) -> dict[str, Tensor]:
    """All tensors of a plan, by part and name."""
    out = {}
    for name in ("image", "video", "connector", "llm"):
        out |= {f"{name}.{key}": origin.read() for key, origin in getattr(planned, name).tensors.items()}
    return out


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert set(ours) == set(theirs)
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return write_original(tmp_path / "checkpoint")


class TestVideoLlava:
    def test_whole(self, original: Path) -> None:
        planned = plan([original])
        check_plan(planned)
        assert planned.layout == "video_llava" and planned.connector.spec.type == "mlp2x_gelu"
        assert planned.video.config.temporal_length == 8 and planned.video.config.hidden_act == "gelu"
        assert planned.prompt.format == "vicuna_v1" and planned.image.preprocess.pad
        assert not any("inv_freq" in key for key in planned.llm.tensors)

    def test_as_the_demos_use_it(self, original: Path) -> None:
        planned = plan([original], "original")
        assert planned.prompt.format == "llava_v1" and planned.compat.mode == "original"
        assert not planned.image.preprocess.pad

    def test_a_folder_s_name_plays_no_part(self, original: Path) -> None:
        moved = original.rename(original.with_name("valley-lora-hf"))
        assert plan([moved]).layout == "video_llava"

    def test_in_parts_in_any_order(self, original: Path, tmp_path: Path) -> None:
        image, video = (write_languagebind(tmp_path / f"tower{i}", kind) for i, kind in enumerate(("image", "video")))
        parts = [video, write_projector(tmp_path / "stage1" / "p.bin"), image, write_llm(tmp_path / "llm")]
        planned = plan(parts)
        check_plan(planned)
        assert planned.text is None and any("no tokenizer" in line for line in planned.ignored)
        ours = values(planned)
        projections = [k for k in ours if "visual_projection" in k]
        assert len(projections) == 2 and planned.image.config.projection_dim
        assert_equal({k: v for k, v in ours.items() if k not in projections}, values(plan([original])))

    def test_towers_of_their_own_take_the_place_of_those_inside(self, original: Path, tmp_path: Path) -> None:
        towers = [write_languagebind(tmp_path / kind, kind) for kind in ("image", "video")]
        planned = plan([original], towers=towers)
        check_plan(planned)
        assert planned.image.config.projection_dim and sum("replaced by" in x for x in planned.ignored) == 2

    def test_what_takes_a_place_is_said(self, original: Path, tmp_path: Path) -> None:
        image = write_languagebind(tmp_path / "image", "image")
        planned = plan([original, write_projector(tmp_path / "stage1" / "p.bin")], towers=[image])
        assert "image tower from LanguageBind's own files, video tower from inside" in planned.compat.variant
        assert any(line.startswith(f"projector of {original}") for line in planned.ignored)

    def test_clip_is_not_languagebind_s_image_tower(self, original: Path, tmp_path: Path) -> None:
        """Same keys, same shapes: the configurations tell them apart."""
        image = write_languagebind(tmp_path / "image", "image")
        assert plan([original], towers=[image]).notes == ()
        config = json.loads((image / "config.json").read_text())
        clip = config | {"model_type": "clip", "vision_config": config["vision_config"] | {"hidden_act": "quick_gelu"}}
        vision = {k: v for k, v in clip["vision_config"].items() if k != "hidden_act"}  # the default of CLIP's class
        for said in (
            clip,
            clip | {"vision_config": vision},
            {**clip["vision_config"], "model_type": "clip_vision_model"},
        ):
            write_json(image / "config.json", said)
            with pytest.raises(
                BundleError, match=r"image: OpenAI's CLIP according to its config.json, not LanguageBind's"
            ):
                plan([original], towers=[image])
        write_json(image / "config.json", config | {"model_type": "clip"})
        (note,) = plan([original], towers=[image]).notes
        assert "is assumed to be LanguageBind's image tower: its config.json has the model type 'clip'" in note
        own = json.loads((original / "config.json").read_text())
        write_json(original / "config.json", own | {"mm_image_tower": "openai/clip-vit-large-patch14"})
        write_json(image / "config.json", clip)  # such a model can be made with the published code
        assert plan([original], towers=[image]).image.config.hidden_act == "quick_gelu"

    @pytest.mark.parametrize("kind", ["linear", "identity"])
    def test_other_projectors(self, kind: str, tmp_path: Path) -> None:
        meta, weights = golden("video_llava_forward")
        weights = {k: v for k, v in weights.items() if "mm_projector" not in k}
        config = original_config(meta) | {"mm_projector_type": kind}
        if kind == "linear":
            weights |= {"model.mm_projector.weight": torch.ones(64, 48), "model.mm_projector.bias": torch.ones(64)}
        write_bin_shards(tmp_path, weights)
        write_json(tmp_path / "config.json", config)
        write_tokenizer(tmp_path)
        if kind == "linear":
            planned = plan([tmp_path])
            check_plan(planned)
            assert planned.connector.spec.type == "linear"
        else:  # the hidden sizes of the fixture differ
            with pytest.raises(BundleError, match=r"and LLM .* differ"):
                plan([tmp_path])

    def test_lora(self, tmp_path: Path) -> None:
        peft = pytest.importorskip("peft")
        base = write_llm(tmp_path / "base")
        llm, _ = load_llm(base, None)
        torch.manual_seed(0)
        wrapped = peft.get_peft_model(
            llm, peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        )
        wrapped.save_pretrained(tmp_path / "lora")
        projector = golden("video_llava_forward")[1]
        torch.save(
            {f"base_model.model.{k}": v for k, v in projector.items() if "mm_projector" in k},
            tmp_path / "lora" / "non_lora_trainables.bin",
        )
        write_json(tmp_path / "lora" / "config.json", original_config(golden("video_llava_forward")[0]))
        towers = [write_languagebind(tmp_path / kind, kind) for kind in ("image", "video")]
        planned = plan([tmp_path / "lora", base, *towers])
        check_plan(planned)
        merged = wrapped.merge_and_unload().state_dict()
        assert set(planned.llm.tensors) == set(merged)
        for key, origin in planned.llm.tensors.items():
            torch.testing.assert_close(origin.read(), merged[key], atol=1e-6, rtol=1e-5)
        assert "LoRA" in planned.compat.variant
        config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
        write_json(tmp_path / "lora" / "adapter_config.json", config | {"use_dora": True})
        with pytest.raises(BundleError, match="use_dora"):
            plan([tmp_path / "lora", base, *towers])


class TestPort:
    @pytest.mark.parametrize("names", HF_NAMES)
    def test_every_naming(self, names: str, tmp_path: Path) -> None:
        planned = plan([write_hf(tmp_path / names, names)])
        check_plan(planned)
        assert planned.layout == "video_llava_hf" and planned.video.config.temporal_length == 0
        assert planned.video.config.hidden_act == "quick_gelu" and planned.prompt.format == "hf"
        assert_equal(values(planned), values(plan([write_hf(tmp_path / "again", "saved")])))

    def test_with_the_true_towers(self, tmp_path: Path) -> None:
        towers = [write_languagebind(tmp_path / kind, kind) for kind in ("image", "video")]
        planned = plan([write_hf(tmp_path / "hf")], towers=towers)
        check_plan(planned)
        assert planned.video.config.temporal_length == 8 and planned.video.config.hidden_act == "gelu"
        assert planned.video.preprocess.mode == "original" and planned.prompt.format == "vicuna_v1"
        assert planned.video.sampling and planned.video.sampling.rule == "linspace" and planned.notice is None


class TestRefused:
    def test_no_towers(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="no image tower inside"):
            plan([write_llm(tmp_path / "llm"), write_projector(tmp_path / "p" / "mm_projector.bin")])

    def test_parts_that_make_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="do not make a supported model"):
            plan([write_llm(tmp_path / "llm")])

    def test_one_kind_twice(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="2 times"):
            plan([write_llm(tmp_path / "a"), write_llm(tmp_path / "b")])

    def test_towers_are_towers_and_all_of_them_are_used(self, original: Path, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match=r"llm: a language model, not a tower"):
            plan([original], towers=[write_llm(tmp_path / "llm")])
        one, other = (write_languagebind(tmp_path / name, "image") for name in ("one", "other"))
        with pytest.raises(BundleError, match=r"an image tower was given 2 times: .*one, .*other"):
            plan([original, one], towers=[other])

    def test_unknown_keys_only(self, tmp_path: Path) -> None:
        write_safetensors(tmp_path, {"something.else": torch.zeros(2)})
        with pytest.raises(BundleError, match=r"unknown kind of weights.*something\.else"):
            plan([tmp_path])

    def test_all_surplus_and_missing_keys_are_named(self, original: Path) -> None:
        _, weights = golden("video_llava_forward")
        lost = "model.layers.1.mlp.up_proj.weight"
        weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 3)
        weights |= {"model.video_tower.video_tower.encoder.extra": torch.zeros(1), "head.weight": torch.zeros(1)}
        write_bin_shards(original, {k: v for k, v in weights.items() if k != lost})
        with pytest.raises(BundleError) as e:
            check_plan(plan([original]))
        assert f"{lost}: missing" in e.value.what and "up_proj.weight: shape [3, 3]" in e.value.what
        assert "head.weight: unexpected key" in e.value.what and "encoder.extra: unexpected key" in e.value.what
        assert len(e.value.what.splitlines()) == 5

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
            ({"vision_config": None}, "number of heads cannot be derived from the weights"),
            ({"vision_config": {"hidden_size": 1024}}, "config.json has hidden_size = 1024, but the weights have 48"),
            ({"vision_config": {"num_attention_heads": 4, "hidden_act": "relu"}}, "relu"),
            ({"model_type": "no-such"}, "no-such"),
            ({"quantization_config": {"bits": 4}}, "quantized"),
            ({"mm_vision_select_layer": -9}, "mm_vision_select_layer"),
        ],
    )
    def test_configurations(self, change: dict, message: str, original: Path) -> None:
        config = json.loads((original / "config.json").read_text())
        write_json(original / "config.json", config | change)
        with pytest.raises(BundleError, match=message):
            check_plan(plan([original]))

    def test_a_tokenizer_is_read_before_the_weights(
        self, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (original / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
        monkeypatch.setattr(write, "export_tower", None)  # would be called first
        with pytest.raises(BundleError, match=r"tokenizer\.json: a Git LFS pointer"):
            convert([original], OutputOptions(tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    def test_a_full_disk_is_found_first(self, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(write, "export_tower", None)
        monkeypatch.setattr(write, "free_disk_bytes", lambda folder: 200_000)
        with pytest.raises(BundleError, match=r"needs .*, but the disk of .* has only 200\.0 kB free"):
            convert([original], OutputOptions(tmp_path / "new"))

    def test_a_part_is_not_written_over(self, original: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="is not a model, so it is not replaced"):
            convert([original], OutputOptions(original, replace_old=True))
        (tmp_path / "bundle.json").write_text("{}")
        with pytest.raises(UsageError, match="contains other files"):
            convert([original], OutputOptions(tmp_path, replace_old=True))
        llm = write_llm(tmp_path / "model" / "llm")
        (tmp_path / "model" / "bundle.json").write_text("{}")
        with pytest.raises(UsageError, match=r"llm is inside .*, which would be replaced"):
            convert([original, llm], OutputOptions(tmp_path / "model", replace_old=True))
        assert len([*original.glob("*.bin")]) == 2

    @pytest.mark.parametrize(
        ("key", "bad", "dtype", "message"),
        [
            ("model.layers.1.mlp.up_proj.weight", math.nan, "keep", "1 of [0-9]+ values are NaN or infinite"),
            ("lm_head.weight", -math.inf, "float16", "1 of [0-9]+ values are NaN or infinite"),
            ("lm_head.weight", 1e5, "float16", "1 of [0-9]+ values are too large for float16"),
            ("model.mm_projector.2.bias", math.inf, "keep", "1 of [0-9]+ values are NaN or infinite"),
            (
                "model.image_tower.image_tower.encoder.layers.0.mlp.fc1.bias",
                math.nan,
                "keep",
                "1 of 96 values are NaN",
            ),
        ],
    )
    def test_numbers_that_are_none(
        self, key: str, bad: float, dtype: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Found on the way to the disk, tower or not, before anything is exported; nothing is left behind."""
        exported: list[object] = []
        monkeypatch.setattr(write, "export_tower", lambda *what: exported.append(what))
        folder = write_original(tmp_path / "checkpoint")
        weights = golden("video_llava_forward")[1]
        weights[key] = weights[key].clone()
        weights[key].view(-1)[-1] = bad
        write_bin_shards(folder, weights)
        with pytest.raises(BundleError, match=rf"\.bin: {re.escape(key)}: {message}"):
            convert([folder], OutputOptions(tmp_path / "out", dtype=dtype))
        assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
        assert not exported

    def test_no_tokenizer(self, original: Path) -> None:
        (original / "tokenizer.json").unlink()
        with pytest.raises(BundleError, match="the folder has no tokenizer"):
            plan([original])


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\n", "apache-2.0"),
        ("---\r\nlicense: other\r\nlicense_name: 'llama2'\r\n---\r\ntext", "llama2"),
        ("---\nlicense: other\n---", "other"),
        ("# Model\nlicense: mit\n", ""),
        ("---\ntags:\n- video\n---\nlicense: mit\n", ""),
        (None, ""),
    ],
)
def test_the_licence_is_that_of_the_model_card(card: str | None, licence: str, tmp_path: Path) -> None:
    if card is not None:
        (tmp_path / "README.md").write_bytes(card.encode())
    (tmp_path / "weights.bin").touch()
    assert stated_licence(tmp_path) == stated_licence(tmp_path / "weights.bin") == licence


def test_a_conversion_records_where_its_parts_come_from(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = []
    monkeypatch.setattr(
        "vidqa.conversion.convert.write_bundle", lambda _plan, _out, source, _step: sources.append(source)
    )
    (original / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    convert([original], OutputOptions(tmp_path / "a"))
    convert([original], OutputOptions(tmp_path / "a"), origins=("owner/name@1",))
    assert [(source.origins, source.licences) for source in sources] == [
        (("local:checkpoint",), ("apache-2.0",)),
        (("owner/name@1",), ("apache-2.0",)),
    ]


def test_the_llm_is_written_in_shards_and_read_again(original: Path, tmp_path: Path) -> None:
    planned = plan([original])
    steps: list[str] = []
    write_llm_folder(planned.llm, tmp_path / "llm", torch.float16, lambda what, n: steps.append(what), 60_000)
    shards = sorted(p.name for p in (tmp_path / "llm").glob("*.safetensors"))
    assert len(shards) == len(steps) > 2 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    llm, tokenizer = load_llm(tmp_path / "llm", None)
    assert llm.dtype == torch.float16 and tokenizer.bos_token_id == 1
    for key, value in llm.state_dict().items():
        assert torch.equal(value, planned.llm.tensors[key].read().half()), key
    shutil.rmtree(tmp_path / "llm")
    assert GOLDEN.is_dir()


@pytest.mark.slow
def test_the_public_function(original: Path, tmp_path: Path) -> None:
    made = vidqa.convert(original, tmp_path / "made", name="mine", dtype="float16")
    assert made.bundle.folder == tmp_path / "made" and "plan" not in repr(made)
    assert vidqa.load_model(str(tmp_path / "made")).identity.model == "mine"
    with pytest.raises(vidqa.UsageError, match="made"):
        vidqa.convert([original], tmp_path / "made")  # it exists
    assert vidqa.convert([original], tmp_path / "made", replace=True).bundle.spec.name == "made"


def test_wrong_arguments_of_the_public_function(original: Path, tmp_path: Path) -> None:
    for name, arguments in {"parts": (None, "out"), "out": ("in", None), "towers": ("in", "out", 5)}.items():
        with pytest.raises(TypeError, match=f"^{name} must be a path"):
            vidqa.convert(*arguments[:2], **({"towers": 5} if len(arguments) > 2 else {}))
    for wrong in ({"dtype": "int8"}, {"encoders": "int8"}, {"compat": "new"}):
        with pytest.raises(vidqa.UsageError, match=next(iter(wrong.values()))):
            vidqa.convert(original, tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()
