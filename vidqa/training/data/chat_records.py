"""Records with `messages`, as OpenAI and Hugging Face publish them -> (role, text) of each turn, and the media named.

    {"messages": [
      {"role": "system", "content": "Answer briefly."},
      {"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Where is this?"}]},
      {"role": "assistant", "content": "In a park."}]}

The result has the form of LLaVA's layout: one `<image>` or `<video>` tag in the text per media item. `content` is a
string, or a list of parts:

- OpenAI: `text`; `image_url` with `{"url": ...}` (vLLM: also `video_url`).
- transformers and Qwen: `text`; `image` and `video` with the path in a key of the same name, or in `url` or `path`, and
  `video_start` and `video_end` in seconds.
- TRL, LLaMA-Factory: parts without a path, or tags in the text, take the next item of the record's lists `images` and
  `videos`. If there are neither parts nor tags, all items come before the first question.

Scope: records and names. Files are not looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from vidqa.common.display import plural
from vidqa.records import MediaKind
from vidqa.training.data.sample import SampleError

TAG = re.compile("<(image|video)>")
_KINDS: tuple[MediaKind, ...] = ("image", "video")
#: Role in a record -> that in LLaVA's layout; OpenAI renamed `system` to `developer`.
_ROLES = {"system": "system", "developer": "system", "user": "human", "assistant": "gpt"}
_INLINE_DATA = ("base64", "data", "bytes")


@dataclass(frozen=True)
class NamedMedia:
    """A media item as a record names it, with the segment in seconds; None is the start or the end of the file."""

    kind: MediaKind
    name: str
    start_s: float | None = None
    end_s: float | None = None


def read_messages(record: dict[str, Any]) -> tuple[list[tuple[str, str]], list[NamedMedia]]:
    """Return (`human` or `gpt`, text) of each message, and the media in the order of the tags in the questions.

    A system message is put in front of the first question, as in chat templates without a system turn.

    Raises:
        SampleError: the record cannot be trained on, for the reason in `kind`.
    """
    messages = record.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise SampleError("bad_record", "`messages` must be a list of objects with `role` and `content`")
    reader = _Reader(record)
    system: list[str] = []
    turns: list[tuple[str, str]] = []
    for message in messages:
        role = _ROLES.get(str(message.get("role")))
        if role is None:
            found = message.get("role")
            raise SampleError("bad_roles", f"roles must be system, user and assistant, not {found!r:.80}")
        if role == "system" and turns:
            raise SampleError("bad_roles", "a system message must precede the first question")
        _check_message(message)
        text = reader.text(message.get("content"), is_question=role == "human")
        if role == "system":
            if TAG.search(text):
                raise SampleError("placeholder_mismatch", "a system message must not contain <image> or <video>")
            system.append(text)
        else:
            turns.append((role, text))
    questions = [i for i, (role, _) in enumerate(turns) if role == "human"]
    if questions:
        first = questions[0]
        parts = [*(text for text in system if text), reader.leading_tags() + turns[first][1]]
        turns[first] = ("human", "\n\n".join(parts))
    return turns, reader.finish()


def local_path(name: str) -> str:
    """Return a name in a record as a path; a `file://` URL becomes one.

    Raises:
        SampleError: `media_remote`; it is another URL, or inline data.
    """
    if name.startswith("data:"):
        raise SampleError("media_remote", f"{name[:40]}...: inline data is not read; save it as a file")
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
        return name
    try:
        url = urlsplit(name)
    except ValueError:  # for example an invalid IPv6 address
        url = urlsplit("invalid://")
    if url.scheme.lower() == "file" and url.netloc in ("", "localhost"):
        return url2pathname(url.path)
    raise SampleError("media_remote", f"{name:.200}: only local files are read; download it and name the file")


class _Reader:
    """Collects the media of one record."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.listed = {kind: _listed_names(record, kind) for kind in _KINDS}
        self.n_listed = {kind: len(names) for kind, names in self.listed.items()}
        self.media: list[NamedMedia] = []

    def text(self, content: Any, is_question: bool) -> str:
        """Return the text of a message, with a tag for each media item."""
        if content is None:
            return ""
        if isinstance(content, str):
            return self._with_listed(content) if is_question else content
        if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
            raise SampleError("bad_record", "`content` must be a string or a list of parts")
        pieces = [self._piece({k: v for k, v in part.items() if v is not None}, is_question) for part in content]
        text = ""
        for piece in pieces:
            text += "\n" + piece if text and not text.endswith("\n") and not piece.startswith("\n") else piece
        return text

    def leading_tags(self) -> str:
        """Return the tags of the listed media if no message has a tag or part for them."""
        if self.media:
            return ""
        tags = ""
        for kind in _KINDS:
            for _ in range(len(self.listed[kind])):
                self._take(kind)
                tags += f"<{kind}>\n"
        return tags

    def finish(self) -> list[NamedMedia]:
        """Return the media, once all listed ones are used."""
        if any(self.listed.values()):
            self._mismatch()
        return self.media

    def _piece(self, part: dict[str, Any], is_question: bool) -> str:
        type_ = part.get("type") or next((key for key in ("text", *_KINDS) if key in part), None)
        if type_ == "text":
            text = part.get("text")
            if not isinstance(text, str):
                raise SampleError("bad_record", "the key `text` of a text part must be a string")
            return self._with_listed(text) if is_question else text
        kind = str(type_).removesuffix("_url")
        if kind not in _KINDS:
            raise SampleError("bad_record", f"parts must be text, image or video, not {type_!r:.80}")
        if not is_question:
            raise SampleError("bad_record", "only user messages may contain images and videos")
        self._add(kind, part)
        return f"<{kind}>"

    def _add(self, kind: MediaKind, part: dict[str, Any]) -> None:
        """Add the media item of a part, or the next listed one if the part names none."""
        value = next((part[key] for key in (kind, f"{kind}_url", "url", "path") if key in part), None)
        if isinstance(value, dict):
            value = value.get("url") or value.get("path") or value
        if value is None and not any(key in part for key in _INLINE_DATA):
            return self._take(kind)
        if value is None or (isinstance(value, dict) and any(value.get(key) for key in _INLINE_DATA)):
            raise SampleError("media_remote", f"the {kind} part has inline data, which is not read; save it as a file")
        start_s, end_s = (_seconds(part, f"video_{edge}") for edge in ("start", "end"))
        if end_s is not None and end_s <= (start_s or 0.0):
            raise SampleError("bad_span", f"the segment ends at {end_s:g} s but starts at {start_s or 0:g} s")
        segment = (start_s, end_s) if kind == "video" else (None, None)
        self.media.append(NamedMedia(kind, _name(value, kind), *segment))

    def _with_listed(self, text: str) -> str:
        for kind in TAG.findall(text):
            self._take(kind)
        return text

    def _take(self, kind: MediaKind) -> None:
        if not self.listed[kind]:
            self._mismatch()
        self.media.append(NamedMedia(kind, self.listed[kind].pop(0)))

    def _mismatch(self) -> None:
        listed = " and ".join(plural(n, kind) for kind, n in self.n_listed.items())
        raise SampleError("placeholder_mismatch", f"the tags and parts without a path do not match the {listed} listed")


