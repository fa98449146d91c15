"""Chat formats as data: question-answer turns -> the text that a published model was trained with.

Rendering matches the original code character by character, including its quirks: an empty answer counts as an open
turn.

Sources: Video-LLaVA 984e65b videollava/conversation.py, Video-ChatGPT 659e04b video_chatgpt/video_conversation.py,
Valley 83d794f valley/model/valley_model.py (build_inputs, process_response) and valley/util/data_util.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

Turn = tuple[str, str | None]
"""Question and answer. The answer of the last turn is None if the model is to generate it."""

MEDIA = "\0"
"""Stands for an image or a video in the text of a conversation. Users cannot write this character."""

_USER = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_HUMAN = _USER.replace("user", "human")
_VIDEO_CHATGPT = (
    "You are Video-ChatGPT, a large vision-language assistant. "
    "You are able to understand the video content that the user provides, and assist the user with a variety of tasks "
    "using natural language."
    "Follow the instructions carefully and explain your answers in detail based on the provided video."
)
_VALLEY = (
    "You are Valley, a large language and vision assistant trained by ByteDance. "
    "You are able to understand the visual content or video that the user provides, and assist the user with a variety "
    "of tasks using natural language. "
    "Follow the instructions carefully and explain your answers in detail."
)


class SpecialTokens(NamedTuple):
    """Special tokens around one run of visual tokens, and the placeholder token that stands for each of them."""

    before: str
    patch: str
    after: str


@dataclass(frozen=True)
class ChatFormat:
    """Text form of a conversation.

    A turn is `{user}: {question}{user_end}{assistant}: {answer}{answer_end}`; an open turn ends with `{assistant}:`.

    Attributes:
        name: name of the format in bundles and recipes.
        kind: `roles` as above, after `system` and `system_end`; `plain` for an image followed by its caption, without
            roles (first training stage); `template` for the chat template of the LLM's tokenizer, which ignores the
            other text fields.
        system: system prompt.
        system_end: text after it.
        user: role name before a question.
        assistant: role name before an answer.
        user_end: text after a question.
        answer_end: text after an answer.
        media: how visual tokens are inserted. `split`: the text is cut at each media item, and the pieces are tokenized
            separately (the original models). `placeholder`: each media item is a token `<image>` or `<video>` of the
            vocabulary (the transformers port). `special_tokens`: each run of visual tokens is enclosed in special
            tokens, and the text is tokenized as a whole (Video-ChatGPT, Valley).
        stop: strings that end an answer, for models without an end token for it.
        special_tokens: special tokens of each run (`media="special_tokens"`).
        question_first: whether the media come after the first question instead of before it.
        role_in_prompt: whether an open turn ends with `{assistant}:`; otherwise the model generates it, and it is
            removed from the answer.
        answer_prefixes: strings that are removed from the start of an answer, in any order and number.
    """

    name: str
    kind: Literal["roles", "plain", "template"] = "roles"
    system: str = ""
    system_end: str = ""
    user: str = "USER"
    assistant: str = "ASSISTANT"
    user_end: str = " "
    answer_end: str = "</s>"
    media: Literal["split", "placeholder", "special_tokens"] = "split"
    stop: tuple[str, ...] = ()
    special_tokens: tuple[SpecialTokens, ...] = ()
    question_first: bool = False
    role_in_prompt: bool = True
    answer_prefixes: tuple[str, ...] = ()

    def media_text(self, runs: Sequence[int]) -> str:
        """Return the text of a media item: the placeholders of its visual tokens, enclosed in special tokens.

        Args:
            runs: length of each run of visual tokens.

        Raises:
            ValueError: the format has special tokens for another number of runs.
        """
        if len(runs) != len(self.special_tokens):
            raise ValueError(
                f"chat format {self.name} has special tokens for {len(self.special_tokens)} runs, not {len(runs)}"
            )
        return "".join(f"{m.before}{m.patch * n}{m.after}" for m, n in zip(self.special_tokens, runs, strict=True))


_V1 = ChatFormat("v1", system=_USER, system_end=" ")
_V0 = ChatFormat(
    "llava_v0",
    system=_HUMAN,
    system_end="###",
    user="Human",
    assistant="Assistant",
    user_end="###",
    answer_end="###",
    stop=("###",),
)

_CHATGPT = replace(
    _V1,
    name="vicuna_v1_1",
    media="special_tokens",
    special_tokens=(SpecialTokens("<vid_start>", "<vid_patch>", "<vid_end>"),),
    question_first=True,
)
# The format of Valley's training data; the published code uses another one for inference, see `valley` below.
_VALLEY_TRAINING = replace(
    _V0,
    name="valley_tuned",
    system_end="\n\n### ",
    user_end="\n### ",
    answer_end="\n### ",
    media="special_tokens",
    special_tokens=(
        SpecialTokens("<im_start>", "<im_patch>", "<im_end>"),
        SpecialTokens("<vi_start>", "<vi_frame>", "<vi_end>"),
    ),
    question_first=True,
    answer_prefixes=("###", "Assistant:", "Assistent:", "Response:", "Valley:"),
)

#: All chat formats by name.
FORMATS: dict[str, ChatFormat] = {
    f.name: f
    for f in (
        _V1,
        replace(_V1, name="vicuna_v1"),
        replace(_V1, name="llava_v1", system=_HUMAN),
        _V0,
        ChatFormat("plain", kind="plain", user_end="\n", answer_end="\n", stop=("\n",)),
        ChatFormat("hf", media="placeholder"),
        _CHATGPT,  # the format of Video-ChatGPT's training data; the published code uses the next one for inference
        replace(_CHATGPT, name="video-chatgpt_v1", system=_VIDEO_CHATGPT),
        _VALLEY_TRAINING,
        replace(
            _VALLEY_TRAINING,
            name="valley",
            system=_VALLEY,
            system_end="\n\n###",
            user=" Human",
            assistant=" Assistent",  # the spelling of the original
            user_end=" \n###",
            answer_end=" \n###",
            role_in_prompt=False,
        ),
        ChatFormat("chat_template", kind="template", user_end="", answer_end=""),
    )
}


def get_format(name: str, system: str | None = None) -> ChatFormat:
    """Return a chat format by name.

    Args:
        name: a key of `FORMATS`.
        system: replaces the system prompt of the format; None keeps it, "" removes it.

    Raises:
        ValueError: unknown name, or a system prompt for a format without one.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown chat format {name!r}; valid: {', '.join(FORMATS)}")
    chat = FORMATS[name]
    if system is None:
        return chat
    if chat.kind == "plain" and system:
        raise ValueError(f"chat format {name!r} has no system prompt")
    return replace(chat, system=system, system_end=(chat.system_end or " ") if chat.kind == "roles" else "")


