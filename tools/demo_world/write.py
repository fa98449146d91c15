"""Scenes -> MP4 and PNG files with LLaVA-format conversations; files -> frames for encoder alignment.

A world folder:

    media/000123.mp4 | .png     the clip or image of seed 123
    conversations.json          [{"id", "video" | "image", "conversations": [{"from", "value"}, ...]}, ...]
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from demo_world.language import (
    CAPTION_QUESTIONS,
    DETAIL_QUESTIONS,
    Pair,
    caption,
    checks,
    detail,
    dialogue,
    lookups,
    names,
    pairs,
    plain,
    share_a_colour,
    summary,
)
from demo_world.render import render
from demo_world.scene import COLOURS, FPS, HELD_OUT, SHAPES, SIZE, Scene, make_scene

N_FRAMES = 8  # frames per clip for the video encoder
FIRST_TEXT = 1_000_000  # first seed of the text-only scenes


def media_name(scene: Scene) -> str:
    """Return the file name of a scene's clip or image."""
    return f"{scene.seed:06d}.{'png' if scene.still else 'mp4'}"


def media_bytes(scene: Scene) -> bytes:
    """Encode the scene as PNG or H.264 MP4."""
    frames = render(scene)
    buffer = io.BytesIO()
    if scene.still:
        Image.fromarray(frames[0]).save(buffer, "PNG")
        return buffer.getvalue()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": str(scene.crf)})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def decode_frames(data: bytes, still: bool) -> tuple[np.ndarray, np.ndarray]:
    """Decode the frames for the encoder: uint8 [T, SIZE, SIZE, 3] (T is 1 or N_FRAMES), and their indices [T]."""
    if still:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[None], np.zeros(1, int)
    with av.open(io.BytesIO(data)) as container:
        container.streams.video[0].thread_count = 1
        frames = list(container.decode(video=0))
    index = np.linspace(0, len(frames) - 1, N_FRAMES, dtype=int)
    return np.stack([frames[i].to_ndarray(format="rgb24") for i in index]), index


def turns(scene: Scene, seed: int = 0) -> list[list[Pair]]:
    """Return the conversations about a scene, each a list of one or more turns."""
    rng = np.random.default_rng([scene.seed, seed, 79])
    ask_caption = _choose(CAPTION_QUESTIONS, scene, rng)
    ask_detail = _choose(DETAIL_QUESTIONS, scene, rng)
    found = [[Pair("caption", ask_caption, caption(scene, rng))], [Pair("detail", ask_detail, detail(scene))]]
    found += [[pair] for pair in pairs(scene, rng)]
    found.append(dialogue(scene, rng))
    found += [[pair] for pair in lookups(scene, rng)]
    found += [[pair] for pair in checks(scene, rng)]
    found += [[pair] for pair in plain(scene, rng)]
    return found


def _choose(questions: dict[bool, tuple[str, ...]], scene: Scene, rng: np.random.Generator) -> str:
    return questions[scene.still][int(rng.integers(len(questions[scene.still])))]


def records(scene: Scene, seed: int = 0) -> list[dict[str, Any]]:
    """Return the conversations of a scene in the LLaVA format, one record each.

    Conversations about held-out pairs are skipped: the answer to "is there a red star?" would always be no.
    """
    kind = "image" if scene.still else "video"
    made = []
    shown = {(t.colour, t.shape) for t in scene.things}
    for k, conversation in enumerate(turns(scene, seed)):
        if any(names(pair.question) & HELD_OUT - shown for pair in conversation):
            continue
        values = _values(f"<{kind}>", conversation)
        record = {"id": f"{scene.seed}-{seed}-{k}", kind: media_name(scene), "conversations": values}
        made.append(record | {"topic": conversation[0].topic})
    return made


def _values(lead: str, conversation: Sequence[Pair]) -> list[dict[str, str]]:
    """Return the turns in the LLaVA format; `lead` is a line before the first question."""
    values = []
    for i, pair in enumerate(conversation):
        values.append({"from": "human", "value": (f"{lead}\n" if i == 0 else "") + pair.question})
        values.append({"from": "gpt", "value": pair.answer})
    return values


