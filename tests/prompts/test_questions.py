"""Question sets: valid files are read; invalid ones are reported with file, line and key, all problems at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidqa.errors import UsageError
from vidqa.prompts.questions import (
    gather_questions,
    load_questions,
    merge_questions,
    question_from_text,
    question_sets,
)
from vidqa.records import Question


def write_set(folder: Path, text: str) -> Path:
    path = folder / "set.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load_questions(write_set(folder, text))
    return caught.value.what.splitlines()


def test_the_default_set() -> None:
    assert load_questions("caption") == (Question("caption", "Describe the video."),)


def test_built_in_sets_are_valid_and_can_be_combined() -> None:
    assert {"caption", "detail", "scene", "demo"} <= set(question_sets())
    for name in question_sets():
        assert load_questions(name)
    assert len(merge_questions([load_questions("caption"), load_questions("detail"), load_questions("scene")])) == 7


def test_all_keys(tmp_path: Path) -> None:
    path = write_set(
        tmp_path,
        '''
# a comment with [[question]] in it
[[question]]
id = "what"
text = """
What = happens? [[question]]
# and why?"""

[[question]]
id = "sky"
text = "Is there a sky?"
type = "yes_no"
max_new_tokens = 1

[[question]]
id = "\u5929\u6c14"
text = 'Which "weather"?'
type = "choice"
choices = [
  "sun",  # one
  "rain",
]
[[question]]
id = "n"
text = "How many?"
type = "number"
''',
    )
    assert load_questions(path) == (
        Question("what", "What = happens? [[question]]\n# and why?"),
        Question("sky", "Is there a sky?", "yes_no", (), 1),
        Question("\u5929\u6c14", 'Which "weather"?', "choice", ("sun", "rain")),
        Question("n", "How many?", "number"),
    )


def test_all_problems_are_reported_with_their_lines(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        '''# line 1
[[question]]
id = "a"
text = """
two lines
"""
typ = "text"

[[question]]
text = "Why?"
max_new_tokens = 0

[[question]]
id = "c"
text = "  "
type = "yes-no"
choices = ["x"]

