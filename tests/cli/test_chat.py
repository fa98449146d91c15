"""`vidqa chat` and `vidqa ask --with`: one answer per line on stdout, and a prompt at a terminal."""

from __future__ import annotations

import io
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidqa.cli.commands import chat as chat_module

pytestmark = pytest.mark.smoke

TIMEOUT_S = 280


@pytest.fixture
def asking(vidqa, monkeypatch):
    r"""`asking("What?\nWhy?\n", clip, ...)`: the command with questions from a pipe."""

    def call(questions: str, *arguments: object):
        monkeypatch.setattr(sys, "stdin", io.StringIO(questions))
        return vidqa("chat", *arguments)

    return call


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "p.png")
    return tmp_path / "p.png"


def test_one_question_per_line(asking, clips):
    done = asking("What happens?\n\n  And then?\r\n", clips / "a.mp4")
    assert (done.code, done.out) == (0, "red\nred\n"), done.err
    assert ">" not in done.out + done.err and "Ctrl-D" not in done.err, "a pipe gets no prompt"


def test_json_lines(asking, clips, image):
    done = asking("What?\nWhy?\n/reset\nWhy?\n", clips / "a.mp4", image, "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [(one["question"], one["answer"]) for one in lines] == [("What?", "red"), ("Why?", "red"), ("Why?", "red")]
    assert {one["n_visual_tokens"] for one in lines} == {8 * 5 + 4}
    assert {(one["status"], one["finish_reason"]) for one in lines} == {("ok", "eos")}
    first, second, fresh = (one["n_prompt_tokens"] for one in lines)
    assert first - 1 == fresh < second
    assert all(one["n_computed_tokens"] < 60 for one in lines), "the KV cache of the media is reused"


def test_quit_and_end_of_input(asking, clips):
    assert asking("What?\n/quit\nWhy?\n", clips / "a.mp4").out == "red\n"
    assert asking("", clips / "a.mp4").out == ""


def test_help_is_not_an_answer(asking, clips):
    done = asking("/help\n", clips / "a.mp4")
    assert (done.code, done.out) == (0, "")
    assert all(name in done.err for name in chat_module.COMMANDS)


def test_line_without_an_answer_is_exit_3(asking, clips):
    done = asking("/rest\nWhat?\n", clips / "a.mp4")
    assert (done.code, done.out) == (3, "\nred\n"), "the second line answers the second question"
    assert "unknown command /rest" in done.err
    assert asking(" /rest?\n", clips / "a.mp4").out == "red\n", "with a space it is a question"


def test_a_full_context_is_reported_and_no_turn_is_dropped(asking, clips):
    long = "What? " * 250
    done = asking(f"What?\n{long}\n{long}\nWhy?\n/reset\n{long}\n", clips / "a.mp4", "--json")
    assert done.code == 3
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [one["answer"] for one in lines] == ["red", "red", None, "red", "red"]
    assert lines[2]["error_kind"] == "prompt_too_long" and "more than the context of 2048" in lines[2]["error"]
    assert lines[3]["n_prompt_tokens"] > 1500, "the earlier turns are kept"
    assert "/reset" in done.err


def test_truncation_is_reported(asking, clips):
    done = asking("What?\n", clips / "a.mp4", "--max-new-tokens", 2)
    assert (done.code, done.out) == (0, "r\n")
    assert "truncated at the maximum" in done.err


def test_invalid_media(asking, clips, tmp_path):
    done = asking("What?\n", clips)
    assert done.code == 2 and "name each file" in done.err
    done = asking("What?\n", clips / "a.mp4", tmp_path / "none.mp4")
    assert done.code == 1 and "none.mp4" in done.err and done.out == ""
    assert asking("What?\n").code == 2


def test_closed_input(vidqa, clips, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    done = vidqa("chat", clips / "a.mp4")
    assert done.code == 2 and "standard input is closed" in done.err


class Keyboard(io.StringIO):
    """Standard input that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def typing(vidqa, monkeypatch):
    """`typing(["What?"], clip, ...)`: the command as at a terminal."""

    def call(lines: list[str], *arguments: object):
        def typed() -> Iterator[str]:
            yield from lines

        monkeypatch.setattr(sys, "stdin", Keyboard())
        monkeypatch.setattr(chat_module, "_typed_lines", typed)
        return vidqa("chat", *arguments)

    return call


def test_ctrl_c_stops_an_answer_but_not_the_dialogue(typing, clips, monkeypatch):
    from vidqa.generate.kv_cache.chat_cache import ChatKVCache

    decode_step, calls = ChatKVCache.decode_step, []

    def interrupted(self, token):
        calls.append(token)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return decode_step(self, token)

    monkeypatch.setattr(ChatKVCache, "decode_step", interrupted)
    done = typing(["What?", "Why?"], clips / "a.mp4")
    assert (done.code, done.out) == (0, "re\nred\n"), done.err
    assert "(stopped)" in done.err


def test_mistakes_at_a_terminal_do_not_change_the_exit_code(typing, clips):
    done = typing(["/rest", "What?"], clips / "a.mp4")
    assert (done.code, done.out) == (0, "red\n")
    assert "unknown command /rest" in done.err and "Ctrl-D to quit" in done.err


#: Makes the terminal on stdin the controlling one, whose Ctrl-C becomes a signal, and starts vidqa. Where tests run in
#: the background, the signal is ignored, and a new process inherits that.
IN_TERMINAL = """
import os, signal, sys
os.close(os.open(os.ttyname(0), os.O_RDWR))
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, "-m", "vidqa", *sys.argv[1:]])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX terminals")
def test_a_real_terminal(environment, clips):
    """Prompt, answer, Ctrl-C at the prompt, history, Ctrl-D."""
    terminal, other_end = os.openpty()
    command = [sys.executable, "-c", IN_TERMINAL, "chat", str(clips / "a.mp4")]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), other_end)
    variables = os.environ | environment | {"TERM": "dumb"}
    chat = subprocess.Popen(command, env=variables, start_new_session=True, **streams)
    os.close(other_end)
    screen = b""

    def until(text: bytes, again: bytes = b"") -> None:
        nonlocal screen
        deadline, start = time.monotonic() + TIMEOUT_S, len(screen)
        while text not in screen[start:]:
            left = max(0.0, deadline - time.monotonic())
            there = select.select([terminal], [], [], min(left, 3.0) if again else left)[0]
            assert there or (again and left), screen
            if there:
                screen += os.read(terminal, 4096)
            else:
                os.write(terminal, again)

    until(b"> ")
    os.write(terminal, b"What?\n")
    until(b"red\r\n> ")
    os.write(terminal, b"\x03")  # Ctrl-C
    # Python looks for signals, and then waits for a key: one in between is handled with the next key.
    until(b"/quit to quit)\r\n> ", again=b"\x03")
    os.write(terminal, b"\x10\n")  # Ctrl-P: the line before
    until(b"red\r\n> ")
    os.write(terminal, b"\x04")  # Ctrl-D
    assert chat.wait(TIMEOUT_S) == 0
    assert screen.count(b"What?") == 2