def all_records(scene: Scene) -> list[dict[str, Any]]:
    """Return three samples of every kind of conversation, but one of the many lookups, checks and plain questions."""
    return [
        r
        for seed in range(3)
        for r in records(scene, seed)
        if seed == 0 or r["topic"] not in ("lookup", "check", "plain")
    ]


def write_world(folder: Path, seeds: Sequence[int], *, held_out: bool = False, still: bool | None = None) -> None:
    """Write the media and the conversations of many seeds."""
    (folder / "media").mkdir(parents=True, exist_ok=True)
    everything: list[dict[str, Any]] = []
    work = partial(_write_one, folder / "media", held_out, still)
    for made in parallel(work, seeds):
        everything += made
    (folder / "conversations.json").write_text(json.dumps(everything, indent=0))


def write_captions(folder: Path, n_media: int) -> None:
    """Write captions.json: the captions and descriptions of the first files in conversations.json."""
    _write_chosen(folder, "captions.json", n_media, lambda scene: True, ("caption", "detail"))


def write_lookups(folder: Path, n_media: int) -> None:
    """Write lookups.json: questions in conversations.json about one of several objects that could be confused."""
    _write_chosen(folder, "lookups.json", n_media, lambda scene: len(scene.things) > 1, ("lookup", "check", "position"))


def write_alike(folder: Path, n_media: int) -> None:
    """Write alike.json: captions and descriptions in conversations.json of scenes where two objects share a color."""
    _write_chosen(folder, "alike.json", n_media, share_a_colour, ("caption", "detail"))


def _write_chosen(folder: Path, name: str, n_media: int, fits: Callable[[Scene], bool], topics: Container[str]) -> None:
    """Write the conversations on some topics about the first files whose scenes fit."""
    made = json.loads((folder / "conversations.json").read_text())
    seeds = sorted({_seed(record) for record in made})
    chosen = set(islice((seed for seed in seeds if fits(make_scene(seed))), n_media))
    kept = [record for record in made if record["topic"] in topics and _seed(record) in chosen]
    (folder / name).write_text(json.dumps(kept, indent=0))


def _seed(record: dict[str, Any]) -> int:
    return int(Path(record.get("video") or record["image"]).stem)


def write_texts(path: Path, n: int, *, held_out: bool) -> None:
    """Write conversations about scenes described in text, without media, as JSON lines.

    With `held_out`, half of the scenes may have held-out color-shape pairs: text may cover more than the images do.
    """
    with path.open("w") as file:
        for made in parallel(partial(_text_of, held_out), range(FIRST_TEXT, FIRST_TEXT + n)):
            file.write(made)


def _text_of(held_out: bool, seed: int) -> str:
    scene, rng = make_scene(seed, held_out=held_out and seed % 2 == 0), np.random.default_rng(seed)
    description = summary(scene, rng)
    found = []
    for k, conversation in enumerate(turns(scene, 1)):
        found.append(json.dumps({"id": f"{seed}-{k}", "conversations": _values(description, conversation)}) + "\n")
    return "".join(found)


def write_unseen(path: Path) -> None:
    """Write the held-out color-shape pairs as a file for `unseen_pairs` of `vidqa train`."""
    lines = [
        "# Pairs that no training clip or picture shows: the loss leaves them out as answers about one.",
        f"pairs = {json.dumps(sorted(HELD_OUT))}",
        "",
        "[groups]",
        f"colour = {json.dumps(list(COLOURS))}",
        f"shape = {json.dumps(SHAPES)}",
        "",
    ]
    path.write_text("\n".join(lines))


def parallel(work: Any, seeds: Iterable[int], n_workers: int = 2) -> Iterator[Any]:
    """Map over seeds in several processes, in order.

    Args:
        work: a function of an importable module, or a partial of one.
        seeds: its arguments.
        n_workers: number of processes.
    """
    # spawn: a fork of a process that has threads, such as those of torch, may wait for a lock forever.
    with ProcessPoolExecutor(n_workers, get_context("spawn")) as pool:
        yield from pool.map(work, seeds, chunksize=64)


def _write_one(folder: Path, held_out: bool, still: bool | None, seed: int) -> list[dict[str, Any]]:
    scene = make_scene(seed, held_out=held_out, still=still)
    (folder / media_name(scene)).write_bytes(media_bytes(scene))
    return all_records(scene)
