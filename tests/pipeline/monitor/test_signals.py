"""Real signals: when the first one stops the run, and that the second one exits at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from vidqa.pipeline.monitor.reporter import StageClock
from vidqa.pipeline.monitor.signals import StopSignal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


class Terminated(KeyboardInterrupt):
    """Raised by SIGTERM in these tests."""


EXCEPTIONS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


@pytest.fixture(autouse=True)
def _default_sigint():
    """Restore the handling of Ctrl-C, which a shell script disables for tests that it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(0.01)  # Python runs the handler between two instructions


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_deferred_until_the_batch_is_finished(signum):
    stop, messages, steps = StopSignal(), [], []
    with pytest.raises(EXCEPTIONS[signum]), stop.handled(EXCEPTIONS, messages.append), stop.deferred():
        steps.append("started")
        send(signum)
        assert stop.is_requested
        steps.append("finished")
        with stop.interruptible():
            steps.append("next batch")
    assert steps == ["started", "finished"]
    assert len(messages) == 1 and "again to exit at once" in messages[0]


def test_a_process_without_output_stays_silent(monkeypatch, capfd):
    stop, codes = StopSignal(), []
    monkeypatch.setattr(os, "_exit", codes.append)
    with pytest.raises(KeyboardInterrupt), stop.handled(EXCEPTIONS, None), stop.deferred():
        send(signal.SIGINT)
        send(signal.SIGINT)
    assert codes == [130] and capfd.readouterr() == ("", "")


def test_a_signal_acts_at_once_where_nothing_is_lost():
    stop, steps = StopSignal(), []
    with (
        pytest.raises(Terminated),
        stop.handled(EXCEPTIONS, steps.append),
        stop.deferred(),
        stop.interruptible(),
    ):
        send(signal.SIGTERM)
        steps.append("not reached")
    stop = StopSignal()
    with pytest.raises(KeyboardInterrupt), stop.handled(EXCEPTIONS, steps.append):  # before the work has started
        send(signal.SIGINT)
        steps.append("not reached")
    assert steps == []


def test_a_signal_acts_at_the_latest_at_the_end_of_the_work():
    stop, steps = StopSignal(), []
    with pytest.raises(Terminated), stop.handled(EXCEPTIONS, steps.append):
        with stop.deferred():
            send(signal.SIGTERM)
            steps.append("work")
        steps.append("not reached")
    assert steps[1:] == ["work"]


@pytest.mark.parametrize(
    ("stage", "expected"), [("decode", []), ("load", []), ("generate", ["done"]), ("write", ["done"])]
)
def test_stages_of_the_clock_are_interruptible_or_not(stage, expected):
    stop, steps = StopSignal(), []
    clock = StageClock(stop=stop)
    with pytest.raises(Terminated), stop.handled(EXCEPTIONS, lambda text: None), stop.deferred(), clock.stage(stage):
        send(signal.SIGTERM)
        steps.append("done")
    assert steps == expected


def test_handlers_are_restored_and_ignored_signals_stay_ignored():
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = StopSignal()
    with stop.handled(EXCEPTIONS, lambda text: None):
        assert signal.getsignal(signal.SIGTERM) != before
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        send(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_second_signal_exits_at_once():
    code = (
        "import os, signal, time\n"
        "from vidqa.pipeline.monitor.signals import StopSignal\n"
        "stop = StopSignal()\n"
        "with stop.handled({signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}, print), stop.deferred():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(600)\n"
        "    finally:\n"
        "        print('clean-up')\n"
    )
    done = subprocess.run([sys.executable, "-uc", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 143
    assert "again to exit at once" in done.stdout and "clean-up" not in done.stdout
    assert "exiting at once" in done.stderr
