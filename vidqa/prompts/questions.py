"""Question sets: a built-in name or a TOML file -> questions. Does not know prompts, models or tables.

[[question]]
id = "people"                    # column question_id; unique in a run
text = "How many people are there?"
type = "number"                  # text (default), yes_no, choice, number; so far all are asked as text
# choices = ["none", "a few"]    # with type = "choice" only
# max_new_tokens = 16            # instead of the model's
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from vidqa.config.toml_lines import TomlFile, did_you_mean, dotted, read_toml
from vidqa.errors import UsageError
from vidqa.records import Question

_FOLDER = Path(__file__).parent / "sets"
_TYPES: tuple[str, ...] = get_args(get_type_hints(Question)["type"])
_LONGEST_ID = 64
#: Questions as a caller may give them.
Sets = str | os.PathLike[str] | Question | Iterable[str | os.PathLike[str] | Question]


def question_sets() -> tuple[str, ...]:
    """Names of the built-in sets."""
    return tuple(sorted(p.stem for p in _FOLDER.glob("*.toml")))


def load_questions(name_or_file: str | os.PathLike[str]) -> tuple[Question, ...]:
    """Read a question set.

    Args:
        name_or_file: a built-in name (`caption`), or a file: anything that ends in .toml or has a folder in it.

    Returns:
        The questions in the order of the file, at least one.

    Raises:
        UsageError: no such set, or something is wrong with it; lists every problem with file, line and key.
    """
    name = os.fspath(name_or_file)
    path = Path(os.path.expanduser(name))
    if path.suffix.lower() != ".toml" and path.name == name:
        path = _FOLDER / f"{name}.toml"
        if name not in question_sets():
            what = f"no question set {name!r}{did_you_mean(name, question_sets())}"
            raise UsageError(what, hint=f"built-in: {', '.join(question_sets())}; or a file that ends in .toml")
    file = read_toml(path)
    problems: list[str] = []
    questions = _questions(file, problems)
    if problems:
        raise UsageError("\n".join(problems))
    return questions


def gather_questions(given: Sets) -> tuple[Question, ...]:
    """What a caller wants to ask, in any of the forms in which it can be said.

    Args:
        given: the name of a set or a file, a question, or several of such.

    Raises:
        UsageError: none at all, no such set, or something is wrong with it, or with a `Question`, which is held to what
            a file may say; see `merge_questions`, too.
    """
    several = [given] if isinstance(given, str | os.PathLike | Question) else list(given)
    if not several:
        raise UsageError("no questions", hint=f"the name of a set: {', '.join(question_sets())}; or a file in TOML")
    return merge_questions([_checked(one)] if isinstance(one, Question) else load_questions(one) for one in several)


def _checked(question: Question) -> Question:
    """A question that was made by hand, with its text as a file would give it.

    Raises:
        UsageError: names every problem.
    """
    values: dict[str, Any] = {"id": question.id, "text": question.text, "type": question.type}
    if question.choices:
        values["choices"] = list(question.choices)
    if question.max_new_tokens is not None:
        values["max_new_tokens"] = question.max_new_tokens
    if problems := [what for _, what in _problems(values)]:
        raise UsageError("\n".join(f"question {question.id!r}: {what}" for what in problems))
    return replace(question, text=question.text.strip(), choices=tuple(question.choices))


def merge_questions(sets: Iterable[Iterable[Question]]) -> tuple[Question, ...]:
    """The questions of several sets, one after the other.

    Raises:
        UsageError: two have the same id, or the same text: a row would not tell which of the two was asked.
    """
    merged: list[Question] = []
    problems: list[str] = []
    for question in (q for questions in sets for q in questions):
        for other in merged:
            if other.id == question.id:
                problems.append(f"question id `{question.id}` comes from two sets: {other.text!r}, {question.text!r}")
            elif other.text == question.text:
                problems.append(f"`{other.id}` and `{question.id}` ask the same: {question.text!r}")
        merged.append(question)
    if problems:
        raise UsageError(
            "\n".join(problems), hint="name each set once, or give one of the questions another id or text"
        )
    return tuple(merged)


def _questions(file: TomlFile, problems: list[str]) -> tuple[Question, ...]:
    for key in file.values:
        if key != "question":
            problems.append(f"{file.where(key)}: unknown key `{dotted([key])}`{did_you_mean(key, ['question'])}")
    tables = file.values.get("question", [])
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        problems.append(f"{file.where('question')}: `question` must be written [[question]], once for each question")
        return ()
    if not tables and not problems:
        problems.append(f"{file.where()}: no questions; each begins with [[question]]")
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
                        f"{file.where('question', number, key)}: `{key}` is that of the question in line {first}: "
                        f"{getattr(question, key)!r}"
                    )
        found.append((number, question))
    return tuple(q for _, q in found)


def _question(file: TomlFile, number: int, table: dict[str, Any], problems: list[str]) -> Question | None:
    """One question, or None with its problems noted."""
    n_before = len(problems)

    def wrong(key: str, what: str) -> None:
        problems.append(f"{file.where('question', number, key)}: {what}")

    for key in table:
        if key not in _CHECKS:
            wrong(key, f"unknown key `{dotted([key])}`{did_you_mean(key, _CHECKS)}")
    for key in ("id", "text"):
        if key not in table:
            wrong(key, f"`{key}` is missing in question {number + 1}")
    for key, what in _problems(table):
        wrong(key, what)
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
    """Key and sentence of everything that is wrong with the values that are there."""
    for key, check in _CHECKS.items():
        if key in values and (complaint := check(values[key])):
            yield key, f"`{key}` must be {complaint}, not {values[key]!r}"
    kind = values.get("type", "text")
    if kind == "choice" and "choices" not in values:
        yield "type", "`choices` is missing: type `choice` needs a list of answers to choose from"
    if kind in _TYPES and kind != "choice" and "choices" in values:
        yield "choices", f"`choices` goes with type `choice`, not with `{kind}`"


def _id_complaint(value: Any) -> str | None:
    good = isinstance(value, str) and 0 < len(value) <= _LONGEST_ID and value.isprintable() and " " not in value
    return None if good else f"a word of at most {_LONGEST_ID} characters without spaces"


def _text_complaint(value: Any) -> str | None:
    return None if isinstance(value, str) and value.strip() else "a text"


def _type_complaint(value: Any) -> str | None:
    if value in _TYPES:
        return None
    near = did_you_mean(value, _TYPES).removeprefix("; ") if isinstance(value, str) else ""
    return f"one of {', '.join(_TYPES)}{f' ({near})' if near else ''}"


def _choices_complaint(value: Any) -> str | None:
    good = isinstance(value, list) and all(isinstance(c, str) and c.strip() for c in value)
    if not good or len(value) < 2:
        return "a list of at least two texts"
    same = {c.strip().casefold() for c in value}
    return None if len(same) == len(value) else "a list of texts that all differ"


def _tokens_complaint(value: Any) -> str | None:
    good = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return None if good else "a whole number of at least 1"


#: Key of a [[question]] -> what is wrong with a value, or None.
_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "id": _id_complaint,
    "text": _text_complaint,
    "type": _type_complaint,
    "choices": _choices_complaint,
    "max_new_tokens": _tokens_complaint,
}