def _check_message(message: dict[str, Any]) -> None:
    for key in ("tool_calls", "function_call"):
        if message.get(key):
            raise SampleError("bad_record", f"`{key}` is not supported")
    if message.get("weight") not in (None, 1):
        raise SampleError("bad_record", "`weight` of a message must be 1: every answer is trained")


def _listed_names(record: dict[str, Any], kind: MediaKind) -> list[str]:
    return [_name(value, kind) for value in _values(record, (f"{kind}s", kind))]


def _values(record: dict[str, Any], keys: Sequence[str]) -> Iterator[Any]:
    for key in keys:
        value = record.get(key)
        yield from value if isinstance(value, list) else [] if value is None else [value]


def _name(value: Any, kind: MediaKind) -> str:
    if isinstance(value, dict):  # the feature types Image and Video of the datasets package
        if value.get("bytes"):
            raise SampleError("media_remote", f"the {kind} is inline data, which is not read; save it as a file")
        value = value.get("path")
    if not isinstance(value, str) or not value or "\0" in value:
        raise SampleError("bad_record", f"the path of an image or video must be a string, not {value!r:.80}")
    return local_path(value)


def _seconds(part: dict[str, Any], key: str) -> float | None:
    value = part.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise SampleError("bad_record", f"`{key}` must be a number of seconds, not {value!r:.80}")
    return float(value)
