"""Compares rendered prompts, token ids and labels, and the cleaning of answers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken

from golden_checks.fixture import Fixture
from golden_checks.report import Report
from vidqa.generate.stop_strings import Stopper
from vidqa.prompts.build import LabeledPrompt, build_labels
from vidqa.prompts.chat_formats import FORMATS, ChatFormat, Turn, get_format, render

PLACEHOLDER = -200
MODES = ("legacy", "legacy_false")
#: Lengths of the runs of visual tokens in Valley's recorded prompts.
VALLEY_RUNS = (256, 8)
ROLES = {"user": 0, "assistent": 1}
_END_IN_TEXT = "text that contains </s> is not compared: the original reads it as the end token, vidqa as text"


class Slow:
    """The slow Llama tokenizer of transformers 4.31, based on sentencepiece.

    The tokenizer that transformers 5 builds from the same file omits the prefix of a text that starts with a space, so
    it does not reproduce all recorded ids.
    """

    bos_token_id = 1
    added_tokens_decoder: ClassVar = {2: AddedToken("</s>", special=True)}

    def __init__(self, file: Path, legacy: bool) -> None:
        self.pieces = SentencePieceProcessor(str(file))
        self.legacy = legacy

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of a text; `</s>` is the end token."""
        out = [1] if add_special_tokens else []
        for i, part in enumerate(text.split("</s>")):
            out += [2] * (i > 0)
            if i and part and not self.legacy and not part.startswith(" "):
                # Without the prefix that sentencepiece puts before every text.
                out += self.pieces.encode(f"<unk>{part}")[len(self.pieces.encode("<unk>")) :]
            else:
                out += self.pieces.encode(part)
        return out

    def convert_tokens_to_ids(self, tokens: str) -> int:
        """Fail: the formats compared with this tokenizer do not use it."""
        raise ValueError(f"no token {tokens} here")

    def get_chat_template(self) -> str:
        """Fail: the Llama tokenizer of that version has no chat template."""
        raise ValueError("no chat template here")

    def apply_chat_template(self, conversation: Any, **arguments: Any) -> str:
        """Fail, as `get_chat_template`."""
        raise ValueError("no chat template here")


def tokenizers(fixture: Fixture) -> dict[str, Slow]:
    """Return the fixture's tokenizer in its two modes."""
    file = fixture.folder / fixture.meta["tokenizer"]["file"]
    return {mode: Slow(file, mode == "legacy") for mode in MODES}


def check(fixture: Fixture) -> Report:
    """Compare everything that vidqa has a counterpart for; note the rest."""
    report = fixture.report()
    slow = tokenizers(fixture)
    _rendered(report, fixture.meta)
    _systems(report, fixture.meta)
    _valley(report, fixture.meta)
    _encodings(report, fixture.meta, slow)
    _labels(report, fixture.meta, slow)
    _expansions(report, fixture.meta, slow["legacy"])
    return fixture.close(report)


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _note(report: Report, text: str) -> None:
    if text not in report.notes:
        report.notes.append(text)


def _pairs(flat: Sequence[str | None]) -> list[Turn]:
    return [(q or "", a) for q, a in zip(flat[::2], flat[1::2], strict=True)]


def _rendered(report: Report, meta: dict[str, Any]) -> None:
    for group in ("rendered_prompts", "rendered_prompts_video_chatgpt"):
        for name, cases in meta.get(group, {}).items():
            if name not in FORMATS:
                _note(report, f"rendered prompts of {name!r} are not compared: vidqa has no such format")
                continue
            for structure, expected in cases.items():
                what, turns = f"{name} {structure}", _pairs(meta["turn_structures"][structure])
                try:
                    text = render(FORMATS[name], turns).text
                except ValueError:
                    report.exact(what, "raises", "raises" if "raises" in expected else expected)
                    continue
                report.exact(what, (len(text), _sha(text)), (expected.get("n_chars"), expected.get("sha256")))


def _systems(report: Report, meta: dict[str, Any]) -> None:
    for name, expected in meta.get("system_prompts", {}).items():
        chat = FORMATS.get(name.rpartition(":")[2])
        if chat is None:
            _note(report, f"the system text of {name!r} is not compared: vidqa has no such format")
            continue
        report.exact(
            f"system text of {name}", (len(chat.system), _sha(chat.system)), (expected["n_chars"], expected["sha256"])
        )


