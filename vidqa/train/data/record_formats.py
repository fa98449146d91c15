"""A record -> a sample. Which of the published layouts it has is settled by its keys.

- LLaVA and Video-LLaVA: `conversations` with `image`, `video` (a path or a list of paths), both, or neither.
- Valley: `conversations` with `video`, `source` and `v_id`; a clip of VATEX names the whole video, and `v_id` says in
  seconds which stretch of it is meant (its authors: cut it).
- VideoInstruct100K: `q`, `a` and `video_id`; the clip is found by its id, whatever its suffix. It stands before the
  question; with the format `video_chatgpt` behind every second one, as in that model's own training file.

Facts: Video-LLaVA 984e65b train.py, Valley 83d794f data_util.py and its issue 20, Video-ChatGPT 659e04b
convert_instruction_json_to_training_format.py. Does not open media; where they lie is asked of a `Locator`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal, Protocol

from vidqa.errors import UsageError
from vidqa.records import MediaKind
from vidqa.train.data.sample import MediaRef, Sample, SampleError

Format = Literal["auto", "llava", "valley", "videoinstruct", "video_chatgpt"]
FORMATS: tuple[Format, ...] = ("auto", "llava", "valley", "videoinstruct", "video_chatgpt")

_TAG = re.compile("<(image|video)>")
#: Valley's v_id: YouTube's eleven characters, then first and last second of the stretch.
_SPAN = re.compile(r"(.{11})_(\d{6})_(\d{6})")


class Locator(Protocol):
    """Names in records -> paths of files."""

    def file(self, *names: str) -> str:
        """The first of the names that is a file below the media folder, as a path that can be opened."""
        ...

    def by_id(self, video_id: str) -> str:
        """The clip of that name, whatever its suffix."""
        ...


class AsWritten:
    """The locator of those who want the names of the file and find the media themselves."""

    def file(self, *names: str) -> str:
        """The first name, as it is."""
        return names[0]

    def by_id(self, video_id: str) -> str:
        """The id, as it is."""
        return video_id


def to_sample(record: Any, locator: Locator, *, source: str, number: int, format: Format = "auto") -> Sample:
    """Make a sample of one record.

    Args:
        record: what stood in the file.
        locator: finds media.
        source: the file, for the sample.
        number: place of the record in the file.
        format: the layout; `auto` settles it by the keys.

    Raises:
        SampleError: the record cannot be trained on; the kind says why.
    """
    if not isinstance(record, dict):
        raise SampleError("bad_json", f"a record must be an object, not {type(record).__name__}")
    record = {k: v for k, v in record.items() if v is not None}  # tables fill absent keys with null
    layout = format_of(record) if format == "auto" else format
    media: dict[MediaKind, list[MediaRef]]
    name = str(record.get("id", number))
    if layout in ("videoinstruct", "video_chatgpt"):
        name = str(record.get("id", record.get("video_id", number)))
        turns = _question_and_answer(record, behind=layout == "video_chatgpt" and number % 2 == 0)
        media = {"image": [], "video": [MediaRef(locator.by_id(_text(record, "video_id")), "video")]}
    else:
        turns = _turns(record.get("conversations"))
        find = _valley_media if layout == "valley" else _llava_media
        media = find(record, locator, turns)
    return Sample(name, _in_order_of_tags(turns, media), turns, source, number)


def format_of(record: dict[str, Any]) -> Format:
    """The layout of a record, by its keys.

    Raises:
        SampleError: it is none that is known.
    """
    if "conversations" in record:
        return "valley" if "video" in record and ("v_id" in record or "source" in record) else "llava"
    if {"q", "a", "video_id"} <= record.keys():
        return "videoinstruct"
    keys = ", ".join(sorted(map(str, record))[:8]) or "none"
    raise SampleError("bad_record", f"a known layout has `conversations`, or `q`, `a` and `video_id`; this has {keys}")


def read_conversations(path: str | Path) -> list[Sample]:
    """All samples of a JSON file, at once and with media named as in the file: for files that are known to be small.

    Raises:
        UsageError: the file cannot be read, or records are malformed; the first ten are named.
    """
    try:
        records = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UsageError(f"{path}: cannot be read as JSON: {e}") from e
    if not isinstance(records, list):
        raise UsageError(f"{path}: must hold a list of records")
    samples, problems = [], []
    for number, record in enumerate(records):
        try:
            samples.append(to_sample(record, AsWritten(), source=str(path), number=number))
        except SampleError as e:
            problems.append(f"{path}: record {number}: {e.what}")
    if problems:
        raise UsageError("\n".join(problems[:10]) + (f"\n... {len(problems)} in all" if len(problems) > 10 else ""))
    return samples


def _turns(said: Any) -> tuple[tuple[str, str], ...]:
    """(question, answer) of each turn.

    An answer before the first question is left out, as in the original (texts of ShareGPT begin so).
    """
    if not isinstance(said, list) or not all(isinstance(s, dict) for s in said):
        raise SampleError("bad_record", "`conversations` must be a list of turns")
    words = [(_text(s, "from"), _text(s, "value", empty=True)) for s in said]
    if unknown := {who for who, _ in words} - {"human", "gpt"}:
        raise SampleError("bad_roles", f"turns are by human and gpt, not by {', '.join(sorted(unknown))}")
    if words and words[0][0] == "gpt":
        words = words[1:]
    if not words:
        raise SampleError("answerless", "`conversations` holds no question with an answer")
    if any(who != ("human", "gpt")[i % 2] for i, (who, _) in enumerate(words)):
        raise SampleError("bad_roles", "the turns must alternate human, gpt")
    if len(words) % 2:
        raise SampleError("answerless", f"question {len(words) // 2 + 1} has no answer")
    for i, (_, answer) in enumerate(words[1::2]):
        if not answer.strip():
            raise SampleError("answerless", f"answer {i + 1} is empty")
    return tuple((q, a) for (_, q), (_, a) in zip(words[::2], words[1::2], strict=True))


def _question_and_answer(record: dict[str, Any], *, behind: bool) -> tuple[tuple[str, str], ...]:
    answer = _text(record, "a", empty=True)
    if not answer.strip():
        raise SampleError("answerless", "the answer `a` is empty")
    question = _text(record, "q", empty=True)
    return ((f"{question}\n<video>" if behind else f"<video>\n{question}", answer),)


def _llava_media(record: dict[str, Any], locator: Locator, turns: object) -> dict[MediaKind, list[MediaRef]]:
    images = [MediaRef(locator.file(name, _coco(name)), "image") for name in _names(record, "image")]
    videos = []
    for name in _names(record, "video"):
        # Video-ChatGPT's own training file names what it calls features; the clip has the same name.
        path = locator.by_id(Path(name).stem) if name.endswith(".pkl") else locator.file(name)
        videos.append(MediaRef(path, "video"))
    return {"image": images, "video": videos}


def _valley_media(record: dict[str, Any], locator: Locator, turns: object) -> dict[MediaKind, list[MediaRef]]:
    folder = str(record.get("source", "webvid"))  # as Valley's own reader has it
    start, end = _span(record)
    videos = []
    for name in _names(record, "video"):
        with_suffix = [name] if Path(name).suffix.lower() == ".mp4" else [name, f"{name}.mp4"]
        path = locator.file(*(f"{folder}/{n}" for n in with_suffix), *with_suffix)
        is_cut = Path(name).stem == record.get("v_id")
        videos.append(MediaRef(path, "video") if is_cut else MediaRef(path, "video", start, end))
    images = [MediaRef(locator.file(name, _coco(name)), "image") for name in _names(record, "image")]
    return {"image": images, "video": videos}


def _span(record: dict[str, Any]) -> tuple[float | None, float | None]:
    """The stretch that `v_id` means; none where it is a plain name."""
    found = _SPAN.fullmatch(str(record.get("v_id", "")))
    if not found:
        return None, None
    start, end = float(found[2]), float(found[3])
    if end <= start:
        raise SampleError("bad_span", f"v_id {found[0]}: the stretch ends at {end:g} s and begins at {start:g} s")
    return start, end


def _in_order_of_tags(
    turns: tuple[tuple[str, str], ...], media: dict[MediaKind, list[MediaRef]]
) -> tuple[MediaRef, ...]:
    """Each tag takes the next medium of its kind, so that the order of the two lists in the record plays no part."""
    tags = [tag for question, _ in turns for tag in _TAG.findall(question)]
    for kind in ("image", "video"):
        if tags.count(kind) != len(media[kind]):
            asked = f"{tags.count('image')} <image> and {tags.count('video')} <video> tags"
            there = f"{len(media['image'])} pictures and {len(media['video'])} clips"
            raise SampleError("placeholder_mismatch", f"{asked} in the questions for {there}")
    left = {kind: iter(refs) for kind, refs in media.items()}
    return tuple(next(left[tag]) for tag in tags)


def _names(record: dict[str, Any], key: str) -> list[str]:
    value = record.get(key, [])
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(n, str) and n and "\0" not in n for n in names):
        raise SampleError("bad_record", f"`{key}` must be a path or a list of paths")
    return [_unicode(n, key) for n in names]


def _coco(name: str) -> str:
    """COCO's pictures of 2014 carry a prefix that the records leave out."""
    path = Path(name)
    return (path.parent / f"COCO_train2014_{path.name}").as_posix()


def _text(record: dict[str, Any], key: str, *, empty: bool = False) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not (value or empty):
        raise SampleError("bad_record", f"`{key}` must be a text")
    return _unicode(value, key)


def _unicode(text: str, key: str) -> str:
    """JSON can spell half a character (`\\ud83d` alone), which no tokenizer and no table takes."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise SampleError("bad_record", f"`{key}` holds half of a character at {e.start}") from e
    return text
