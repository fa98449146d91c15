"""encode, cache, models, doctor; settings from variables and vidqa.toml."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vidqa.config.default_model import user_settings_file
from vidqa.model.bundle.registry import models_folder


def test_encode_fills_the_cache_once(vidqa, clips, environment):
    first = json.loads(vidqa("encode", clips, "--json").out)
    assert first["clips"] == {"done": 3, "cached": 0, "failed": 0}
    assert len(list(Path(environment["VIDQA_CACHE"]).rglob("*.safetensors"))) == 3
    second = vidqa("encode", clips)
    assert second.code == 0 and "nothing to do: 3 files already cached" in second.err
    assert second.err.splitlines()[-1].startswith(
        "vidqa: cache: 0 files encoded, 3 already cached, 0 failed; 3 files in "
    )


def test_encode_counts_failures(vidqa, clips):
    (clips / "text.mp4").write_text("not a video")
    done = vidqa("encode", clips, "--json", "-v")
    assert done.code == 3
    summary = json.loads(done.out)
    assert summary["clips"]["failed"] == 1 and summary["errors"] == {"not_media": 1}
    message = "failed: text.mp4: not_media: not an image or video but text (utf-8)"
    assert done.err.splitlines().count(message) == 1
    assert "3 files encoded," in done.err and "failures: 1 not_media" in done.err
    assert summary["line"].startswith("vidqa: cache: 3 files encoded, 1 failed; 4 files in ")


def test_cache_stats_verify_prune(vidqa, clips, environment):
    vidqa("encode", clips)
    stats = json.loads(vidqa("cache", "stats", "--json").out)
    assert stats["n_entries"] == 3
    assert "3 entries" in vidqa("cache", "stats").out
    assert vidqa("cache", "verify").out == "verified 3 entries: 0 damaged\n"
    entry = sorted(Path(environment["VIDQA_CACHE"]).rglob("*.safetensors"))[0]
    entry.write_bytes(entry.read_bytes()[:-3])
    broken = vidqa("cache", "verify")
    assert broken.code == 3 and entry.name in broken.out
    assert vidqa("cache", "verify", "--delete").code == 0
    assert vidqa("cache", "prune").code == 2
    assert "would remove 2" in vidqa("cache", "prune", "--max-size", "0", "--dry-run").out
    assert json.loads(vidqa("cache", "prune", "--max-size", "0", "--json").out)["n_removed"] == 2


def test_models_list_and_verify(vidqa, tiny_bundle, tmp_path):
    listed = json.loads(vidqa("models", "list", tiny_bundle.parent, "--json").out)
    assert "tiny" in [model["name"] for model in listed]
    assert str(tiny_bundle) in vidqa("models", "list", tiny_bundle.parent).out
    assert vidqa("models", "verify", tiny_bundle).code == 0
    altered = tmp_path / "altered"
    shutil.copytree(tiny_bundle, altered)
    content = bytearray((altered / "connector.safetensors").read_bytes())
    content[-1] ^= 1
    (altered / "connector.safetensors").write_bytes(content)
    done = vidqa("models", "verify", altered)
    assert done.code == 1 and "connector.safetensors" in done.out


def test_a_model_that_was_pulled_before_becomes_the_default(vidqa, tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = "video-llava-7b"
    folder = models_folder() / name
    shutil.copytree(tiny_bundle, folder)
    about = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(about | {"name": name}))
    result = vidqa("models", "pull", name, "--set-default")
    assert result.code == 0 and "the default model is now" in result.err
    assert tomllib.loads(user_settings_file().read_text()) == {"model": str(folder)}
    for more in (["--compat", "original"], ["--revision", "LanguageBind/Video-LLaVA-7B=v2"]):
        result = vidqa("models", "pull", name, "--set-default", *more)  # another model than the one that is here
        assert result.code == 2 and "exists already" in result.err


def test_compat_is_listed(vidqa, tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "model")
    about = json.loads((tmp_path / "model" / "bundle.json").read_text())
    about["compat"] = {"mode": "original", "variant": "Some model", "follows": [], "fixed": []}
    (tmp_path / "model" / "bundle.json").write_text(json.dumps(about))
    assert "Some model (compat original)" in vidqa("models", "list", tmp_path).out


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="file systems that take any bytes")
def test_undecodable_names_are_escaped_everywhere(start, clips, tiny_bundle, tmp_path):
    """Tables, JSON and messages; on real streams, which cannot take what Python makes of such a byte."""
    odd = clips / os.fsdecode(b"\xff\\.mp4")
    (clips / "a.mp4").rename(odd)
    for rest in ("b.mp4", "deeper/c.mp4"):
        (clips / rest).unlink()
    (clips / os.fsdecode(b"no\xfe.mp4")).write_text("not a video")
    shutil.copytree(tiny_bundle, bundle := tmp_path / os.fsdecode(b"b\xfd"))

    def call(*arguments):
        out, err = (process := start(*arguments)).communicate()
        assert process.returncode in (0, 3), err
        return out, err

    out, err = call("ask", clips, "What?", "--json", "-v")
    rows = [json.loads(line) for line in out.splitlines()]
    call("describe", clips, "--out", tmp_path / "t.jsonl", "--log", tmp_path / "log")
    table = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["path"] for row in rows} == {row["path"] for row in table} == {r"no\xfe.mp4", r"\xff\\.mp4"}
    assert r"\xff" in (tmp_path / "log").read_text(encoding="utf-8")
    printed = [
        out,
        err,
        (tmp_path / "log").read_text(),
        call("ask", clips, "What?")[0],
        *call("models", "list", bundle),
    ]
    assert r"\xfd" in printed[4] and not any("udcf" in text for text in printed)
    (found,) = [m for m in json.loads(call("models", "list", bundle, "--json")[0]) if m["name"] == "tiny"]
    assert found["folder"].endswith(r"b\xfd")


@pytest.mark.smoke
def test_doctor(vidqa):
    done = vidqa("doctor")
    names = [line.split()[1] for line in done.out.splitlines()]
    assert done.code == 0, done.out
    packages = ["python", "torch", "transformers", "onnxruntime", "av", "decord", "polars"]
    assert names == [*packages, "decode", "encode", "answer", "cuda", "GPU", "bitsandbytes", "7B", "cache", "model"]
    assert "FFmpeg" in done.out and "GB free" in done.out and "CPUExecutionProvider" in done.out


@pytest.mark.parametrize(
    ("check", "target", "replacement"),
    [
        ("decode", "vidqa.media.synthetic.write_test_video", lambda path, seconds: path.write_bytes(b"no video")),
        ("encode", "vidqa.encoders.onnx_session.OnnxSession.run", lambda *_: 1 / 0),
        ("answer", "vidqa.generate.engine.Engine.step", lambda *_: 1 / 0),
    ],
)
def test_doctor_reports_which_stage_does_not_work(check, target, replacement, vidqa, monkeypatch):
    monkeypatch.setattr(target, replacement)
    done = vidqa("doctor")
    assert done.code == 1
    assert [line.split()[1] for line in done.out.splitlines() if line.startswith("FAIL")] == [check]
    found = vidqa("doctor", "--json")
    assert found.code == 1
    assert [one["name"] for one in json.loads(found.out) if one["needed"] and not one["ok"]] == [check]


def test_doctor_opens_a_session_on_every_device(monkeypatch):
    """A driver and a build for CUDA are not enough: for example without cuDNN, the encoders would run on the CPU."""
    from vidqa.common import devices
    from vidqa.encoders import onnx_session
    from vidqa.pipeline import doctor

    monkeypatch.setattr(devices, "_cuda_names", lambda: (("Test GPU",), ""))
    monkeypatch.setattr(devices, "has_cuda_build", lambda: True)
    monkeypatch.setattr(onnx_session, "_runtime", _WithoutLibraries)
    onnx_session._check_cuda.cache_clear()
    assert "does not start" in doctor._check("cuda", False, doctor._cuda).detail


class _WithoutLibraries:
    """onnxruntime whose provider does not start: it silently falls back to the CPU."""

    class SessionOptions:
        def add_session_config_entry(self, key, value): ...

    class InferenceSession:
        def __init__(self, graph, options, providers): ...

        def get_providers(self):
            return ["CPUExecutionProvider"]


def test_doctor_works_without_packages(environment):
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'av', 'decord', 'onnxruntime', 'polars'): sys.modules[name] = None\n"
        "from vidqa.cli.main import run\n"
        "sys.exit(run(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) == 16
    assert all(f"FAIL  {name}" in done.stdout for name in ("decode", "encode", "answer"))
    assert "FAIL  torch" in done.stdout and "skip  decord" in done.stdout


def test_doctor_reports_problems_of_the_model(vidqa, tmp_path):
    done = vidqa("doctor", "--model", tmp_path / "nowhere")
    assert done.code == 1
    assert "FAIL  model         no model at " in done.out


def test_settings_file_variable_flag(vidqa, clips, tmp_path, monkeypatch):
    (tmp_path / "vidqa.toml").write_text("max_new_tokens = 1\n")
    assert vidqa("ask", clips / "a.mp4", "What?").out == "\n"  # one token: the blank before the word
    monkeypatch.setenv("VIDQA_MAX_NEW_TOKENS", "2")
    assert vidqa("ask", clips / "a.mp4", "What?").out == "r\n"
    assert vidqa("ask", clips / "a.mp4", "What?", "--max-new-tokens", "3").out == "re\n"


def test_invalid_settings_are_exit_2(vidqa, clips, tmp_path):
    (tmp_path / "vidqa.toml").write_text("no_such_setting = 1\n")
    done = vidqa("ask", clips / "a.mp4", "What?")
    assert done.code == 2
    assert "no_such_setting" in done.err and "vidqa.toml" in done.err
