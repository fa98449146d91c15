"""Synthetic fixtures of preprocessed frames, and of prompts with their ids and labels."""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_checks.prompts import Slow
from PIL import Image
from sentencepiece import SentencePieceTrainer
from synthetic_fixtures import write
from torch import Tensor
from torch.nn import functional as F

from vidqa.prompts.chat_formats import FORMATS

SIDE = 84  # a multiple of 7, because Valley's short side is 8/7 of it
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def planes(frame: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] -> float [3, H, W], 0 to 1."""
    return torch.from_numpy(np.array(frame)).permute(2, 0, 1).float() / 255


def cropped(x: Tensor, offset: Callable[[int], int]) -> Tensor:
    top, left = (offset(n - SIDE) for n in x.shape[-2:])
    return x[..., top : top + SIDE, left : left + SIDE]


def half(n: int) -> int:
    """Half of n, rounded as Python does."""
    return round(n / 2)


def original_video(frame: np.ndarray) -> Tensor:
    h, w = frame.shape[:2]
    size = (math.floor(h / w * SIDE), SIDE) if w < h else (SIDE, math.floor(w / h * SIDE))
    resized = F.interpolate((planes(frame) - MEAN)[None] / STD, size, mode="bilinear", align_corners=False)
    return cropped(resized[0], half)


def original_image(frame: np.ndarray) -> Tensor:
    x = planes(frame)
    size = _short_side(frame, SIDE)
    if size != tuple(x.shape[1:]):
        x = F.interpolate(x[None], size, mode="bicubic", align_corners=False)[0]
    return (cropped(x, half) - MEAN) / STD


def padded_image(frame: np.ndarray) -> Tensor:
    h, w = frame.shape[:2]
    canvas = Image.new("RGB", (max(h, w), max(h, w)), (122, 116, 104))
    canvas.paste(Image.fromarray(frame), ((max(h, w) - w) // 2, (max(h, w) - h) // 2))
    return original_image(np.asarray(canvas))


def hf_image(frame: np.ndarray) -> Tensor:
    resized = _pillow(frame, SIDE, Image.Resampling.BICUBIC)
    return (cropped(planes(resized), lambda n: n // 2) - MEAN) / STD


def valley_video(frame: np.ndarray) -> Tensor:
    resized = _pillow(frame, SIDE // 7 * 8, Image.Resampling.BILINEAR)
    return (cropped(planes(resized), half) - MEAN) / STD


def chatgpt_video(frame: np.ndarray) -> Tensor:
    return (F.interpolate(planes(frame)[None], (SIDE, SIDE), mode="nearest")[0] - MEAN) / STD


def _short_side(frame: np.ndarray, side: int) -> tuple[int, int]:
    h, w = frame.shape[:2]
    return (side, int(side * w / h)) if h <= w else (int(side * h / w), side)


def _pillow(frame: np.ndarray, side: int, how: Any) -> np.ndarray:
    rows, cols = _short_side(frame, side)
    return np.asarray(Image.fromarray(frame).resize((cols, len(frame)), how).resize((cols, rows), how))


def write_preprocess(folder: Path) -> None:
    sizes = [(101, 333), (250, 96), (SIDE, SIDE), (31, 40), (85, 84), (96, 96), (300, 173)]
    rng = np.random.default_rng(51)
    transforms = {
        "orig_video": original_video,
        "orig_image_noaa": original_image,
        "orig_image_pad_noaa": padded_image,
        "hf_image": hf_image,
        "valley_video": valley_video,
        "video_chatgpt": chatgpt_video,
    }
    tensors, stats = {}, {}
    for i, (h, w) in enumerate(sizes):
        frame = rng.integers(0, 256, (h, w, 3), np.uint8)
        if i == 1:
            Image.fromarray(frame).save(png := io.BytesIO(), "png")
            tensors[f"in/frame{i}_png"] = torch.frombuffer(bytearray(png.getvalue()), dtype=torch.uint8)
        else:
            tensors[f"in/frame{i}"] = torch.from_numpy(frame)
        for name, transform in transforms.items():
            out = transform(frame)
            tensors[f"out/{name}/frame{i}_s3"] = out[:, ::3, ::3].half()
            tensors[f"out/{name}/frame{i}_rows20_31"] = out[:, 20:31].half()
            exact = out.double()
            mean, std = (v.tolist() for v in (exact.mean((1, 2)), exact.std((1, 2), correction=0)))
            stats[f"{name}/frame{i}"] = {"mean": mean, "std": std, "min": float(out.min()), "max": float(out.max())}
    write(folder, "preprocess", {"stats": stats}, tensors)


TEXT = "Why does the red ball roll? Two boats wait at a river bank, 12 of them; où est le café? He reads: it's late"
WORDS = TEXT.split()
TINY = "A header of other words stands here, for tests."
#: Difficult answers, whose treatment by the original is recorded too.
ANSWERS = (" led by a space", "ends in one ", "\nfirst line", "two  spaces", "猫 and 🐈", "says ASSISTANT: itself")


def random_text(rng: random.Random, hard: bool = False) -> str:
    if hard and rng.random() < 0.4:
        return rng.choice(ANSWERS)
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 7)))


def conversation(rng: random.Random, media: Sequence[str]) -> list[dict[str, str]]:
    out = [{"from": "gpt", "value": "Hello."}] if rng.random() < 0.1 else []
    for i in range(rng.randint(1, 4)):
        question = random_text(rng)
        if i == 0 and media:
            tags = "".join(media)
            question = f"{tags}\n{question}" if rng.random() < 0.7 else f"{question}\n{tags}"
        out += [{"from": "human", "value": question}, {"from": "gpt", "value": random_text(rng, hard=True)}]
    if rng.random() < 0.1:
        out[-1]["value"] = ""
    return out


def sha(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def rendered(name: str, system: str, flat: Sequence[str | None]) -> str:
    """Render a conversation with the published template of that name; None is an open turn."""
    roles = ("Human", "Assistant") if name == "llava_v0" else ("USER", "ASSISTANT")
    seps = ("###", "###") if name == "llava_v0" else (" ", "</s>")
    if name == "plain":
        return "".join(f"{text}\n" for text in flat if text)
    text = system + seps[0]
    for i, message in enumerate(flat):
        text += f"{roles[i % 2]}: {message}{seps[i % 2]}" if message else f"{roles[i % 2]}:"
    return text


def ids_with_placeholders(slow: Slow, text: str) -> list[int]:
    """Tokenize the pieces between `<image>` one by one."""
    first, *rest = (slow.encode(piece, add_special_tokens=True) for piece in text.split("<image>"))
    return first + [i for piece in rest for i in (-200, *piece[1:])]


def labeled_v1(slow: Slow, system: str, source: list[dict[str, str]], has_media: bool) -> dict[str, Any]:
    """Ids and labels of training with the template `v1`: rounds are counted, and a wrong count masks everything."""
    source = source[1:] if source[0]["from"] == "gpt" else source
    text = rendered("v1", system, [one["value"].replace("<video>", "<image>" * 8) for one in source])

    def encode(piece: str) -> list[int]:
        return ids_with_placeholders(slow, piece) if has_media else slow.encode(piece, add_special_tokens=True)

    ids = encode(text)
    labels, at, cue = list(ids), 1, " ASSISTANT: "
    labels[0] = -100
    for rest in text.split("</s>"):
        parts = rest.split(cue)
        if not rest or len(parts) != 2:
            break
        n_question = len(encode(parts[0] + cue)) - 2
        labels[at : at + n_question] = [-100] * len(labels[at : at + n_question])
        at += len(encode(rest))
    labels[at:] = [-100] * len(labels[at:])
    wrong = at != len(ids)
    return {"input_ids": ids, "labels": [-100] * len(ids) if wrong else labels, "mismatch_warning": wrong}


def hashed(found: dict[str, Any]) -> dict[str, Any]:
    ids, labels = found["input_ids"], found["labels"]
    digests = {"n": len(ids), "ids_sha256": sha(ids), "labels_sha256": sha(labels)}
    return digests | {"mismatch_warning": found["mismatch_warning"]}


def caption(slow: Slow, source: list[dict[str, str]]) -> dict[str, Any]:
    ids = ids_with_placeholders(slow, f"<image>{source[1]['value']}\n")
    n_before = len(ids_with_placeholders(slow, "<image>"))
    return {"input_ids": ids, "labels": [-100] * n_before + ids[n_before:]}


def in_one_text(slow: Slow, source: list[dict[str, str]]) -> dict[str, Any]:
    """Ids of training with the `###` style."""
    names = {"human": "Human", "gpt": "Assistant"}
    text = f"{TINY}\n\n" + "".join(f"### {names[one['from']]}: {one['value']}\n" for one in source) + "### "
    return {"input_ids": ids_with_placeholders(slow, text.replace("<video>", "<image>" * 8)), "labels": []}


def valley_prompt(messages: Sequence[tuple[str, str]]) -> str:
    marks = f"<im_start>{'<im_patch>' * 256}<im_end><vi_start>{'<vi_frame>' * 8}<vi_end>"
    text = ""
    for role, content in messages:
        if role == "system":
            text += f"{content}\n\n###"
        elif role == "assistent":
            text += f" Assistent: {content} \n###"
        elif "<video>" in content or "<image>" in content:
            text += f" Human: {re.sub('<(video|image)>', marks, content)} \n###"
    return text


def valley_answer(raw: str) -> str:
    before = None
    while before != raw:
        before, raw = raw, raw.strip()
        for start in ("###", "Assistant:", "Response:", "Valley:"):
            raw = raw.removeprefix(start).strip()
    return raw.partition("###")[0].strip()


def write_prompts(folder: Path, seed: int = 61) -> None:
    rng = random.Random(seed)
    lines = iter([random_text(rng) for _ in range(400)])
    SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_prefix=str(folder / "tokenizer"),
        vocab_size=390,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        user_defined_symbols=["\u2581USER", "USER"],  # as long with a space as without, as in LLaMA's tokenizer
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    slow = {mode: Slow(folder / "tokenizer.model", mode == "legacy") for mode in ("legacy", "legacy_false")}
    kinds = [[], ["<image>"], ["<video>"], ["<video>", "<image>"], ["<image>", "<image>"]]
    sources = {
        f"case_{i}": {"conversations": conversation(rng, kinds[i % 5]), "has_media": bool(kinds[i % 5])}
        for i in range(30)
    }
    captions = {
        f"caption_{i}": {"conversations": [{"from": "human", "value": tag}, {"from": "gpt", "value": random_text(rng)}]}
        for i, tag in enumerate(("<image>", "<video>\nWhat?", "Tell.\n<image>"))
    }
    masking: dict[str, Any] = {"neutral_system_text": TINY, "sources": sources, "plain_sources": captions}
    for mode, tokenizer in slow.items():
        for group, system in (("neutral_system", TINY), ("real_system_v1", FORMATS["v1"].system)):
            found = {n: labeled_v1(tokenizer, system, s["conversations"], s["has_media"]) for n, s in sources.items()}
            kept = found if system == TINY else {n: hashed(f) for n, f in found.items()}
            masking[f"preprocess_v1/{group}/{mode}"] = kept
    plain = {n: caption(slow["legacy"], s["conversations"]) for n, s in captions.items()}
    masking["preprocess_plain/legacy"] = plain
    usual = {n: s["conversations"] for n, s in sources.items() if all(one["value"] for one in s["conversations"])}
    texts = {n: in_one_text(slow["legacy"], c) for n, c in usual.items() if c[0]["from"] == "human"}
    structures: dict[str, list[str | None]] = {"nothing": []}
    for i in range(8):
        structures[f"turns_{i}"] = [
            *(random_text(rng) for _ in range(rng.choice((1, 3)))),
            None if i % 2 else random_text(rng),
        ]
    raw = [
        f"{a}{random_text(rng)}{b}"
        for a in ("### Assistant: ", " Response:Valley:", "")
        for b in ("\n### Human: x", " ")
    ]
    dialogues = {
        "one": [("system", "Be short."), ("user", f"<video>\n{random_text(rng)}")],
        "two": [("user", f"{random_text(rng)} <video>"), ("assistent", random_text(rng)), ("user", "And <image>?")],
        "without": [("system", "Be short."), ("user", "Hello"), ("user", "<video> what?")],
    }
    names = ("v1", "vicuna_v1", "llava_v1", "llava_v0")
    meta = {
        "tokenizer": {"file": "tokenizer.model"},
        "turn_structures": structures,
        "rendered_prompts": {
            n: {k: _digest(rendered(n, FORMATS[n].system, t)) for k, t in structures.items()} for n in names
        },
        "rendered_prompts_video_chatgpt": {
            n: {k: _digest(rendered(n, FORMATS[n].system, t)) for k, t in structures.items()}
            for n in ("video-chatgpt_v1", "vicuna_v1_1")
        },
        "tokenizer_image_token": [
            {"prompt": text} | {mode: ids_with_placeholders(tokenizer, text) for mode, tokenizer in slow.items()}
            for text in ("<image>\nWhy?", "a <image> b<image>", "USER: <image>\nTwo boats? ASSISTANT: 12</s>USER: He")
        ],
        "label_masking": masking,
        "valley_training_masks/neutral_system/legacy": texts,
        "valley_inference_prompts": {
            n: _digest(valley_prompt(m)) | {"messages": [list(one) for one in m]} for n, m in dialogues.items()
        },
        "valley_process_response": [[text, valley_answer(text)] for text in raw],
        "preprocess_multimodal": {
            "default": [
                {"input": f"{tags}\nQ", "n_image": n} | _digest(f"{tags}\nQ".replace("<video>", "<image>" * 8))
                for tags, n in (("<video>", 8), ("<image><video><image>", 10), ("<image>" * 3, 3))
            ]
        },
    }
    (folder / "prompts.json").write_text(json.dumps(meta))


def _digest(text: str) -> dict[str, Any]:
    return {"sha256": sha(text), "n_chars": len(text)}
