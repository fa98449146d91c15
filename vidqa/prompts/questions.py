"""Question sets: the name of a built-in set or a TOML file -> questions.

[[question]]
id = "people"                    # column question_id; unique in a run
text = "How many people are there?"
type = "number"                  # text (default), yes_no, choice, number; currently all are answered as text
# choices = ["none", "a few"]    # only with type = "choice"
# max_new_tokens = 16            # overrides the model's default
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from vidqa.config.toml_lines import TomlFile, did_you_mean, dotted, read_toml
from vidqa.errors import UsageError
from vidqa.records import MAX_ID_LENGTH, Question, QuestionType, text_problem

_FOLDER = Path(__file__).parent / "sets"
_TYPES: tuple[str, ...] = get_args(QuestionType)
#: Questions as callers pass them: names of built-in sets, TOML files, or questions.
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
            raise UsageError(what, hint=f"use a built-in set ({', '.join(question_sets())}) or a .toml file")
    file = read_toml(path)
    problems: list[str] = []
    questions = _questions(file, problems)
    if problems:
        raise UsageError("\n".join(problems))
    return questions


def gather_questions(sources: QuestionSources) -> tuple[Question, ...]:
    """Return the questions of one or several sources.

    Args:
        sources: name of a set, a file, a question, or several of them.

    Raises:
        TypeError: a source of another type.
        UsageError: no source, no such set, an invalid set, or duplicate questions (`merge_questions`).
    """
    several = [sources] if isinstance(sources, str | os.PathLike | Question) else sources
    if isinstance(several, Iterable):
        several = list(several)
    if not isinstance(several, list) or not all(isinstance(one, str | os.PathLike | Question) for one in several):
        raise TypeError(f"questions must be names, files or Question values, not {sources!r:.80}")
    if not several:
        raise UsageError("no questions", hint=f"use a built-in set ({', '.join(question_sets())}) or a .toml file")
    return merge_questions(
        [replace(one, text=one.text.strip())] if isinstance(one, Question) else load_questions(one) for one in several
    )


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
