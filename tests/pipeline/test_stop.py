"""Signals, sent for real: when the first one acts, and that the second one does not wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from vidqa.pipeline.monitor.reporter import StageClock
from vidqa.pipeline.monitor.signals import StopSignal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


class Ended(KeyboardInterrupt):
    """What SIGTERM raises in these tests."""


KINDS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Ended}


@pytest.fixture(autouse=True)
def _not_ignored():
    """Started in the background of a script, the tests ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(0.01)  # Python hands it over between two steps


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_held_back_until_the_batch_is_done(signum):
    stop, said, steps = StopSignal(), [], []
    with pytest.raises(KINDS[signum]), stop.heard(KINDS, said.append), stop.held():
        steps.append("begun")
        send(signum)
        steps.append("finished")
        with stop.opened():
            steps.append("waits for more")
    assert steps == ["begun", "finished"]
    assert len(said) == 1 and "once more" in said[0]


def test_a_process_for_which_another_one_speaks_is_silent(monkeypatch, capfd):
    stop, ends = StopSignal(), []
    monkeypatch.setattr(os, "_exit", ends.append)
    with pytest.raises(KeyboardInterrupt), stop.heard(KINDS, None), stop.held():
        send(signal.SIGINT)
        send(signal.SIGINT)
    assert ends == [130] and capfd.readouterr() == ("", "")


def test_at_once_where_nothing_is_lost():
    stop, clock = StopSignal(), []
    with pytest.raises(Ended), stop.heard(KINDS, clock.append), stop.held(), stop.opened():
        send(signal.SIGTERM)
        clock.append("not reached")
    stop = StopSignal()
    with pytest.raises(KeyboardInterrupt), stop.heard(KINDS, clock.append):  # before the work has begun
        send(signal.SIGINT)
        clock.append("not reached")
    assert clock == []


def test_at_the_end_of_the_work_at_the_latest():
    stop, said = StopSignal(), []
    with pytest.raises(Ended), stop.heard(KINDS, said.append):
        with stop.held():
            send(signal.SIGTERM)
            said.append("work")
        said.append("not reached")
    assert said[1:] == ["work"]


@pytest.mark.parametrize(
    ("stage", "reached"), [("decode", []), ("load", []), ("generate", ["done"]), ("write", ["done"])]
)
def test_stages_of_the_clock(stage, reached):
    stop, steps = StopSignal(), []
    clock = StageClock(stop=stop)
    with pytest.raises(Ended), stop.heard(KINDS, lambda text: None), stop.held(), clock.stage(stage):
        send(signal.SIGTERM)
        steps.append("done")
    assert steps == reached


def test_handlers_are_given_back_and_what_was_ignored_stays_so():
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = StopSignal()
    with stop.heard(KINDS, lambda text: None):
        assert signal.getsignal(signal.SIGTERM) != before
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        send(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_second_signal_leaves_at_once():
    code = (
        "import os, signal, time\n"
        "from vidqa.pipeline.monitor.signals import StopSignal\n"
        "stop = StopSignal()\n"
        "with stop.heard({signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}, print), stop.held():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(600)\n"
        "    finally:\n"
        "        print('clean-up')\n"
    )
    done = subprocess.run([sys.executable, "-uc", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 143
    assert "once more" in done.stdout and "clean-up" not in done.stdout
    assert "leaving at once" in done.stderr
