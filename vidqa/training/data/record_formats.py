"""Record -> sample. The published layout of a record is detected by its keys.

- LLaVA and Video-LLaVA: `conversations` with `image`, `video` (a path or a list of paths), both, or neither.
- Valley: `conversations` with `video`, `source` and `v_id`; a record of VATEX names the complete video, and `v_id` has
  the segment in seconds (which its authors cut out).
- VideoInstruct100K: `q`, `a` and `video_id`; the video is found by its id, with any suffix. It precedes the question;
  in the format `video_chatgpt` it follows every second question, as in the training file of that model.
- Chat: `messages`, as OpenAI and Hugging Face publish them (chat_records.py).

References: Video-LLaVA 984e65b train.py, Valley 83d794f data_util.py and its issue 20, Video-ChatGPT 659e04b
convert_instruction_json_to_training_format.py.

Scope: records and tags. Media are not opened; a `Locator` finds their paths.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal, Protocol

from vidqa.common.display import plural
from vidqa.errors import UsageError
from vidqa.records import MediaKind
from vidqa.training.data.chat_records import TAG, local_path, read_messages
from vidqa.training.data.sample import MediaRef, Sample, SampleError

Format = Literal["auto", "llava", "valley", "videoinstruct", "video_chatgpt", "chat"]
FORMATS: tuple[Format, ...] = ("auto", "llava", "valley", "videoinstruct", "video_chatgpt", "chat")

#: v_id in Valley: the eleven characters of a YouTube id, then start and end of the segment in seconds.
_SPAN = re.compile(r"(.{11})_(\d{6})_(\d{6})")


class Locator(Protocol):
    """Finds the media files that records name."""

    def file(self, *names: str) -> str:
        """Return the path of the first name that is a file in the media folder."""
        ...

    def by_id(self, video_id: str) -> str:
        """Return the path of the video with this name and any suffix."""
        ...


class AsWritten:
    """A locator that returns names as they are, for callers that find the media themselves."""

    def file(self, *names: str) -> str:
        """Return the first name."""
        return names[0]

    def by_id(self, video_id: str) -> str:
        """Return the id."""
        return video_id


def to_sample(record: Any, locator: Locator, *, source: str, number: int, format: Format = "auto") -> Sample:
    """Convert one record to a sample.

    Args:
        record: parsed JSON.
        locator: finds media files.
        source: path of the file, stored in the sample.
        number: index of the record in the file.
        format: the layout; `auto` detects it by the keys.

    Raises:
        SampleError: the record cannot be trained on, for the reason in `kind`.
    """
    if not isinstance(record, dict):
        raise SampleError("bad_json", f"a record must be an object, not {type(record).__name__}")
    record = {k: v for k, v in record.items() if v is not None}  # in Parquet, missing keys are null
    layout = format_of(record) if format == "auto" else format
    if layout == "chat":
        return _chat_sample(record, locator, source, number)
    media: dict[MediaKind, list[MediaRef]]
    name = str(record.get("id", number))
    if layout in ("videoinstruct", "video_chatgpt"):
        name = str(record.get("id", record.get("video_id", number)))
        turns = _question_and_answer(record, media_last=layout == "video_chatgpt" and number % 2 == 0)
        media = {"image": [], "video": [MediaRef(locator.by_id(_text(record, "video_id")), "video")]}
    else:
        turns = _turns(record.get("conversations"))
        find = _valley_media if layout == "valley" else _llava_media
        media = find(record, locator, turns)
    return Sample(name, _in_order_of_tags(turns, media), turns, source, number)


def format_of(record: dict[str, Any]) -> Format:
    """Detect the layout of a record by its keys.

    Raises:
        SampleError: the layout is unknown.
    """
    if "conversations" in record:
        return "valley" if "video" in record and ("v_id" in record or "source" in record) else "llava"
    if "messages" in record:
        return "chat"
    if {"q", "a", "video_id"} <= record.keys():
        return "videoinstruct"
    keys = ", ".join(sorted(map(str, record))[:8]) or "none"
    expected = "`conversations`, `messages`, or `q`, `a` and `video_id`"
    raise SampleError("bad_record", f"expected the keys {expected}; found {keys}")


def read_conversations(path: str | Path) -> list[Sample]:
    """Read all samples of a small JSON file into memory, with media paths as in the file.

    Raises:
        UsageError: the file cannot be read, or records are malformed; the message has the first ten.
    """
    try:
        records = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UsageError(f"{path}: not readable as JSON: {e}") from e
    if not isinstance(records, list):
        raise UsageError(f"{path}: must contain a list of records")
    samples, problems = [], []
    for number, record in enumerate(records):
        try:
            samples.append(to_sample(record, AsWritten(), source=str(path), number=number))
        except SampleError as e:
            problems.append(f"{path}: record {number}: {e.what}")
    if problems:
        raise UsageError("\n".join(problems[:10]) + (f"\n... {len(problems)} in total" if len(problems) > 10 else ""))
    return samples


def _turns(conversation: Any) -> tuple[tuple[str, str], ...]:
    """Return (question, answer) of each turn.

    An answer before the first question is skipped, as in Video-LLaVA: texts of ShareGPT start with one.
    """
    if not isinstance(conversation, list) or not all(isinstance(message, dict) for message in conversation):
        raise SampleError("bad_record", "`conversations` must be a list of turns")
    messages = [(_text(message, "from"), _text(message, "value", empty=True)) for message in conversation]
    if unknown := {role for role, _ in messages} - {"human", "gpt"}:
        raise SampleError("bad_roles", f"roles must be human and gpt, not {', '.join(sorted(unknown))}")
    if messages and messages[0][0] == "gpt":
        messages = messages[1:]
    return _pairs(messages, "human, gpt")


def _chat_sample(record: dict[str, Any], locator: Locator, source: str, number: int) -> Sample:
    messages, named = read_messages(record)
    turns = _pairs([(role, _unicode(text, "content")) for role, text in messages], "user, assistant")
    media = [
        MediaRef(_find(locator, _unicode(one.name, one.kind), one.kind), one.kind, one.start_s, one.end_s)
        for one in named
    ]
    return Sample(str(record.get("id", number)), tuple(media), turns, source, number)


def _pairs(messages: list[tuple[str, str]], roles: str) -> tuple[tuple[str, str], ...]:
    """Return (question, answer) of each turn; `roles` is their names in the record, for messages."""
    if not messages:
        raise SampleError("answerless", "the record contains no question with an answer")
    if any(role != ("human", "gpt")[i % 2] for i, (role, _) in enumerate(messages)):
        raise SampleError("bad_roles", f"the turns must alternate {roles}")
    if len(messages) % 2:
        raise SampleError("answerless", f"question {len(messages) // 2 + 1} has no answer")
    for i, (_, answer) in enumerate(messages[1::2]):
        if not answer.strip():
            raise SampleError("answerless", f"answer {i + 1} is empty")
    return tuple((q, a) for (_, q), (_, a) in zip(messages[::2], messages[1::2], strict=True))


def _question_and_answer(record: dict[str, Any], *, media_last: bool) -> tuple[tuple[str, str], ...]:
    answer = _text(record, "a", empty=True)
    if not answer.strip():
        raise SampleError("answerless", "the answer `a` is empty")
    question = _text(record, "q", empty=True)
    return ((f"{question}\n<video>" if media_last else f"<video>\n{question}", answer),)


def _llava_media(record: dict[str, Any], locator: Locator, turns: object) -> dict[MediaKind, list[MediaRef]]:
    images = [MediaRef(_find(locator, name, "image"), "image") for name in _names(record, "image")]
    videos = []
    for name in _names(record, "video"):
        # The training file of Video-ChatGPT names feature files; the videos have the same names.
        path = locator.by_id(Path(name).stem) if name.endswith(".pkl") else locator.file(name)
        videos.append(MediaRef(path, "video"))
    return {"image": images, "video": videos}


def _valley_media(record: dict[str, Any], locator: Locator, turns: object) -> dict[MediaKind, list[MediaRef]]:
    folder = str(record.get("source", "webvid"))  # the default of Valley's own reader
    start, end = _span(record)
    videos = []
    for name in _names(record, "video"):
        with_suffix = [name] if Path(name).suffix.lower() == ".mp4" else [name, f"{name}.mp4"]
        path = locator.file(*(f"{folder}/{n}" for n in with_suffix), *with_suffix)
        is_cut = Path(name).stem == record.get("v_id")
        videos.append(MediaRef(path, "video") if is_cut else MediaRef(path, "video", start, end))
    images = [MediaRef(_find(locator, name, "image"), "image") for name in _names(record, "image")]
    return {"image": images, "video": videos}


def _span(record: dict[str, Any]) -> tuple[float | None, float | None]:
    """Return start and end in seconds of the segment in `v_id`; (None, None) if it is a plain name."""
    found = _SPAN.fullmatch(str(record.get("v_id", "")))
    if not found:
        return None, None
    start, end = float(found[2]), float(found[3])
    if end <= start:
        raise SampleError("bad_span", f"v_id {found[0]}: the segment ends at {end:g} s but starts at {start:g} s")
    return start, end


def _in_order_of_tags(
    turns: tuple[tuple[str, str], ...], media: dict[MediaKind, list[MediaRef]]
) -> tuple[MediaRef, ...]:
    """Match each tag with the next media item of its kind: videos and images are separate lists in a record."""
    tags = [tag for question, _ in turns for tag in TAG.findall(question)]
    for kind in ("image", "video"):
        if tags.count(kind) != len(media[kind]):
            in_questions = f"{tags.count('image')} <image> and {tags.count('video')} <video> tags"
            in_record = f"{plural(len(media['image']), 'image')} and {plural(len(media['video']), 'video')}"
            raise SampleError("placeholder_mismatch", f"{in_questions} in the questions for {in_record}")
    remaining = {kind: iter(refs) for kind, refs in media.items()}
    return tuple(next(remaining[tag]) for tag in tags)


def _names(record: dict[str, Any], key: str) -> list[str]:
    value = record.get(key, [])
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(n, str) and n and "\0" not in n for n in names):
        raise SampleError("bad_record", f"`{key}` must be a path or a list of paths")
    return [local_path(_unicode(n, key)) for n in names]


def _find(locator: Locator, name: str, kind: MediaKind) -> str:
    """Return the path of a media file; images of COCO are also found under their original names."""
    return locator.file(name, _coco(name)) if kind == "image" else locator.file(name)


def _coco(name: str) -> str:
    """Return the file name of a COCO 2014 image: records omit its prefix."""
    path = Path(name)
    return (path.parent / f"COCO_train2014_{path.name}").as_posix()


def _text(record: dict[str, Any], key: str, *, empty: bool = False) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not (value or empty):
        raise SampleError("bad_record", f"`{key}` must be a string")
    return _unicode(value, key)


def _unicode(text: str, key: str) -> str:
    """Reject unpaired surrogates, such as U+D83D alone: JSON allows them, tokenizers and tables do not."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise SampleError("bad_record", f"`{key}` contains an unpaired surrogate at {e.start}") from e
    return text
