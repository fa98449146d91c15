"""`vidqa chat` and `vidqa ask --with`: answers on stdout, one a line; a terminal gets a prompt."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidqa.cli.commands import chat as chat_module

PATIENCE_S = 280


@pytest.fixture
def asking(vidqa, monkeypatch):
    """`asking("What?\\nWhy?\\n", clip, ...)`: the command with questions from a pipe."""

    def call(questions: str, *arguments: object):
        monkeypatch.setattr(sys, "stdin", io.StringIO(questions))
        return vidqa("chat", *arguments)

    return call


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "p.png")
    return tmp_path / "p.png"


def test_a_question_a_line(asking, clips):
    done = asking("What happens?\n\n  And then?\r\n", clips / "a.mp4")
    assert (done.code, done.out) == (0, "red\nred\n"), done.err
    assert ">" not in done.out + done.err and "Ctrl-D" not in done.err, "no prompt for a pipe"


def test_json_lines(asking, clips, picture):
    done = asking("What?\nWhy?\n/reset\nWhy?\n", clips / "a.mp4", picture, "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [(one["question"], one["answer"]) for one in lines] == [("What?", "red"), ("Why?", "red"), ("Why?", "red")]
    assert {one["n_visual_tokens"] for one in lines} == {8 * 5 + 4}
    assert {(one["status"], one["finish_reason"]) for one in lines} == {("ok", "eos")}
    first, second, fresh = (one["n_prompt_tokens"] for one in lines)
    assert first - 1 == fresh < second
    assert all(one["n_computed_tokens"] < 60 for one in lines), "the media were there"


def test_quit_ends(asking, clips):
    assert asking("What?\n/quit\nWhy?\n", clips / "a.mp4").out == "red\n"
    assert asking("", clips / "a.mp4").out == ""


def test_help_is_no_answer(asking, clips):
    done = asking("/help\n", clips / "a.mp4")
    assert (done.code, done.out) == (0, "")
    assert all(name in done.err for name in chat_module.COMMANDS)


def test_line_without_an_answer_is_exit_3(asking, clips):
    done = asking("/rest\nWhat?\n", clips / "a.mp4")
    assert (done.code, done.out) == (3, "\nred\n"), "the second line answers the second question"
    assert "no command /rest" in done.err
    assert asking(" /rest?\n", clips / "a.mp4").out == "red\n", "with a space it is a question"


def test_full_context_is_said_and_nothing_is_dropped(asking, clips):
    long = "What? " * 250
    done = asking(f"What?\n{long}\n{long}\nWhy?\n/reset\n{long}\n", clips / "a.mp4", "--json")
    assert done.code == 3
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [one["answer"] for one in lines] == ["red", "red", None, "red", "red"]
    assert lines[2]["error_kind"] == "prompt_too_long" and "more than the context of 2048" in lines[2]["error"]
    assert lines[3]["n_prompt_tokens"] > 1500, "the turns before are still there"
    assert "/reset" in done.err


def test_truncated_is_said(asking, clips):
    done = asking("What?\n", clips / "a.mp4", "--max-new-tokens", 2)
    assert (done.code, done.out) == (0, "r\n")
    assert "longest allowed answer" in done.err


def test_media_that_cannot_be(asking, clips, tmp_path):
    done = asking("What?\n", clips)
    assert done.code == 2 and "name the files one by one" in done.err
    done = asking("What?\n", clips / "a.mp4", tmp_path / "none.mp4")
    assert done.code == 1 and "none.mp4" in done.err and done.out == ""
    assert asking("What?\n").code == 2


def test_closed_input(vidqa, clips, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    done = vidqa("chat", clips / "a.mp4")
    assert done.code == 2 and "standard input is closed" in done.err


class Keyboard(io.StringIO):
    """Somebody at a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def typing(vidqa, monkeypatch):
    """`typing(["What?"], clip, ...)`: the command as at a terminal."""

    def call(lines: list[str], *arguments: object):
        def typed() -> Iterator[str]:
            yield from lines

        monkeypatch.setattr(sys, "stdin", Keyboard())
        monkeypatch.setattr(chat_module, "_typed", typed)
        return vidqa("chat", *arguments)

    return call


