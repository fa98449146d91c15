"""Questions: the name of a built-in set, a TOML file or the text of a question -> `Question` values.

[[question]]
id = "people"                    # column question_id; unique in a run
text = "How many people are there?"
type = "number"                  # text (default), yes_no, choice, number; currently all are answered as text
# choices = ["none", "a few"]    # only with type = "choice"
# max_new_tokens = 16            # overrides the model's default
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from vidqa.config.toml_lines import TomlFile, did_you_mean, dotted, read_toml
from vidqa.errors import UsageError
from vidqa.prompts.plain_text import check_text
from vidqa.records import MAX_ID_LENGTH, Question, QuestionType, text_problem

_FOLDER = Path(__file__).parent / "sets"
_TYPES: tuple[str, ...] = get_args(QuestionType)
#: Length of the words in the id of a question that is given as text.
_ID_WORDS_LENGTH = 40
#: What the name of a set looks like. Any other string is a TOML file or the text of a question.
_SET_NAME = re.compile(r"[A-Za-z0-9_.-]+")
#: Questions as callers pass them: names of built-in sets, TOML files, texts, or questions.
QuestionSources = str | os.PathLike[str] | Question | Iterable[str | os.PathLike[str] | Question]


def question_sets() -> tuple[str, ...]:
    """Return the names of the built-in question sets."""
    return tuple(sorted(p.stem for p in _FOLDER.glob("*.toml")))


def load_questions(name_or_file: str | os.PathLike[str]) -> tuple[Question, ...]:
    """Read a question set.

    Args:
        name_or_file: name of a built-in set (`caption`), or a file: a name that ends in .toml or contains a folder.

    Returns:
        The questions in the order of the file, at least one.

    Raises:
        UsageError: no such set, or it is invalid. The message lists every problem with file, line and key.
    """
    name = os.fspath(name_or_file)
    path = Path(os.path.expanduser(name))
    if path.suffix.lower() != ".toml" and path.name == name:
        path = _FOLDER / f"{name}.toml"
        if name not in question_sets():
            what = f"no question set {name!r}{did_you_mean(name, question_sets())}"
            sets = ", ".join(question_sets())
            raise UsageError(what, hint=f'use a built-in set ({sets}), a .toml file, or --ask "TEXT" for a question')
    file = read_toml(path)
    problems: list[str] = []
    questions = _questions(file, problems)
    if problems:
        raise UsageError("\n".join(problems))
    return questions


def question_from_text(text: str) -> Question:
    """Return a question that is given by its text only.

    Args:
        text: of the question.

    Returns:
        The question. Its id depends on nothing but the text: its first words, and a digest, because other texts may
        have the same words. `What happens?` is `what-happens-` and six hexadecimal digits.

    Raises:
        UsageError: the text is empty, contains a NUL character or is not valid Unicode.
    """
    text = text.strip()
    if not text:
        raise UsageError("a question is missing or empty", hint='for example "What happens?"')
    check_text(text)
    plain = re.sub("['\u2019]", "", unicodedata.normalize("NFC", text).lower())
    words = "question"
    for i, word in enumerate(re.findall(r"[^\W_]+", plain)):
        longer = f"{words}-{word}" if i else word[:_ID_WORDS_LENGTH]
        if len(longer) > _ID_WORDS_LENGTH:
            break
        words = longer
    return Question(f"{words}-{hashlib.sha256(text.encode()).hexdigest()[:6]}", text)


def gather_questions(sources: QuestionSources, texts: Iterable[str] = ()) -> tuple[Question, ...]:
    """Return the questions of one or several sources.

    A question that is given by its text is asked once, however often it is given. If a set has it too, the id and the
    limits are those of the set.

    Args:
        sources: name of a set, a file, the text of a question, a question, or several of them. A string of more than
            letters, digits, `-`, `_` and `.` is the text of a question, unless it ends in .toml or is a path without
            spaces.
        texts: more questions by their text, whatever they look like.

    Raises:
        TypeError: a source of another type.
        UsageError: no question, no such set, an invalid set or text, or duplicate questions (`merge_questions`).
    """
    several = [sources] if isinstance(sources, str | os.PathLike | Question) else sources
    if isinstance(several, Iterable):
        several = list(several)
    if not isinstance(several, list) or not all(isinstance(one, str | os.PathLike | Question) for one in several):
        raise TypeError(f"questions must be names, files, texts or Question values, not {sources!r:.80}")
    found: list[tuple[Question, bool]] = []  # with whether it is given by its text
    for one in several:
        if isinstance(one, Question):
            found.append((replace(one, text=one.text.strip()), False))
        elif isinstance(one, str) and _is_text(one):
            found.append((question_from_text(one), True))
        else:
            found += [(question, False) for question in load_questions(one)]
    found += [(question_from_text(text), True) for text in texts]
    if not found:
        raise UsageError("no questions", hint=f"use a built-in set ({', '.join(question_sets())}) or a .toml file")
    in_sets = {question.text for question, is_text in found if not is_text}
    by_text = dict.fromkeys(question for question, is_text in found if is_text and question.text not in in_sets)
    return merge_questions([[question for question, is_text in found if not is_text], by_text])


def _is_text(source: str) -> bool:
    """Return whether a string is the text of a question, rather than the name of a set or a file."""
    is_path = source.lower().endswith(".toml") or (re.search(r"[/\\]", source) and not re.search(r"\s", source))
    return not is_path and not _SET_NAME.fullmatch(source)


def merge_questions(sets: Iterable[Iterable[Question]]) -> tuple[Question, ...]:
    """Concatenate question sets.

    Args:
        sets: the question sets.

    Raises:
        UsageError: two questions have the same id or the same text, so their rows could not be distinguished.
    """
    merged: list[Question] = []
    problems: list[str] = []
    for question in (q for questions in sets for q in questions):
        for other in merged:
            if other.id == question.id:
                problems.append(f"question id `{question.id}` is in two sets: {other.text!r}, {question.text!r}")
            elif other.text == question.text:
                problems.append(f"`{other.id}` and `{question.id}` have the same text: {question.text!r}")
        merged.append(question)
    if problems:
        raise UsageError(
            "\n".join(problems), hint="use each set once, or change the id or text of one of the questions"
        )
    return tuple(merged)


def _questions(file: TomlFile, problems: list[str]) -> tuple[Question, ...]:
    for key in file.values:
        if key != "question":
            problems.append(f"{file.where(key)}: unknown key `{dotted([key])}`{did_you_mean(key, ['question'])}")
    tables = file.values.get("question", [])
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        problems.append(f"{file.where('question')}: write [[question]] once for each question")
        return ()
    if not tables and not problems:
        problems.append(f"{file.where()}: no questions; each one starts with [[question]]")
    found: list[tuple[int, Question]] = []
    for number, table in enumerate(tables):
        question = _question(file, number, table, problems)
        if question is None:
            continue
        for other_number, other in found:
            for key in ("id", "text"):
                if getattr(other, key) == getattr(question, key):
                    first = file.where("question", other_number, key).rpartition(":")[2]
                    problems.append(
                        f"{file.where('question', number, key)}: same `{key}` as the question in line {first}: "
                        f"{getattr(question, key)!r}"
                    )
        found.append((number, question))
    return tuple(q for _, q in found)


def _question(file: TomlFile, number: int, table: dict[str, Any], problems: list[str]) -> Question | None:
    """Return one question; or None after adding its problems to `problems`."""
    n_before = len(problems)

    def report(key: str, problem: str) -> None:
        problems.append(f"{file.where('question', number, key)}: {problem}")

    for key in table:
        if key not in _CHECKS:
            report(key, f"unknown key `{dotted([key])}`{did_you_mean(key, _CHECKS)}")
    for key in ("id", "text"):
        if key not in table:
            report(key, f"`{key}` is missing in question {number + 1}")
    for key, problem in _problems(table):
        report(key, problem)
    kind = table.get("type", "text")
    if len(problems) > n_before:
        return None
    return Question(
        id=table["id"],
        text=table["text"].strip(),
        type=kind,
        choices=tuple(table.get("choices", ())),
        max_new_tokens=table.get("max_new_tokens"),
    )


def _problems(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (key, problem) for every invalid value; required keys may be missing."""
    for key, check in _CHECKS.items():
        if key in values and (problem := check(values[key])):
            yield key, f"`{key}` {problem}"
    kind = values.get("type", "text")
    if kind == "choice" and "choices" not in values:
        yield "type", "`choices` is missing: type `choice` needs a list of answers to choose from"
    if kind in _TYPES and kind != "choice" and "choices" in values:
        yield "choices", f"`choices` is only valid with type `choice`, not `{kind}`"


