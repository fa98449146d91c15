"""Chat formats as data: question-answer turns -> the text that a published model was tuned with.

Knows text. Does not know tokens, pixels or models. Rendering follows the originals to the character, oddities included:
an empty message counts as one that is still to be written.

Facts: Video-LLaVA 984e65b videollava/conversation.py, Video-ChatGPT 659e04b video_chatgpt/video_conversation.py, Valley
83d794f valley/model/valley_model.py (build_inputs, process_response) and valley/util/data_util.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

Turn = tuple[str, str | None]
"""Question and answer; the answer of the last turn is None while it is open."""

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
    """Special tokens of the vocabulary around one run of visual tokens, and the one that holds their places."""

    before: str
    patch: str
    after: str


@dataclass(frozen=True)
class ChatFormat:
    """How a dialogue is written.

    A turn is `{user}: {question}{user_end}{assistant}: {answer}{answer_end}`; an open one ends with `{assistant}:`.

    kind:
        `roles`: as above, after `system` and `system_end`.
        `plain`: no roles; a picture is followed by its caption (first tuning stage).
        `template`: the LLM's tokenizer brings its own chat template; the fields below are not used.
    media:
        `split`: text is cut at each medium and the pieces are tokenised apart (the original models).
        `tokens`: each medium is a special token of the vocabulary, `<image>` or `<video>` (the transformers port).
        `marks`: each run of visual tokens stands between special tokens, and a text is tokenised as a whole
        (Video-ChatGPT, Valley).
    question_first:
        The media stand behind the first question and not before it.
    role_in_prompt:
        An open turn ends with `{assistant}:`; else the model says that itself, and it is taken off its answer.
    """

    name: str
    kind: Literal["roles", "plain", "template"] = "roles"
    system: str = ""
    system_end: str = ""
    user: str = "USER"
    assistant: str = "ASSISTANT"
    user_end: str = " "
    answer_end: str = "</s>"
    media: Literal["split", "tokens", "marks"] = "split"
    stop: tuple[str, ...] = ()  # strings that end an answer where the model has no end token for it
    special_tokens: tuple[SpecialTokens, ...] = ()  # of each run
    question_first: bool = False
    role_in_prompt: bool = True
    answer_prefixes: tuple[str, ...] = ()  # what a model may put before its answer, in any order and number

    def media_text(self, runs: Sequence[int]) -> str:
        """What stands in the text for a medium with these runs of visual tokens (`marks` only).

        Raises:
            ValueError: the format has marks for another number of runs.
        """
        if len(runs) != len(self.special_tokens):
            raise ValueError(
                f"chat format {self.name} has marks for {len(self.special_tokens)} runs of tokens, not {len(runs)}"
            )
        return "".join(f"{m.before}{m.patch * n}{m.after}" for m, n in zip(self.special_tokens, runs, strict=True))

    @property
    def cue(self) -> str:
        """What stands before every answer; an answer that holds it cannot be told from a turn."""
        return f"{self.user_end}{self.assistant}: "


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
    media="marks",
    special_tokens=(SpecialTokens("<vid_start>", "<vid_patch>", "<vid_end>"),),
    question_first=True,
)
# What Valley was tuned with; it is asked otherwise, see below.
_VALLEY_TUNED = replace(
    _V0,
    name="valley_tuned",
    system_end="\n\n### ",
    user_end="\n### ",
    answer_end="\n### ",
    media="marks",
    special_tokens=(
        SpecialTokens("<im_start>", "<im_patch>", "<im_end>"),
        SpecialTokens("<vi_start>", "<vi_frame>", "<vi_end>"),
    ),
    question_first=True,
    answer_prefixes=("###", "Assistant:", "Assistent:", "Response:", "Valley:"),
)

#: Every chat format by its name, as bundles name it.
FORMATS: dict[str, ChatFormat] = {
    f.name: f
    for f in (
        _V1,
        replace(_V1, name="vicuna_v1"),
        replace(_V1, name="llava_v1", system=_HUMAN),
        _V0,
        ChatFormat("plain", kind="plain", user_end="\n", answer_end="\n", stop=("\n",)),
        ChatFormat("hf", media="tokens"),
        _CHATGPT,  # the one that Video-ChatGPT was tuned with; it is asked with the next
        replace(_CHATGPT, name="video-chatgpt_v1", system=_VIDEO_CHATGPT),
        _VALLEY_TUNED,
        replace(
            _VALLEY_TUNED,
            name="valley",
            system=_VALLEY,
            system_end="\n\n###",
            user=" Human",
            assistant=" Assistent",  # spelled so in the original
            user_end=" \n###",
            answer_end=" \n###",
            role_in_prompt=False,
        ),
        ChatFormat("chat_template", kind="template", user_end="", answer_end=""),
    )
}


def get_format(name: str, system: str | None = None) -> ChatFormat:
    """Look a format up.

    Args:
        name: a key of `FORMATS`.
        system: text to stand in place of the format's own system text; None keeps it, "" leaves it out.

    Raises:
        ValueError: unknown name, or a system text for a format that has no place for one.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown chat format {name!r}; known: {', '.join(FORMATS)}")
    chat = FORMATS[name]
    if system is None:
        return chat
    if chat.kind == "plain" and system:
        raise ValueError(f"chat format {name!r} has no place for a system text")
    return replace(chat, system=system, system_end=(chat.system_end or " ") if chat.kind == "roles" else "")


def render(chat: ChatFormat, turns: Sequence[Turn]) -> str:
    """Write a dialogue.

    Args:
        chat: any format but `chat_template`, which only a tokenizer can write.
        turns: questions and answers; None or "" as the last answer leaves the turn open.

    Raises:
        ValueError: a turn that is not the last has no answer, or `plain` is given an answer (a caption has no question:
            only training texts hold one, see `vidqa.prompts.build.build_labels`).
    """
    return render_spans(chat, turns)[0]


def render_spans(chat: ChatFormat, turns: Sequence[Turn]) -> tuple[str, list[tuple[int, int]]]:
    """Write a dialogue and say where its answers are.

    Returns:
        The text, and for each answered turn the character span from just behind the assistant's colon (from its name,
        where the model has to say that itself) to the end of the closing mark: what a model has to learn.

    Raises:
        ValueError: as `render`.
    """
    check_turns(turns)
    if chat.kind == "template":
        raise ValueError("the format chat_template is written by the tokenizer, not here")
    if chat.kind == "plain":
        if any(answer for _, answer in turns):
            raise ValueError("the format plain has no form for an answered question")
        return "".join(question + chat.user_end for question, _ in turns if question), []
    text = chat.system + chat.system_end if chat.system else ""
    spans = []
    for question, answer in turns:
        text += f"{chat.user}: {question}{chat.user_end}" if question else f"{chat.user}:"
        start = len(text)
        if chat.role_in_prompt or answer:
            text += f"{chat.assistant}:"
        if answer:
            start = len(text) if chat.role_in_prompt else start
            text += f" {answer}{chat.answer_end}"
            spans.append((start, len(text)))
    return text, spans


def check_turns(turns: Sequence[Turn]) -> None:
    """Only the last turn may be open.

    Raises:
        ValueError: an earlier answer is None.
    """
    for i, (_, answer) in enumerate(turns[:-1]):
        if answer is None:
            raise ValueError(f"turn {i + 1} of {len(turns)} has no answer; only the last turn may be open")
