"""Starting, finding and ending server processes."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from zenzefi.runtime.errors import StartError

Progress = Callable[[str], None]
# Called while something is waited for; raises when nobody wants it any more.
Check = Callable[[], None]
LOG_LIMIT_BYTES = 20 * 1024 * 1024
PR_SET_PDEATHSIG = 1
# Loaded here: between fork and exec there may be no import.
_libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


def spawn(
    command: Sequence[str | Path], *, log: Path, cwd: Path, environ: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, so that the terminal's Ctrl-C reaches its supervisor only."""
    if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))
    with log.open("ab") as output:
        return _Server(
            [os.fspath(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd,
            env=dict(environ if environ is not None else os.environ),
            start_new_session=True,
        )


class _Server(subprocess.Popen[bytes]):
    """A child that is meant to outlive its handle, of which ``Popen`` would warn."""

    def __del__(self) -> None:
        pass


def end_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel send us this signal when our parent is gone, killed included (prctl(2), Linux)."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def await_answer(
    name: str,
    answers: Callable[[], bool],
    *,
    process: subprocess.Popen[bytes],
    log: Path,
    progress: Progress,
    check: Check,
    timeout: float = 180,
) -> None:
    """Wait until ``answers()``. Raises StartError with the log's end when it ends or time is up."""
    started = time.monotonic()
    announced = False
    while not answers():
        waited = time.monotonic() - started
        if process.poll() is not None:
            raise StartError(f"{name} ended while starting (exit code {process.returncode}):\n{tail(log)}")
        if waited > timeout:
            raise StartError(f"{name} does not answer after {timeout:.0f} s:\n{tail(log)}")
        if waited > 1 and not announced:
            progress(f"Waiting for {name} to answer")
            announced = True
        check()
        time.sleep(0.02)


def tail(log: Path, lines: int = 8) -> str:
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def named(*names: str) -> Iterator[psutil.Process]:
    # The status is asked for along with the name: a process may end at any moment.
    for process in psutil.process_iter(["name", "status"]):
        if process.info["name"] in names and process.info["status"] != psutil.STATUS_ZOMBIE:
            yield process


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def parent_pid(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def working_directory(process: psutil.Process) -> str:
    """Return the process's directory; a removed one keeps its name. Empty when it cannot be seen."""
    try:
        return process.cwd().removesuffix(" (deleted)")
    except psutil.Error:
        return ""


def end(processes: Iterable[psutil.Process], steps: Sequence[tuple[signal.Signals, float]]) -> list[psutil.Process]:
    """Send each signal in turn and wait its seconds, until all are gone; return those that are not."""
    alive = list(processes)
    for number, seconds in steps:
        for process in alive:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                pass
        alive = wait(alive, seconds)
        if not alive:
            break
    return alive


def wait(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait for processes to go, and return those that do not."""
    deadline = time.monotonic() + seconds
    while True:
        processes = [process for process in processes if exists(process)]
        if not processes or time.monotonic() > deadline:
            return processes
        time.sleep(0.02)


def exists(process: psutil.Process) -> bool:
    """Return whether it runs. A child of ours is reaped; somebody else's zombie counts as gone."""
    try:
        process.wait(0)
    except psutil.TimeoutExpired:
        try:
            return process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
    except psutil.Error:
        pass
    return False
