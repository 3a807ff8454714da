"""One supervised process: started, restarted when it dies, stopped with everything it started itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import psutil

from zenzefi.runtime import processes

# Seconds. A process that lived this long has started well; its end has another cause than the one before.
SETTLED_SECONDS = 20
MOST_FAILURES = 5
# Marks everything below one supervisor, so that its successor finds what a kill -9 left of it.
MARK = "ZENZEFI_SUPERVISOR"


@dataclass
class Child:
    """``stop_seconds``: how long it may take to finish what it does before it is killed."""

    role: str
    command: Sequence[str]
    environ: Mapping[str, str]
    stop_seconds: float
    inherited: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    failures: int = 0
    started: float = 0
    next_start: float = 0
    _partial: bytes = field(default=b"", repr=False)

    def start(self) -> None:
        self.process = subprocess.Popen(  # noqa: S603 - our own programs
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(self.environ),
            pass_fds=self.inherited,
            # Its own session: the terminal's Ctrl-C reaches the supervisor only, which stops them in order.
            start_new_session=True,
            preexec_fn=processes.end_with_parent,
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.started = time.monotonic()
        self._partial = b""

    @property
    def output(self) -> int:
        assert self.process is not None and self.process.stdout is not None
        return self.process.stdout.fileno()

    def read(self) -> tuple[list[str], bool]:
        """Return the whole lines that have come, and whether the output has ended."""
        try:
            piece = os.read(self.output, 65536)
        except BlockingIOError:
            return [], False
        *lines, self._partial = (self._partial + piece).split(b"\n")
        if not piece and self._partial:
            lines, self._partial = [self._partial], b""
        return [line.decode(errors="replace").rstrip() for line in lines], not piece

    def ended(self) -> int | None:
        return self.process.poll() if self.process is not None else None

    def bury(self) -> float:
        """Note a death, end what it leaves behind, and return the seconds to wait before the next start."""
        lived = time.monotonic() - self.started
        self.failures = 1 if lived > SETTLED_SECONDS else self.failures + 1
        self.end_session()
        self._close()
        delay = min(0.2 * 2 ** (self.failures - 1), 10.0) if self.failures > 1 else 0.0
        self.next_start = time.monotonic() + delay
        return delay

    def terminate(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def end_session(self) -> None:
        """Kill what is left in the child's session, such as pool processes of a killed Celery worker."""
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass

    def _close(self) -> None:
        if self.process is not None and self.process.stdout is not None:
            self.process.stdout.close()
        self.process = None

    def close(self) -> None:
        self.end_session()
        if self.process is not None:
            self.process.wait()
        self._close()


def program(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def survivors(mark: str) -> list[psutil.Process]:
    """Return what still runs below an earlier supervisor with this mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found
