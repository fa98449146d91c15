"""Test examples/nightly: the wrapper acts on each exit code, and units and crontab use existing options and files."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vidqa.config.settings import OPTIONS, option_name, variable_name

FOLDER = Path(__file__).parent.parent.parent / "examples" / "nightly"
SCRIPT = FOLDER / "vidqa-nightly.sh"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")

FAKE = """#!/bin/sh
printf '%s\\n' "$@" > "$0.arguments"
echo run >> "$0.runs"
echo results
echo "some message" >&2
echo "vidqa: t.parquet: 2 new rows, 1 failed (${FAKE_NEW:-1} of them new)${FAKE_MORE:-}" >&2
code=$(head -n 1 "$0.codes")
sed -i 1d "$0.codes"
exit "$code"
"""
MAIL = """#!/bin/sh
{ printf '%s\\n' "$@"; cat; } > "$0.sent"
"""


@pytest.fixture
def wrapper(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs the wrapper around a fake vidqa, which exits with the given codes, one per call."""
    for name, text in (("vidqa", FAKE), ("mail", MAIL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(*codes: int, **settings: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "vidqa.codes").write_text("".join(f"{code}\n" for code in codes))
        values = {
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "NIGHTLY_ARCHIVE": "/srv/my archive",
            "NIGHTLY_TABLE": str(tmp_path / "t.parquet"),
        }
        return subprocess.run(
            ["sh", str(SCRIPT)], env=values | settings, capture_output=True, text=True, timeout=60, cwd=tmp_path
        )

    return run


@pytest.mark.parametrize("code", [0, 4, 130, 143])
def test_expected_exit_codes_are_silent(wrapper, code):
    done = wrapper(code)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize(
    ("code", "first"),
    [
        (3, "vidqa: t.parquet: 2 new rows, 1 failed ("),
        (1, "vidqa on "),
        (2, "vidqa on "),
    ],
)
def test_reports_have_a_subject_and_the_output(wrapper, tmp_path, code, first):
    done = wrapper(code)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(first) and "some message" in done.stderr
    assert len(re.findall("run", (tmp_path / "vidqa.runs").read_text())) == 1
    done = wrapper(code, NIGHTLY_MAIL="ops@example.org")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    flag, subject, to, *body = (tmp_path / "mail.sent").read_text().splitlines()
    assert flag == "-s" and subject.startswith(first) and to == "ops@example.org" and "some message" in body


def test_old_failures_are_not_reported(wrapper, tmp_path):
    for settings in ({}, {"NIGHTLY_MAIL": "ops@example.org"}):
        done = wrapper(3, FAKE_NEW="0", **settings)
        assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
        assert not (tmp_path / "mail.sent").exists()
        assert wrapper(3, FAKE_NEW="10", **settings).stderr.startswith("" if settings else "vidqa: t.parquet: 2 new")
        assert (tmp_path / "mail.sent").exists() == bool(settings)


def test_paths_without_media_are_reported(wrapper):
    assert "1 path problem" in wrapper(3, FAKE_NEW="0", FAKE_MORE=", 1 path problem").stderr


def test_a_killed_run_is_repeated_once(wrapper, tmp_path):
    done = wrapper(137, 0)
    assert done.returncode == 0 and "137" in done.stderr and "some message" not in done.stderr
    done = wrapper(139, 139)
    assert done.returncode == 139 and "139 twice" in done.stderr
    assert (tmp_path / "vidqa.runs").read_text().count("run") == 4


def test_a_signal_to_the_service_keeps_the_exit_code(wrapper, tmp_path):
    """The shell must survive a signal to every process of the service, to pass on the exit code."""
    slow = FAKE.replace("echo results\n", "kill -TERM $PPID\nsleep 0.3\n")
    (tmp_path / "vidqa").write_text(slow)
    done = wrapper(143)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")
    assert not list(tmp_path.glob("tmp.*"))


def test_a_lock_held_for_days_is_reported(wrapper, tmp_path):
    import os

    lock = tmp_path / ".t.parquet.lock"
    lock.write_text("{}")
    assert wrapper(4).stderr == ""
    os.utime(lock, (1_000_000_000, 1_000_000_000))
    assert "two days" in wrapper(4).stderr


def test_arguments_of_the_command(wrapper, tmp_path):
    wrapper(0, NIGHTLY_METRICS="/m/vidqa.prom")
    arguments = (tmp_path / "vidqa.arguments").read_text().splitlines()
    table = str(tmp_path / "t.parquet")
    assert arguments == [
        *("describe", "/srv/my archive", "--out", table, "--retry", "failed"),
        *("--log", f"{table}.log", "--metrics", "/m/vidqa.prom"),
    ]
    options = {f"--{option_name(parameter)}" for parameter in OPTIONS["describe"]}
    assert {argument for argument in arguments if argument.startswith("--")} <= options
    missing = wrapper(0, NIGHTLY_TABLE="")
    assert missing.returncode != 0 and "NIGHTLY_TABLE" in missing.stderr


def test_variables_of_the_examples_exist():
    existing = set(re.findall(r"^#   (NIGHTLY_\w+)", SCRIPT.read_text(), re.M))
    existing |= {"PATH", "MAILTO"} | {variable_name(parameter) for parameter in OPTIONS["describe"]}
    for name in ("crontab", "nightly.env"):
        assigned = set(re.findall(r"^(\w+)=", (FOLDER / name).read_text(), re.M))
        assert {"NIGHTLY_ARCHIVE", "NIGHTLY_TABLE"} <= assigned <= existing
    *_, line = (FOLDER / "crontab").read_text().splitlines()
    assert re.fullmatch(r"\d+ \d+ \* \* \* nice -n 10 /\S+/vidqa-nightly\.sh", line)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_accepts_the_units(tmp_path):
    here = {"/opt/vidqa/bin": str(FOLDER), "/etc/vidqa": str(FOLDER), "User=vidqa": "User=root"}
    units = []
    for name in ("vidqa-nightly.service", "vidqa-nightly.timer"):
        text = (FOLDER / name).read_text()
        for there, mine in here.items():
            text = text.replace(there, mine)
        units.append(tmp_path / name)
        units[-1].write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, units)], capture_output=True, text=True, timeout=60
    )
    if "Failed to" in done.stderr and "bus" in done.stderr:
        pytest.skip("systemd-analyze does not work here")
    assert done.returncode == 0 and done.stderr == ""


def test_the_service_allows_the_run_to_finish():
    text = (FOLDER / "vidqa-nightly.service").read_text()
    settings = dict(re.findall(r"^(\w+)=(.*)$", text, re.M))
    assert settings["SuccessExitStatus"].split() == ["3", "4", "130", "143"]
    assert settings["OOMPolicy"] == "continue" and settings["Type"] == "oneshot"
    assert settings["TimeoutStartSec"] == "infinity" and settings["TimeoutStopSec"] == "10min"