def _valley(report: Report, meta: dict[str, Any]) -> None:
    """Compare Valley's inference prompts and the cleaning of its raw answers."""
    chat = FORMATS["valley"]
    for name, expected in meta.get("valley_inference_prompts", {}).items():
        if "raises" in expected:
            _note(
                report,
                f"valley {name}: the original raises; vidqa allows questions without a clip and writes the role itself",
            )
            continue
        text = render(*_as_asked(chat, expected["messages"])).text
        text = re.sub("<(video|image)>", chat.media_text(VALLEY_RUNS), text)
        report.exact(f"valley {name}", (len(text), _sha(text)), (expected["n_chars"], expected["sha256"]))

    class Plain:
        added_tokens_decoder: ClassVar = {}

        def decode(self, ids: Sequence[str], skip_special_tokens: bool) -> str:
            return "".join(ids)

    for raw, answer in meta.get("valley_process_response", []):
        stopper = Stopper(Plain(), chat.stop, chat.answer_prefixes)
        report.exact(f"valley answer {raw[:30]!r}", stopper.text(raw), answer)  # type: ignore[arg-type]


def _as_asked(chat: ChatFormat, messages: Sequence[Sequence[str]]) -> tuple[ChatFormat, list[Turn]]:
    """Convert messages of the original to format and turns; it drops user messages without media."""
    system, turns = "", []
    for role, content in messages:
        if role == "system":
            system = chat.system if content.startswith("<DEFAULT SYSTEM TEXT") else content
        elif role == "user" and re.search("<(video|image)>", content):
            turns.append((content, None))
        elif role == "assistent":
            turns[-1] = (turns[-1][0], content)
    return replace(chat, system=system), turns


def with_placeholders(labeled: LabeledPrompt) -> tuple[list[int], list[int]]:
    """Return ids and labels as in the original, with one placeholder per frame."""
    p = labeled.prompt
    return np.where(p.slots, PLACEHOLDER, p.ids).tolist(), labeled.labels.tolist()


def dialogue(source: list[dict[str, str]]) -> tuple[list[Turn], list[tuple[Any, int, int]]]:
    """Return turns and media of a recorded conversation; a leading answer is dropped, as in the original."""
    values: list[str] = [one["value"] for one in (source[1:] if source[0]["from"] == "gpt" else source)]
    turns = _pairs(values)
    kinds = [k for question, _ in turns for k in re.findall("<(image|video)>", question)]
    return turns, [(k, 8 if k == "video" else 1, 1) for k in kinds]


def _encodings(report: Report, meta: dict[str, Any], slow: dict[str, Slow]) -> None:
    for text, wanted in meta["tokenizer"].get("plain_encodings", {}).items():
        for mode, ids in wanted.items():
            report.tokens(f"tokenizer {mode} {text[:30]!r}", slow[mode].encode(text, add_special_tokens=True), ids)
    bare = ChatFormat("bare", kind="plain", user_end="", answer_end="")
    for case in meta.get("tokenizer_image_token", []):
        if not case["prompt"]:
            continue
        if "</s>" in case["prompt"]:
            _note(report, _END_IN_TEXT)
            continue
        # Encoded as caption answers, where tags are not special: the pieces come from the recorded text only.
        first, *rest = case["prompt"].split("<image>")
        turns: list[Turn] = [("", first), *(("<image>", piece) for piece in rest)]
        for mode in MODES:
            labeled = build_labels(slow[mode], bare, turns, [("image", 1, 1)] * len(rest))
            report.tokens(f"placeholders {mode} {case['prompt'][:30]!r}", with_placeholders(labeled)[0], case[mode])


