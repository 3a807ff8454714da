"""The supervisor's parts on their own: a child that keeps dying, lines nobody reads, locks, commands."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from zenzefi.runtime import processes
from zenzefi.runtime.children import MOST_FAILURES, Child
from zenzefi.runtime.commandline import _needs_servers
from zenzefi.runtime.errors import StartError
from zenzefi.runtime.locks import FileLock
from zenzefi.runtime.supervisor import Supervisor
from zenzefi.runtime.terminal import BACKLOG_LINES, Terminal

ROOT = Path(__file__).resolve().parents[2]


def test_a_child_that_keeps_dying_ends_the_run_with_its_reason(capfd: pytest.CaptureFixture[str]) -> None:
    supervisor = Supervisor()
    command = [sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"]
    child = Child("beat", command, dict(os.environ), stop_seconds=1)
    supervisor.children = [child]
    deadline = time.monotonic() + 60
    with pytest.raises(StartError, match=f"beat ended {MOST_FAILURES} times in a row, last with exit code 3"):
        while time.monotonic() < deadline:
            supervisor._tick(0.05)
    supervisor.selector.close()
    said = capfd.readouterr().out
    assert said.count("beat     | no such thing") == MOST_FAILURES
    assert said.count("beat ended with exit code 3; starting it again") == MOST_FAILURES - 1


def test_a_child_takes_its_own_children_along() -> None:
    script = (
        "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); "
        "print(p.pid, flush=True); sys.stdin.read(); p.wait()"
    )
    child = Child("worker", [sys.executable, "-c", script], dict(os.environ), stop_seconds=1)
    child.start()
    lines: list[str] = []
    while not lines:
        lines, ended = child.read()
        assert lines or not ended
        time.sleep(0.01)
    grandchild = psutil.Process(int(lines[0]))
    child.close()
    assert processes.wait([grandchild], 20) == []


def test_lines_nobody_reads_are_kept_up_to_a_limit_and_then_the_oldest_go() -> None:
    reading, writing = os.pipe()
    terminal = Terminal(writing)
    for number in range(BACKLOG_LINES * 2):
        terminal.say(f"line {number}", role="web")
    received = b""
    while f"line {BACKLOG_LINES * 2 - 1}\n".encode() not in received:
        received += os.read(reading, 65536)
        terminal.flush()
    lines = received.decode().splitlines()
    assert lines[0] == "web      | line 0"
    assert BACKLOG_LINES < len(lines) < BACKLOG_LINES * 2
    os.close(reading)
    terminal.say("nobody is there any more")
    os.close(writing)


def _count_up(path: Path) -> None:
    for _ in range(50):
        lock = FileLock(path / "private" / "lock")
        lock.acquire()
        counter = path / "counter"
        value = int(counter.read_text())
        time.sleep(0.001)
        counter.write_text(str(value + 1))
        lock.remove()


def test_a_lock_whose_file_its_holder_removes_still_excludes(tmp_path: Path) -> None:
    (tmp_path / "counter").write_text("0")
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_count_up, args=(tmp_path,)) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
        assert other.exitcode == 0
    assert (tmp_path / "counter").read_text() == "200"
    assert not (tmp_path / "private").exists()


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        ([], False),
        (["help"], False),
        (["--version"], False),
        (["migrate", "--help"], False),
        (["check"], False),
        (["up"], False),
        (["migrate"], True),
        (["shell"], True),
        (["runserver"], True),
    ],
)
def test_only_commands_that_talk_to_the_servers_start_them(arguments: list[str], needed: bool) -> None:
    assert _needs_servers(["manage.py", *arguments]) is needed


def test_with_both_variables_set_nothing_is_started(tmp_path: Path) -> None:
    environ = os.environ | {
        "VAR_DIR": str(tmp_path),
        "DJANGO_SETTINGS_MODULE": "zenzefi.settings.base",
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "REDIS_URL": "redis://127.0.0.1:1/0",
    }
    done = subprocess.run(
        [sys.executable, "manage.py", "shell", "-v0", "-c", "print('ran')"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    assert not (tmp_path / "postgres").exists()
    assert not (tmp_path / "redis").exists()


def test_an_older_python_is_turned_down_by_make(tmp_path: Path) -> None:
    for name in ("python3.11", "python3.12", "python3.13", "python3.14", "python3"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["make", "-n", "run"],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed, and none is on PATH" in done.stderr