def test_ctrl_c_stops_an_answer_and_not_the_talk(typing, clips, monkeypatch):
    from vidqa.generate.kv_cache.chat_cache import ChatKVCache

    step, calls = ChatKVCache.decode_step, []

    def interrupted(self, token):
        calls.append(token)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, token)

    monkeypatch.setattr(ChatKVCache, "step", interrupted)
    done = typing(["What?", "Why?"], clips / "a.mp4")
    assert (done.code, done.out) == (0, "re\nred\n"), done.err
    assert "(stopped)" in done.err


def test_mistakes_at_a_terminal_are_no_failure(typing, clips):
    done = typing(["/rest", "What?"], clips / "a.mp4")
    assert (done.code, done.out) == (0, "red\n")
    assert "no command /rest" in done.err and "Ctrl-D ends" in done.err


@pytest.mark.skipif(sys.platform == "win32", reason="terminals of POSIX")
def test_a_real_terminal(surroundings, clips):
    """Prompt, answer, Ctrl-C at the prompt, history, Ctrl-D."""
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored, and inherited so, where tests run in the background
        command = [sys.executable, "-m", "vidqa", "chat", str(clips / "a.mp4")]
        os.execvpe(sys.executable, command, os.environ | surroundings | {"TERM": "dumb"})
    said = b""

    def until(text: bytes, again: bytes = b"") -> None:
        nonlocal said
        deadline, start = time.monotonic() + PATIENCE_S, len(said)
        while text not in said[start:]:
            left = max(0.0, deadline - time.monotonic())
            there = select.select([terminal], [], [], min(left, 3.0) if again else left)[0]
            assert there or (again and left), said
            if there:
                said += os.read(terminal, 4096)
            else:
                os.write(terminal, again)

    until(b"> ")
    os.write(terminal, b"What?\n")
    until(b"red\r\n> ")
    os.write(terminal, b"\x03")  # Ctrl-C
    # Python looks for signals, and then waits for a key: one that comes in between is heard with the next key.
    until(b"/quit ends)\r\n> ", again=b"\x03")
    os.write(terminal, b"\x10\n")  # Ctrl-P: the line before
    until(b"red\r\n> ")
    os.write(terminal, b"\x04")  # Ctrl-D
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert said.count(b"What?") == 2


class TestAskWith:
    def test_one_prompt(self, vidqa, clips, picture):
        done = vidqa("ask", clips / "a.mp4", "--with", picture, "What?", "Why?")
        assert (done.code, done.out) == (0, "red\nred\n"), done.err
        done = vidqa("ask", picture, "What?", "--with", picture, "--with", clips / "a.mp4", "--json")
        one = json.loads(done.out)
        assert (one["answer"], one["n_visual_tokens"], len(one["media"])) == ("red", 4 + 4 + 40, 3)
        assert one["media"] == [str(picture), str(picture), str(clips / "a.mp4")]

    def test_what_does_not_go_together(self, vidqa, clips, picture):
        done = vidqa("ask", clips / "a.mp4", "--with", picture, "What?", "--out", "t.csv")
        assert done.code == 2 and "--with and --out" in done.err
        done = vidqa("ask", clips, "--with", picture, "What?")
        assert done.code == 2 and "name the files one by one" in done.err
        done = vidqa("ask", clips / "a.mp4", "--with", picture, "What?", "--segment", 1)
        assert done.code == 2 and "--segment whole" in done.err

    def test_too_long(self, vidqa, clips, picture):
        done = vidqa("ask", clips / "a.mp4", "--with", picture, "What? " * 400)
        assert (done.code, done.out.strip()) == (3, "")
        assert "prompt_too_long" in done.err