[[question]]
id = "d d"
text = "Where?"
type = "choice"
"max new tokens" = 3
''',
    )
    path = tmp_path / "set.toml"
    assert found == [
        f"{path}:7: unknown key `typ`; did you mean `type`?",
        f"{path}:9: `id` is missing in question 2",
        f"{path}:11: `max_new_tokens` must be a whole number of at least 1, not 0",
        f"{path}:15: `text` is empty",
        f"{path}:16: `type` must be one of text, yes_no, choice, number (did you mean `yes_no`?), not 'yes-no'",
        f"{path}:17: `choices` must be a list of at least two strings, not ['x']",
        f"{path}:23: unknown key `max new tokens`; did you mean `max_new_tokens`?",
        f"{path}:20: `id` must be a word of at most 64 characters without spaces, not 'd d'",
        f"{path}:22: `choices` is missing: type `choice` needs a list of answers to choose from",
    ]


QUESTION = '[[question]]\nid = "a"\ntext = "Why?"\n'


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "no questions"),
        ("[[questions]]\nid = 1\n", 1, "did you mean `question`"),
        ("\n\n[question]\nid = 'a'\n", 3, "[[question]]"),
        ("question = 5\n", 1, "[[question]]"),
        (QUESTION + "max_new_tokens = true\n", 4, "max_new_tokens"),
        (QUESTION + "max_new_tokens = 1.5\n", 4, "max_new_tokens"),
        (QUESTION + "choices = ['a', 'b']\n", 4, "only valid with type `choice`"),
        (QUESTION + "type = 'choice'\nchoices = ['a', ' A ']\n", 5, "different strings"),
        (QUESTION + "type = ['choice']\n", 4, "one of text"),
        (QUESTION + "\n[[question]]\nid = 'a'\ntext = 'How?'\n", 6, "line 2"),
        (QUESTION + "\n[[question]]\nid = 'b'\ntext = 'Why?'\n", 7, "line 3"),
        (QUESTION + "id = 'again'\n", 4, "not TOML"),
        (QUESTION + "text =\n", 4, "not TOML"),
        (QUESTION + 'x = """never closed\n\n', 6, "not TOML"),
        ("question = [{id = 'a', txt = 'Why?'}]\n", 1, "txt"),
        ("a = " + "[" * 5000 + "]" * 5000, 1, "deep"),
    ],
)
def test_problems_are_reported_at_their_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    found = problems(tmp_path, text)
    assert any(f.startswith(f"{tmp_path / 'set.toml'}:{line}: ") and words in f for f in found), found


def test_windows_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "set.toml"
    path.write_bytes(b"\xef\xbb\xbf" + QUESTION.replace("\n", "\r\n").encode())
    assert load_questions(path) == (Question("a", "Why?"),)
    path.write_bytes(QUESTION.replace("\n", "\r\n").encode() + b"typ = 1\r\n")
    with pytest.raises(UsageError, match=":4: unknown key"):
        load_questions(path)
    path.write_bytes(b"# ok\n# caf\xe9\n")
    with pytest.raises(UsageError, match=":2: not UTF-8"):
        load_questions(path)


def test_names_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no question set 'captoin'; did you mean `caption`") as caught:
        load_questions("captoin")
    assert "detail" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="cannot be read"):
        load_questions(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        load_questions(tmp_path)
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path, QUESTION).rename(tmp_path / "caption")  # a file with the name of a set
    assert load_questions("caption")[0].id == "caption"
    assert load_questions("./caption")[0].id == "a"


def test_duplicate_questions_are_rejected() -> None:
    a, b = Question("a", "Why?"), Question("b", "How?")
    assert merge_questions([[a], [b]]) == (a, b)
    assert merge_questions([]) == ()
    with pytest.raises(UsageError, match="question id `a` is in two sets"):
        merge_questions([[a], [Question("a", "How?")]])
    with pytest.raises(UsageError, match="`a` and `c` have the same text"):
        merge_questions([[a, b], [Question("c", "Why?")]])


# Random combinations of lines that resemble a question set.
LINES = st.sampled_from(
    ["[[question]]", "[question]", 'id = "a"', "id = ''", "text = '''x", "'''", 'text = "t"', "type = 'choice'", '"',
     "choices = [", "'x', 'y']", "]", "max_new_tokens = 9", "x.y = {z = 1}", "# c", "\\", "[[a.b]]", "[a.b.c]", "\0"]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.lists(LINES, max_size=12).map("\n".join), st.text(max_size=60)))
def test_invalid_files_raise_usage_error_only(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        assert load_questions(path)
    except UsageError as error:
        assert all(line.startswith(f"{path}:") for line in error.what.split("\n") if "fuzz.toml" in line)
        assert "fuzz.toml" in error.what


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What happens?", "what-happens"),
        ("  What\n happens? ", "what-happens"),
        ("What's on the table_cloth?", "whats-on-the-table-cloth"),
        ("Is anybody there, or was anybody there before the door opened?", "is-anybody-there-or-was-anybody-there"),
        ("視頻裡發生了什麼?", "視頻裡發生了什麼"),
        ("x" * 100, "x" * 40),
        ("???", "question"),
    ],
)
def test_ids_of_questions_by_their_text(text: str, words: str) -> None:
    question = question_from_text(text)
    assert question.text == text.strip() and question.type == "text"
    assert question.id.rpartition("-")[0] == words and len(question.id.rpartition("-")[2]) == 6


def test_the_id_of_a_text_never_changes() -> None:
    """Tables have it."""
    assert question_from_text("What happens?").id == "what-happens-cc1e2a"
    assert len({question_from_text(text).id for text in ("What happens?", "What happens", "what happens?")}) == 3


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).filter(str.strip))
@settings(max_examples=100, deadline=None)
def test_any_text_has_a_valid_id(text: str) -> None:
    assert question_from_text(text) == question_from_text(text)


@pytest.mark.parametrize("text", ["", "  ", "a\0b", "Is it \udcff?"])
def test_texts_that_are_no_question(text: str) -> None:
    with pytest.raises(UsageError):
        question_from_text(text)


def test_texts_names_files_and_questions_may_be_mixed(tmp_path: Path) -> None:
    path = write_set(tmp_path, '[[question]]\nid = "who"\ntext = "Who is there?"\nmax_new_tokens = 5\n')
    given = ["Who is there?", "Why?", str(path), "Why?", Question("how", "How?"), "caption"]
    found = gather_questions(given, ["caption", "How?"])
    assert [question.text for question in found] == ["Who is there?", "How?", "Describe the video.", "Why?", "caption"]
    assert [question.id for question in found][:3] == ["who", "how", "caption"]
    assert found[0].max_new_tokens == 5
    assert gather_questions("Why?") == (question_from_text("Why?"),)
    for name in ("captoin", "none.toml", "folder/none"):
        with pytest.raises(UsageError, match=r"no question set|none"):
            gather_questions(name)
    with pytest.raises(UsageError, match="question id `how` is in two sets"):
        gather_questions([Question("how", "How?"), Question("how", "How many?")])
