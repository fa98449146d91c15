"""The command that reproduces a row: quoting for a shell, typed questions, and tables that state nothing."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from vidqa.pipeline.table.reproduce import row_origin, shell_word
from vidqa.tables.provenance import Provenance

MODEL = {"name": "demo", "model": "demo", "dtype": None, "quantize": None}


def made(text: str = "What happens?", settings: dict[str, Any] | None = None, **values: Any) -> str:
    row = {"root": "/videos", "path": "a b.mp4", "question": text, "question_id": "q1", "error_kind": None}
    row |= {"settings_id": "s", "model_id": "m"} | values
    settings = {"segment_s": None} | (settings or {})
    command = row_origin(row, Provenance({"s": settings}, {"m": values.get("model", MODEL)})).command
    assert command is not None
    return command


def words(command: str) -> list[str]:
    """Return the arguments that bash passes on."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True)
    return [word.decode(errors="surrogateescape") for word in done.stdout.split(b"\0")[:-1]]


@pytest.mark.parametrize(
    "text", ["a", "it's", '$HOME `id` "x" \\ *', "-x", "", "a\nb\x1b[31m'\\", "緑\u202e", "\udcff\udc80.mp4", "~/a"]
)
def test_every_text_survives_the_shell_and_is_printable(text: str) -> None:
    assert shell_word(text).isprintable()
    assert words(shell_word(text)) == [text]


def test_settings_become_options() -> None:
    assert made() == "vidqa ask '/videos/a b.mp4' 'What happens?' --model demo --segment whole --out again.parquet"
    command = made(settings={"segment_s": 2.5, "max_new_tokens": 7, "temperature": 0.5}, error_kind="partial")
    assert "--segment 2.5 --max-new-tokens 7 --temperature 0.5 --strict" in command
    command = made(model=MODEL | {"model": "~/my models/b", "dtype": "float16"})
    assert "--model ~/'my models/b'" in command and "--dtype float16" in command
    assert words(made("-h"))[-3:] == ["--", "/videos/a b.mp4", "-h"]


def test_questions_of_built_in_sets_keep_their_id() -> None:
    assert "--questions caption " in made("Describe the video.", question_id="caption")
    command = made("Describe the video in detail.", {"max_new_tokens": 512}, question_id="detail")
    assert "--questions detail " in command and "--max-new-tokens" not in command
    assert "vidqa ask" in made("Describe the video in detail.", question_id="detail"), (
        "asked without the limit of the set"
    )


def test_typed_questions_are_written_to_a_file(tmp_path: Path) -> None:
    text, choices = 'Which "color"?\\ it\'s\x7f', ["red", "blå 'x'"]
    command = made(text, {"type": "choice", "choices": choices}, question_id="color")
    write, _, describe = command.partition(" && ")
    assert describe.startswith("vidqa describe '/videos/a b.mp4' --questions question-s.toml ")
    subprocess.run(["bash", "-c", write], cwd=tmp_path, check=True)
    (question,) = tomllib.loads((tmp_path / "question-s.toml").read_text())["question"]
    assert question == {"id": "color", "text": text, "type": "choice", "choices": choices}


def test_what_a_table_does_not_record_is_unknown() -> None:
    row = {"settings_id": "s", "model_id": "m", "question": "x", "question_id": "q1"}
    origin = row_origin(row, Provenance())
    assert origin.command is None and origin.settings is None and origin.model is None
    assert [sentence.split(":")[0] for sentence in origin.unknown] == ["settings", "model"]
