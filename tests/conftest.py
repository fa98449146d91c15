"""Fixtures of the whole suite: a tiny bundle that answers "red", generated clips, and a clean environment."""

from __future__ import annotations

import os
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path

# Before numpy and torch are imported, here and in subprocesses: the tiny models of the tests gain nothing from a second
# thread, but idle OpenMP threads spin and take the CPU from tests that run in parallel.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

#: The tiny model's answer to every question.
TINY_ANSWER = "red"


@pytest.fixture(autouse=True)
def _clean_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests from reading the user's settings and models, and from filling the user's cache."""
    for name in [name for name in os.environ if name.startswith("VIDQA_")]:
        monkeypatch.delenv(name)
    home = tmp_path_factory.getbasetemp() / "user"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete bundle with random encoders and an LLM that predicts the next letter from a table, answering "red"."""
    from vidqa.encoders.preprocess import PreprocessSpec
    from vidqa.model.bundle.bundle import save_bundle
    from vidqa.model.bundle.spec import (
        BundleSpec,
        ConnectorSpec,
        EncoderSpec,
        EncodersSpec,
        GenerationSpec,
        LlmSpec,
        PromptSpec,
        VideoEncoderSpec,
    )
    from vidqa.records import SamplingSpec

    prepare = PreprocessSpec("original", 16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    common = {"layer": -2, "hidden_size": 16, "embedding_size": 8, "n_patches": 4, "preprocess": prepare}
    spec = BundleSpec(
        name="tiny",
        encoders=EncodersSpec(
            image=EncoderSpec(file="encoders/image.onnx", n_frames=1, keep_cls=False, **common),
            video=VideoEncoderSpec(
                file="encoders/video.onnx", n_frames=8, keep_cls=True, sampling=SamplingSpec(), **common
            ),
        ),
        connector=ConnectorSpec(file="connector.safetensors", type="mlp2x_gelu", in_size=16, out_size=_WIDTH),
        llm=LlmSpec(folder="llm", context=2048),
        prompt=PromptSpec(format="vicuna_v1"),
        generation=GenerationSpec(max_new_tokens=16),
        notice="the tiny model says the same to everything",
    )
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    save_bundle(folder, spec, _fill_tiny)
    return folder


_LETTERS = ["<unk>", "<s>", "</s>", *string.printable]
_WIDTH = 112  # at least one dimension per letter, and a multiple of the number of heads


def _fill_tiny(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from vidqa.model.connector import build_connector
    from vidqa.model.onnx.export import export_tower
    from vidqa.model.towers.vit import VisionConfig, VisionTower

    torch.manual_seed(0)
    (folder / "encoders").mkdir()
    for kind, n_frames in (("image", 0), ("video", 8)):
        config = VisionConfig(16, 8, 16, 32, 2, 2, 8, temporal_length=n_frames)
        export_tower(VisionTower(config), folder / "encoders" / f"{kind}.onnx", n_frames or 1)
    save_file(build_connector("mlp2x_gelu", 16, _WIDTH).state_dict(), folder / "connector.safetensors")
    _save_llm(folder / "llm")


def _save_llm(folder: Path) -> None:
    """Save a Llama whose layers do nothing, between one-hot embeddings and a head that maps a letter to the next."""
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import Fuse
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {letter: i for i, letter in enumerate(_LETTERS)}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    letters.decoder = Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=letters, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(_LETTERS),
        hidden_size=_WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    llm = LlamaForCausalLM(config)
    with torch.no_grad():
        llm.model.layers[0].self_attn.o_proj.weight.zero_()
        llm.model.layers[0].mlp.down_proj.weight.zero_()
        llm.model.embed_tokens.weight.copy_(torch.eye(len(_LETTERS), _WIDTH))
        llm.lm_head.weight.zero_()
        for letter, following in pairwise([":", " ", *TINY_ANSWER, "</s>"]):
            llm.lm_head.weight[vocabulary[following], vocabulary[letter]] = 10.0
    llm.save_pretrained(folder, safe_serialization=True)


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., Path]:
    """Function that writes a short MP4: `make_clip(path, seed=0, n_frames=12, size=32, rate=10)`."""
    import av

    def make(path: Path, seed: int = 0, n_frames: int = 12, size: int = 32, rate: int = 10) -> Path:
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=rate)
            stream.width = stream.height = size
            stream.pix_fmt = "yuv420p"
            for i in range(n_frames):
                frame = av.VideoFrame.from_ndarray(np.roll(image, i, axis=1), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return make


@pytest.fixture
def clips(tmp_path: Path, make_clip: Callable[..., Path]) -> Path:
    """A folder with three clips, the third in a subfolder."""
    for i, name in enumerate(("a.mp4", "b.mp4", "deeper/c.mp4")):
        make_clip(tmp_path / "clips" / name, seed=i)
    return tmp_path / "clips"


@pytest.fixture
def mount() -> Callable[..., None]:
    """Function that calls `mount` with its arguments, and skips the test if that is not permitted."""

    def call(*arguments: str) -> None:
        if sys.platform != "linux" or subprocess.run(["mount", *arguments], capture_output=True).returncode:
            pytest.skip("needs permission to mount")

    return call


@pytest.fixture
def unprivileged(tmp_path: Path) -> Callable[[], AbstractContextManager[None]]:
    """Function that returns a context without the permissions of root, who may read everything."""

    @contextmanager
    def drop() -> Iterator[None]:
        for folder in (tmp_path, *list(tmp_path.parents)[:3]):
            if folder.owner() == "root" and folder != Path("/tmp"):
                folder.chmod(0o755)
        if os.geteuid() != 0:
            yield
            return
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    return drop


@pytest.fixture
def small_disk(tmp_path: Path, mount: Callable[..., None]) -> Iterator[Path]:
    """A file system with a size of 256 KB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
