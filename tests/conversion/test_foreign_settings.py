"""Settings of published models: every wrong value is an error that names file and key, and nothing is silently lost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from published_files import write_hf, write_json, write_languagebind, write_llm, write_original, write_projector

from vidqa.conversion import write
from vidqa.conversion.convert import convert, plan
from vidqa.conversion.output_options import OutputOptions
from vidqa.conversion.plan import ConversionPlan, check_plan
from vidqa.conversion.write import write_llm as write_llm_folder
from vidqa.errors import BundleError
from vidqa.generate.stop_strings import eos_ids
from vidqa.model.llm import load_llm


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_original(tmp_path_factory.mktemp("original") / "model")


@pytest.fixture(scope="module")
def config(original: Path) -> dict[str, Any]:
    return dict(json.loads((original / "config.json").read_text()))


def planned(folder: Path, config: Any) -> ConversionPlan:
    """Plan and check a model with another config.json."""
    file = folder / "config.json"
    before = file.read_bytes()
    try:
        file.write_bytes(config if isinstance(config, bytes) else json.dumps(config).encode())
        made = plan([folder])
        check_plan(made)
        return made
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("hidden_size", value) for value in ("64", None, 0, -64, 2.5, True, [64], {}, 10**30, 1e30)),
        *(("num_hidden_layers", value) for value in ("2", None, 0, -1, 2.5, 200, 10**9)),
        *(("num_attention_heads", value) for value in (0, "4", None, 3.5, 7)),
        *(("num_key_value_heads", value) for value in (0, "4", 3, -1)),
        *(("rms_norm_eps", value) for value in ("1e-5", None, -1e-5, [], True, 10**400)),
        *(("vocab_size", value) for value in ("x", None, -1, 0)),
        *(("max_position_embeddings", value) for value in (None, "4096", 0, -1)),
        *(("rope_theta", value) for value in (None, "10000", 0, -1)),
        *(("hidden_act", value) for value in ("no-such", None, 1, ["silu"])),
        *(("tie_word_embeddings", value) for value in ("false", 0, 1)),
        *(("attention_bias", value) for value in ("no", 1)),
        *(("rope_scaling", value) for value in ("linear", 2.0, ["linear"])),
        ("rope_scaling.factor", {"type": "linear"}),
        ("rope_scaling.factor", {"rope_type": "yarn"}),
        ("rope_scaling.factor", {"rope_type": "linear", "factor": "2"}),
        ("rope_scaling.factor", {"rope_type": "linear", "factor": -2.0}),
        ("rope_scaling.factor", {"rope_type": "linear", "factor": None}),
        ("rope_scaling.rope_type", {"rope_type": "no-such", "factor": 2.0}),
        ("rope_scaling.type", {"type": 3, "factor": 2.0}),
        ("rope_scaling.new_in_a_later_release", {"type": "linear", "factor": 2.0, "new_in_a_later_release": 3}),
        ("rope_scaling.long_factor", {"type": "longrope", "factor": 2.0, "short_factor": [1.0], "long_factor": ["1"]}),
        ("model_type", ["llama"]),
        ("model_type", None),
        ("model_type", 5),
        ("eos_token_id", "2"),
        ("eos_token_id", 10**6),
        ("logit_scale", 0.5),
        ("clip_qkv", 8),
        ("partial_rotary_factor", 0.5),
        ("mm_of_a_later_release", "x"),
        ("mm_projector_type", "qformer"),
        ("mm_projector_type", 3),
        ("mm_vision_select_layer", "-2"),
        ("mm_vision_select_layer", 99),
        ("mm_vision_select_feature", "cls"),
        ("mm_use_im_start_end", True),
        ("mm_use_x_start_end", True),
        ("image_aspect_ratio", "anyres"),
        ("vision_config", "clip"),
        ("vision_config.layer_norm_eps", "1e-5"),
        ("vision_config.hidden_act", "relu"),
        ("vision_config.num_attention_heads", 0),
        ("vision_config.num_channels", 4),
        ("vision_config.hidden_size", "48"),
        ("vision_config.new_in_a_later_release", 1),
        ("quantization_config", {"bits": 4}),
    ],
)
def test_a_wrong_value_is_named(key: str, value: Any, original: Path, config: dict[str, Any]) -> None:
    top, _, inner = key.partition(".")
    if top == "vision_config" and inner:
        towers = {k: v | {inner: value} for k, v in config["vision_config"].items()}
        changed, key = config | {top: towers}, inner
    else:
        changed = config | {top: value}
    with pytest.raises(BundleError, match=r"config\.json") as e:
        planned(original, changed)
    assert f"{key}: " in e.value.what and str(original / "config.json") in e.value.what


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "model_type"])
def test_a_missing_value_is_named(key: str, original: Path, config: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=rf"config\.json: {key}: "):
        planned(original, {k: v for k, v in config.items() if k != key})


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff{}", b"\xef\xbb\xbf{}", b'{"a": 1, "a": 2}', b'{"rms_norm_eps": NaN}', b"{", b"null"]
)
def test_a_file_that_is_no_configuration(content: bytes, original: Path) -> None:
    with pytest.raises(BundleError, match=r"config\.json"):
        planned(original, content)


def test_numbers_in_another_form(original: Path, config: dict[str, Any]) -> None:
    made = planned(original, config | {"rms_norm_eps": 1, "num_hidden_layers": 2.0, "rope_theta": 10000})
    assert type(made.llm.config.rms_norm_eps) is float and made.llm.config.rms_norm_eps == 1.0
    assert type(made.llm.config.num_hidden_layers) is int
    for scaling in (None, {"type": "linear", "factor": 2}, {"rope_type": "dynamic", "factor": 2.0}):
        planned(original, config | {"rope_scaling": scaling})


def test_switched_off_and_harmless_settings(original: Path, config: dict[str, Any]) -> None:
    off = {"mm_of_a_later_release": None, "use_something": False, "list": [], "mm_resampler_type": None}
    harmless = {"_name_or_path": "x", "torch_dtype": "bfloat16", "use_cache": True, "tune_mm_mlp_adapter": True}
    made = planned(original, config | off | harmless | {"auto_map": {"AutoModel": "code.Model"}})
    assert made.notes == (f"{original / 'config.json'}: auto_map names code, which is not run",)


@pytest.mark.slow
def test_no_value_of_any_key_ends_in_another_error(original: Path, config: dict[str, Any]) -> None:
    values = [None, "\ud800", 2.5, 0, -1, 10**12, True, [1], {"a": 1}, math.inf]
    towers = config["vision_config"]["image_tower"]
    changes = [{key: value} for key in config for value in values]
    changes += [{"vision_config": towers | {key: value}} for key in towers for value in values]
    for change in changes:
        try:
            planned(original, config | change)
        except BundleError as e:
            assert "config.json" in e.what or "tower" in e.what or "weights" in e.what, (change, e.what)


class TestPort:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("text_config", None),
            ("text_config", [1]),
            ("text_config.rms_norm_eps", "x"),
            ("text_config.new_in_a_later_release", 3),
            ("vision_config", 3),
            ("vision_config.hidden_act", "relu"),
            ("vision_feature_layer", "-2"),
            ("vision_feature_layer", [-2, -5]),
            ("vision_feature_layer", True),
            ("vision_feature_select_strategy", "none"),
            ("projector_hidden_act", "relu"),
            ("new_in_a_later_release", 3),
        ],
    )
    def test_a_wrong_value_is_named(self, key: str, value: Any, tmp_path: Path) -> None:
        folder = write_hf(tmp_path / "hf")
        config = json.loads((folder / "config.json").read_text())
        top, _, inner = key.partition(".")
        with pytest.raises(BundleError, match=rf"config\.json: {key}: "):
            planned(folder, config | {top: config[top] | {inner: value} if inner else value})


class TestGeneration:
    def test_end_tokens_come_along_in_every_layout(self, tmp_path: Path) -> None:
        llm = write_llm(tmp_path / "llm")
        parts = [llm, write_projector(tmp_path / "stage1" / "p.bin")]
        parts += [write_languagebind(tmp_path / kind, kind) for kind in ("image", "video")]
        for i, given in enumerate(([write_original(tmp_path / "one")], parts, [write_hf(tmp_path / "hf")])):
            write_json(given[0] / "generation_config.json", {"eos_token_id": [2, 7, 9], "pad_token_id": -1})
            made = plan(given)
            write_llm_folder(made.llm, tmp_path / f"out{i}", None, lambda what, n: None)
            for inference_only in (True, False):
                loaded, tokenizer = load_llm(tmp_path / f"out{i}", None, inference_only=inference_only)
                assert eos_ids(loaded, tokenizer, ()) == {2, 7, 9}
            loaded.save_pretrained(tmp_path / f"again{i}")  # as training saves it
            saved = json.loads((tmp_path / f"again{i}" / "generation_config.json").read_text())
            assert saved["eos_token_id"] == [2, 7, 9]

    @pytest.mark.parametrize(
        ("generation", "expected"), [({"eos_token_id": 7.0}, 7), ({}, 2), ({"eos_token_id": None}, 2), (None, None)]
    )
    def test_one_end_token(self, generation: Any, expected: int | None, tmp_path: Path) -> None:
        folder = write_original(tmp_path)
        if generation is not None:
            write_json(folder / "generation_config.json", generation)
        made = plan([folder])
        assert made.llm.generation.get("eos_token_id") == expected and made.notes == ()

    def test_stop_strings_are_taken_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = write_original(tmp_path / "model")
        write_json(folder / "generation_config.json", {"stop_strings": ["###", "USER:"], "eos_token_id": [2, 7]})
        monkeypatch.setattr(write, "export_tower", lambda module, path, *rest: path.write_bytes(b"x"))
        monkeypatch.setattr(write, "save_bundle", lambda folder, spec, fill, replace: spec)
        spec: Any = convert([folder], OutputOptions(tmp_path / "out")).bundle
        assert spec.generation.stop == ("###", "USER:")

    def test_what_is_not_taken_over_is_named(self, tmp_path: Path) -> None:
        folder = write_original(tmp_path)
        greedy = {"temperature": 0.9, "top_p": 0.6, "top_k": 20, "do_sample": False, "num_beams": 1, "use_cache": True}
        write_json(folder / "generation_config.json", greedy | {"transformers_version": "4.31.0"})
        assert plan([folder]).notes == ()
        changes: dict[str, Any] = {
            "do_sample": True,
            "repetition_penalty": 1.1,
            "no_repeat_ngram_size": 3,
            "bad_words_ids": [[5]],
            "suppress_tokens": [3],
            "forced_eos_token_id": 2,
            "max_new_tokens": 64,
            "of_a_later_release": "x",
        }
        write_json(folder / "generation_config.json", greedy | changes)
        (note,) = plan([folder]).notes
        assert note.startswith(f"{folder / 'generation_config.json'}: not taken over: ") and "greedy" in note
        assert all(f"{key} {changes[key]!r}" in note for key in changes) and "temperature 0.9" in note

    def test_settings_in_config_json(self, original: Path, config: dict[str, Any]) -> None:
        """Old releases of transformers stored them there; without a generation_config.json they count."""
        (note,) = planned(original, config | {"repetition_penalty": 1.2, "temperature": 1.0, "num_beams": 1}).notes
        assert note == f"{original / 'config.json'}: not taken over: repetition_penalty 1.2"

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            *(("eos_token_id", value) for value in ("2", [2, "7"], [2, None], -1, 10**6, True, {"a": 2}, 2.5)),
            ("bos_token_id", "1"),
            ("pad_token_id", [0]),
            ("stop_strings", 3),
            ("stop_strings", [""]),
            ("stop_strings", ["a", 3]),
        ],
    )
    def test_a_wrong_value_is_named(self, key: str, value: Any, tmp_path: Path) -> None:
        folder = write_original(tmp_path)
        write_json(folder / "generation_config.json", {key: value})
        with pytest.raises(BundleError, match=rf"generation_config\.json: {key}: "):
            plan([folder])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b"\xff"),
        ("tokenizer_config.json", b'{"a": 1, "a": 2}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}'),
        ("special_tokens_map.json", b"null"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b'{"model": {"type": "WordLevel", "vocab": 3}}'),
        ("tokenizer.json", b"\xff"),
    ],
)
def test_tokenizer_files(name: str, content: bytes, tmp_path: Path) -> None:
    folder = write_original(tmp_path / "model")
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match="tokenizer"):
        convert([folder], OutputOptions(tmp_path / "out"))
