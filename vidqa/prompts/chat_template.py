"""Conversations through the chat template of a tokenizer.

The template never sees the text of users: it renders a mark for each message, and the text replaces the marks. So text
cannot change what a template does, and the exact spans of the users' text are available. Templates that would drop or
change messages are found with a sample dialogue and refused.

A template that prints today's date gets `TEMPLATE_DATE`, because a prompt must not change from day to day.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Collection, Sequence
from datetime import datetime

from vidqa.errors import UsageError
from vidqa.prompts.chat_formats import MEDIA, RenderedText, Turn, check_turns
from vidqa.prompts.plain_text import Tokenizer

TEMPLATE_DATE = datetime(2024, 7, 26)
"""The date of every prompt: the one that Llama 3.1's template has where no date is available."""

_CODES = {f"%{code}": TEMPLATE_DATE.strftime(f"%{code}") for code in "aAbBcdFHIjmMpSUwWxXyY"}
_CODES |= {f"%-{code}": str(int(_CODES[f"%{code}"])) for code in "dHIjmMS"} | {"%e": "26"}
#: Replaces the function of transformers that returns the real date. Jinja drops the line break after a block.
_CLOCK = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('{code}', '{text}')" for code, text in _CODES.items())
    + " }}{% endmacro %}\n"
)
_MARK = re.compile(f"{MEDIA}(\\d+){MEDIA}")
#: Roles whose content is a list of parts instead of a string. Most templates accept strings.
_PART_ROLES: tuple[Collection[str], ...] = ((), ("system", "user", "assistant"), ("user",))
#: Text that templates must not change, long enough for one that truncates.
_PROBE = "It's  \"Red & Blue\" in <b>TWO</b> {lines} (100 %),\n\tisn't it? \u00c0 propos:\\n 3 < 4. " * 60
_MAX_REASON = 200


def chat_template(tokenizer: Tokenizer) -> ChatTemplate:
    """Return the chat template of a tokenizer; it is probed once."""
    found = _TEMPLATES.get(tokenizer)
    if found is None:
        found = _TEMPLATES[tokenizer] = ChatTemplate(tokenizer)
    return found


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: it is not kept alive by this object.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = weakref.proxy(tokenizer)
        self._part_roles = next((roles for roles in _PART_ROLES if self._probe("", roles) is None), ())

    def problem(self, system: str) -> str | None:
        """Return why the template cannot be used, as a phrase; None if it can.

        Args:
            system: the system prompt; may be empty.
        """
        if problem := self._probe("", self._part_roles):
            return problem
        if system and (problem := self._probe(system, self._part_roles)):
            return f"with a system prompt, {problem}"
        return None

    def training_problem(self, system: str) -> str | None:
        """Return why the template cannot be used for training, as a phrase; None if it can.

        Args:
            system: the system prompt; may be empty.
        """
        if problem := self.problem(system):
            return problem
        try:
            self.render_answered(system, [(f"Question {n}?", f"Answer {n}.") for n in range(3)])
        except UsageError as error:
            return error.what
        return None

    def render(self, system: str, turns: Sequence[Turn]) -> RenderedText:
        """Return a conversation as text, without the spans of its answers.

        Args:
            system: the system prompt; may be empty.
            turns: questions and answers; the last answer may be missing.

        Raises:
            ValueError: a turn before the last has no answer.
            UsageError: the template fails, or drops or repeats a message of this conversation.
        """
        check_turns(turns)
        messages, texts = _messages(system, turns)
        is_open = bool(turns) and not turns[-1][1]
        return _fill(self._apply(messages, is_open, self._part_roles), texts)

    def render_answered(self, system: str, turns: Sequence[Turn]) -> RenderedText:
        """Return a conversation for training, with the spans of its answers.

        Args:
            system: the system prompt; may be empty.
            turns: questions and answers, none empty.

        Raises:
            UsageError: as `render`; or the text of the first turns is not the start of the whole text, or an answer
                does not directly follow the text that the model is given, or nothing ends it.
        """
        messages, texts = _messages(system, turns)
        whole = self._apply(messages, False, self._part_roles)
        out = _fill(whole, texts)
        n_before = len(messages) - 2 * len(turns)
        for number in range(len(turns)):
            n = n_before + 2 * number + 1
            given = self._apply(messages[:n], True, self._part_roles)
            # Templates end a turn with white space that the model does not generate.
            answered = self._apply(messages[: n + 1], False, self._part_roles).rstrip()
            if not whole.startswith(given) or not whole.startswith(answered):
                raise UsageError(f"turn {number + 1} is written differently once another turn follows")
            before, _, end = whole[len(given) : len(answered)].partition(f"{MEDIA}{n}{MEDIA}")
            if before.strip():
                raise UsageError(f"{before.strip()[:60]!r} is between the prompt and the answer")
            if not end or MEDIA in end:
                raise UsageError("nothing marks the end of an answer")
            start, end_of_answer = (len(_fill(text, texts, complete=False).text) for text in (given, answered))
            out.answers.append((start, end_of_answer))
        return out

    def _probe(self, system: str, part_roles: Collection[str]) -> str | None:
        """Render a dialogue of ordinary text; return what is wrong with the result, as a phrase, or None."""
        turns = [(f"First. {_PROBE}One", f"Second. {_PROBE}Two"), (f"Third. {_PROBE}Three", None)]
        for some in (turns[1:], turns):
            messages = _messages(system, some)[0]
            texts = [*([system.strip()] if system else []), *(text for turn in some for text in turn if text)]
            plain = [message | {"content": text} for message, text in zip(messages, texts, strict=True)]
            try:
                rendered = self._apply(plain, True, part_roles)
                _fill(self._apply(messages, True, part_roles), _messages(system, some)[1])
            except UsageError as error:
                return error.what
            for message, text in zip(messages, texts, strict=True):
                if rendered.count(text) != 1:
                    return f"it drops or changes the text of the {message['role']}"
        return None

    def _apply(self, messages: Sequence[dict[str, str]], add_generation_prompt: bool, roles: Collection[str]) -> str:
        conversation = [
            message | {"content": [{"type": "text", "text": message["content"]}]}
            if message["role"] in roles
            else message
            for message in messages
        ]
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    conversation,
                    chat_template=_CLOCK + self._tokenizer.get_chat_template(),
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    date_string=TEMPLATE_DATE.strftime("%d %b %Y"),
                )
            )
        except Exception as error:  # a template is a program, and may fail in any way
            raise UsageError(f"it fails: {str(error)[:_MAX_REASON]}") from error