def _check_id(value: Any) -> str | None:
    valid = isinstance(value, str) and 0 < len(value) <= MAX_ID_LENGTH and value.isprintable() and " " not in value
    return None if valid else f"must be a word of at most {MAX_ID_LENGTH} characters without spaces, not {value!r}"


def _check_text(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"must be a string, not {value!r}"
    return text_problem(value)


def _check_type(value: Any) -> str | None:
    if value in _TYPES:
        return None
    near = did_you_mean(value, _TYPES).removeprefix("; ") if isinstance(value, str) else ""
    return f"must be one of {', '.join(_TYPES)}{f' ({near})' if near else ''}, not {value!r}"


def _check_choices(value: Any) -> str | None:
    valid = isinstance(value, list) and all(isinstance(c, str) and c.strip() for c in value)
    if not valid or len(value) < 2:
        return f"must be a list of at least two strings, not {value!r}"
    distinct = {c.strip().casefold() for c in value}
    return None if len(distinct) == len(value) else f"must be a list of different strings, not {value!r}"


def _check_max_new_tokens(value: Any) -> str | None:
    valid = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return None if valid else f"must be a whole number of at least 1, not {value!r}"


#: Key of a [[question]] -> function that returns the problem of a value, or None.
_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "id": _check_id,
    "text": _check_text,
    "type": _check_type,
    "choices": _check_choices,
    "max_new_tokens": _check_max_new_tokens,
}