class TestAskWith:
    def test_one_prompt(self, vidqa, clips, image):
        done = vidqa("ask", clips / "a.mp4", "--with", image, "What?", "Why?")
        assert (done.code, done.out) == (0, "red\nred\n"), done.err
        done = vidqa("ask", image, "What?", "--with", image, "--with", clips / "a.mp4", "--json")
        one = json.loads(done.out)
        assert (one["answer"], one["n_visual_tokens"], len(one["media"])) == ("red", 4 + 4 + 40, 3)
        assert one["media"] == [str(image), str(image), str(clips / "a.mp4")]

    def test_options_that_exclude_each_other(self, vidqa, clips, image):
        done = vidqa("ask", clips / "a.mp4", "--with", image, "What?", "--out", "t.csv")
        assert done.code == 2 and "--with and --out" in done.err
        done = vidqa("ask", clips, "--with", image, "What?")
        assert done.code == 2 and "name each file" in done.err
        done = vidqa("ask", clips / "a.mp4", "--with", image, "What?", "--segment", 1)
        assert done.code == 2 and "--segment whole" in done.err

    def test_too_long(self, vidqa, clips, image):
        done = vidqa("ask", clips / "a.mp4", "--with", image, "What? " * 400)
        assert (done.code, done.out.strip()) == (3, "")
        assert "prompt_too_long" in done.err
