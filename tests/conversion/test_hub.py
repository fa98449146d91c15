"""Fetching over a real connection that breaks: a server on the loopback, and programs that are killed meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hub_server import Hub, serving
from published_files import write_original

pytestmark = pytest.mark.slow

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO, MODEL = "LanguageBind/Video-LLaVA-7B", "video-llava-7b"
SHARD = "pytorch_model-00002-of-00002.bin"
#: What huggingface_hub takes from a connection at a time; less is lost when it breaks.
CHUNK = 10 << 20
FETCH = (
    "import sys; from vidqa.conversion.hub import fetch; print(fetch(sys.argv[1], None, ['*.bin'], [], print).folder)"
)

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Video-LLaVA, one shard of it made long by a buffer that old versions of transformers saved."""
    folder = write_original(tmp_path_factory.mktemp("hub") / "checkpoint")
    weights = torch.load(folder / SHARD, weights_only=True)
    weights["model.rotary_emb.inv_freq"] = torch.rand(6 << 20)
    torch.save(weights, folder / SHARD)
    return folder


@pytest.fixture
def hub(published: Path) -> Iterator[Hub]:
    with serving(Hub(REPO, published, COMMIT)) as made:
        yield made


@pytest.fixture
def start(tmp_path: Path, hub: Hub) -> Start:
    """`start(*arguments, **environment)`: a program that knows no other hub, and keeps what it fetches in `home`."""

    def call(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        return subprocess.Popen(
            [sys.executable, *arguments],
            env=kept | own | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return call


def test_a_killed_fetch_goes_on_in_the_middle_of_a_file(
    start: Start, hub: Hub, published: Path, tmp_path: Path
) -> None:
    hub.stall_after[SHARD] = CHUNK + 1000
    first = start("-c", FETCH, REPO)
    try:
        part = wait_for(tmp_path / "home", CHUNK, first)
    finally:
        first.kill()
        first.communicate()
    hub.gets.clear()
    hub.cut_after[SHARD] = 2 * CHUNK + 1000  # and the next time the line breaks, which huggingface_hub mends itself
    out, err = start("-c", FETCH, REPO).communicate(timeout=120)
    assert f"{SHARD}: resuming at 10 of" in out, err
    asked = [of for name, of in hub.gets if name == SHARD]
    assert asked == [f"bytes={CHUNK}-", f"bytes={2 * CHUNK}-"]
    folder = Path(out.splitlines()[-1])
    assert folder.name == COMMIT and not part.exists()
    for file in published.glob("*.bin"):
        assert (folder / file.name).read_bytes() == file.read_bytes()
    hub.gets.clear()
    start("-c", FETCH, REPO).communicate(timeout=120)
    assert hub.gets == [], "what is here is not fetched again"


def wait_for(home: Path, n_bytes: int, program: subprocess.Popen[str]) -> Path:
    """The half-fetched file, as soon as it is that long."""
    until = time.monotonic() + 60
    while time.monotonic() < until and program.poll() is None:
        for part in home.glob("hub/*/blobs/*.vidqa-part"):
            if part.stat().st_size >= n_bytes:
                return part
        time.sleep(0.05)
    raise AssertionError(f"nothing came: {program.poll()}")


def test_a_damaged_file_is_not_taken(start: Start, hub: Hub, tmp_path: Path) -> None:
    hub.files = dict(hub.files)
    digest = hub.digests[SHARD]
    hub.files[SHARD] = hub.files[SHARD][:-5] + b"oops!"
    hub.digests = {**hub.digests, SHARD: digest}
    program = start("-c", FETCH, REPO)
    _, err = program.communicate(timeout=120)
    assert program.returncode == 1 and "the content does not match the digest of the hub" in err
    assert not [*(tmp_path / "home").glob(f"hub/*/blobs/*{digest[:8]}*")]


def test_pulled_then_offline(start: Start, hub: Hub, tmp_path: Path) -> None:
    """Fetched at a pinned revision, converted where there is no hub any more, and the revision is in the bundle."""
    out, err = start("-c", FETCH.replace("['*.bin']", "['*']"), REPO).communicate(timeout=120)
    assert COMMIT in out, err
    hub.commit = "f" * 40  # what is newest now, if anybody asked
    bundle = tmp_path / "bundle"
    pull = ("-m", "vidqa", "models", "pull", MODEL, "--out", str(bundle))
    pinned = ("--revision", f"{REPO}={COMMIT}")
    program = start(*pull, *pinned, "--json", HF_HUB_OFFLINE="1")
    out, err = program.communicate(timeout=280)
    assert program.returncode == 0, err
    assert json.loads(out)["origins"] == [f"{REPO}@{COMMIT}"]
    assert json.loads((bundle / "bundle.json").read_text())["source"]["origins"] == [f"{REPO}@{COMMIT}"]


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ((), {"HF_HUB_OFFLINE": "1"}, "offline mode is on, and not all files are in the cache"),
        ((), {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot reach the hub"),
        (("--revision", f"{REPO}=v9"), {}, "revision v9 does not exist"),
        (("--revision", REPO), {}, "not of the form REPO=COMMIT"),
    ],
)
def test_what_cannot_be_pulled_is_said(
    arguments: tuple[str, ...], environment: dict[str, str], message: str, start: Start, tmp_path: Path
) -> None:
    program = start("-m", "vidqa", "models", "pull", MODEL, "--out", str(tmp_path / "b"), *arguments, **environment)
    _, err = program.communicate(timeout=120)
    assert program.returncode in (1, 2) and message in err and "Traceback" not in err, err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("repo", "message"), [("owner/none", "does not exist or is private"), ("owner/closed", "access must be requested")]
)
def test_repositories_that_are_closed(repo: str, message: str, start: Start) -> None:
    program = start("-c", FETCH, repo)
    _, err = program.communicate(timeout=120)
    assert program.returncode == 1 and message in err, err