@dataclass
class RenderedText:
    """A conversation as text. Spans are (start, end) in characters, in ascending order and not empty."""

    text: str = ""
    #: The answers to train on: from after the assistant's colon (from its role name if the model generates that) to the
    #: end of `answer_end`.
    answers: list[tuple[int, int]] = field(default_factory=list)
    #: The questions and answers themselves, without the media in them; the rest is the format's own text.
    user_text: list[tuple[int, int]] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Append text of the format."""
        self.text += text

    def add_user_text(self, text: str) -> None:
        """Append a question or an answer, in which `MEDIA` stands for an image or a video."""
        for i, part in enumerate(text.split(MEDIA)):
            self.text += MEDIA if i else ""
            if part:
                self.user_text.append((len(self.text), len(self.text) + len(part)))
                self.text += part


def render(chat: ChatFormat, turns: Sequence[Turn]) -> RenderedText:
    """Return a conversation as text.

    Args:
        chat: any format except `chat_template`, which only a tokenizer can render.
        turns: questions and answers; None or "" as the last answer leaves the turn open.

    Raises:
        ValueError: a turn before the last has no answer, or `plain` is used with an answer (only training texts have
            captions, see `vidqa.prompts.build.build_labels`).
    """
    check_turns(turns)
    if chat.kind == "template":
        raise ValueError("the format chat_template is rendered by the tokenizer")
    out = RenderedText()
    if chat.kind == "plain":
        if any(answer for _, answer in turns):
            raise ValueError("the format plain does not support answered questions")
        for question in (question for question, _ in turns if question):
            out.add_user_text(question)
            out.add(chat.user_end)
        return out
    out.add(chat.system + chat.system_end if chat.system else "")
    for question, answer in turns:
        out.add(f"{chat.user}:")
        if question:
            out.add(" ")
            out.add_user_text(question)
            out.add(chat.user_end)
        start = len(out.text)
        if chat.role_in_prompt or answer:
            out.add(f"{chat.assistant}:")
        if answer:
            start = len(out.text) if chat.role_in_prompt else start
            out.add(" ")
            out.add_user_text(answer)
            out.add(chat.answer_end)
            out.answers.append((start, len(out.text)))
    return out


def check_turns(turns: Sequence[Turn]) -> None:
    """Check that only the last turn is open.

    Args:
        turns: questions and answers.

    Raises:
        ValueError: an earlier answer is None.
    """
    for i, (_, answer) in enumerate(turns[:-1]):
        if answer is None:
            raise ValueError(f"turn {i + 1} of {len(turns)} has no answer; only the last turn may be open")