def _labels(report: Report, meta: dict[str, Any], slow: dict[str, Slow]) -> None:
    masking = meta.get("label_masking", {})
    groups = {k: v for k, v in masking.items() if "/" in k}
    groups |= {k: v for k, v in meta.items() if k.startswith("valley_training_masks/")}
    neutral = masking.get("neutral_system_text", "")
    valley = get_format("valley_tuned", neutral)
    forms: dict[str, tuple[ChatFormat, Callable[..., None]]] = {
        "preprocess_v1/neutral_system/": (get_format("v1", neutral), _one_labeled),
        "preprocess_v1/real_system_v1/": (FORMATS["v1"], _one_labeled),
        "preprocess_v1/real_system_llava_v1/": (FORMATS["llava_v1"], _one_labeled),
        "preprocess_plain/": (FORMATS["plain"], _one_caption),
        # In the original, the loss mask of this style is off by a few tokens; vidqa's covers exactly the answers.
        "preprocess_v0_style": (replace(valley, media="split", special_tokens=()), _one_text),
        "valley_training_masks/": (replace(valley, media="split", special_tokens=()), _one_text),
    }
    for group, cases in groups.items():
        prefix = next((p for p in forms if group.startswith(p)), None)
        mode = next((m for m in reversed(MODES) if f"/{m}" in group), MODES[0])
        if prefix is None:
            _note(report, f"{group} is not compared: unknown to this tool")
            continue
        chat, compare = forms[prefix]
        for name, expected in cases.items():
            source = (masking["plain_sources"] if "plain" in group else masking["sources"])[name.split("/")[0]]
            compare(report, f"{group} {name}", chat, slow[mode], source["conversations"], expected)
        if compare is _one_text:
            _note(
                report,
                f"{group}: only ids; the original's loss mask is off by a few tokens, vidqa's covers the answers",
            )


def _one_labeled(
    report: Report, what: str, chat: ChatFormat, slow: Slow, source: Any, expected: dict[str, Any]
) -> None:
    turns, media = dialogue(source)
    if any("</s>" in text for turn in turns for text in turn if text):
        _note(report, _END_IN_TEXT)
        return
    labeled = build_labels(slow, chat, turns, media)
    ids, labels = with_placeholders(labeled)
    has_role = any(f"{chat.assistant}:" in answer for _, answer in turns if answer)
    if has_role:
        _note(report, f"{what}: only ids; the original does not train on an answer that contains the name of its role")
        if "input_ids" in expected:
            report.tokens(f"{what} ids", ids, expected["input_ids"])
    elif "input_ids" in expected:
        cut = len(expected["input_ids"]) if "max_length" in what else None  # the original cuts there
        report.tokens(f"{what} ids", ids[:cut], expected["input_ids"])
        if cut is None:
            report.tokens(f"{what} labels", labels, expected["labels"])
    else:
        shas = [_sha(json.dumps(v, separators=(",", ":"))) for v in (ids, labels)]
        report.exact(what, (len(ids), *shas), (expected["n"], expected["ids_sha256"], expected["labels_sha256"]))
    if "max_length" not in what and not has_role:
        report.exact(f"{what} is ignored", labeled.problem is not None, expected["mismatch_warning"])


def _one_caption(
    report: Report, what: str, chat: ChatFormat, slow: Slow, source: Any, expected: dict[str, Any]
) -> None:
    if "raises" in expected:  # the original rejects a caption without media; vidqa trains on its text
        return
    turns, media = dialogue(source)
    # With this format, the original uses one placeholder per video.
    ids, labels = with_placeholders(build_labels(slow, chat, turns, [(k, 1, 1) for k, _, _ in media]))
    report.tokens(f"{what} ids", ids, expected["input_ids"])
    report.tokens(f"{what} labels", labels, expected["labels"])


def _one_text(report: Report, what: str, chat: ChatFormat, slow: Slow, source: Any, expected: dict[str, Any]) -> None:
    turns, media = dialogue(source)
    report.tokens(f"{what} ids", with_placeholders(build_labels(slow, chat, turns, media))[0], expected["input_ids"])


def _expansions(report: Report, meta: dict[str, Any], slow: Slow) -> None:
    """Compare the number of frames that the tags of a question stand for."""
    for style, cases in meta.get("preprocess_multimodal", {}).items():
        if style != "default":
            _note(report, f"preprocess_multimodal {style} is not compared: no published model uses it")
            continue
        for case in cases:
            if "raises" in case or "..." in case["input"]:
                _note(report, "preprocess_multimodal: shortened or refused inputs are not compared")
                continue
            text = case["input"].replace("<video>", "<image>" * 8)
            report.exact(
                f"expansion of {case['input'][:30]!r}", (len(text), _sha(text)), (case["n_chars"], case["sha256"])
            )
            turns, media = dialogue([{"from": "human", "value": case["input"]}, {"from": "gpt", "value": "x"}])
            n = build_labels(slow, FORMATS["v1"], turns, media).prompt.n_slots
            report.exact(f"frames of {case['input'][:30]!r}", n, case["n_image"])