_TEMPLATES: weakref.WeakKeyDictionary[Tokenizer, ChatTemplate] = weakref.WeakKeyDictionary()


def _messages(system: str, turns: Sequence[Turn]) -> tuple[list[dict[str, str]], list[tuple[str, bool]]]:
    """Return messages whose text is replaced by marks, and by number of the mark the text and whether a user wrote it.

    White space around a text stays where it is, because most templates remove it.
    """
    written = [("system", system)] if system else []
    for question, answer in turns:
        written += [("user", question), *([("assistant", answer)] if answer else [])]
    messages, texts = [], []
    for number, (role, text) in enumerate(written):
        core = text.strip()
        content = text.replace(core, f"{MEDIA}{number}{MEDIA}", 1) if core else text
        messages.append({"role": role, "content": content})
        texts.append((core, role != "system"))
    return messages, texts


def _fill(rendered: str, texts: Sequence[tuple[str, bool]], complete: bool = True) -> RenderedText:
    """Replace the marks in a rendered conversation by their text.

    Args:
        rendered: the result of the template.
        texts: from `_messages`.
        complete: whether all messages must be in the result.

    Raises:
        UsageError: a message is missing, repeated or in the wrong position.
    """
    out = RenderedText()
    parts = _MARK.split(rendered)
    numbers = [int(number) for number in parts[1::2]]
    for part, number in zip(parts[::2], [*numbers, None], strict=True):
        out.add(part)
        if number is not None and texts[number][1]:
            out.add_user_text(texts[number][0])
        elif number is not None:
            out.add(texts[number][0])
    expected = [number for number, (text, _) in enumerate(texts) if text]
    by_users = [number for number in numbers if texts[number][1]]  # some templates move the system prompt
    if complete and (sorted(numbers) != expected or by_users != sorted(by_users)):
        raise UsageError("it drops, repeats or reorders messages")
    return out
