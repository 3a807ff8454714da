"""Processes of one measurement: started, watched, and ended together with all they started."""

import contextlib
import os
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]


class BenchError(Exception):
    """The measurement cannot go on; the message is for the person at the terminal."""


def allow_many_files() -> None:
    """A thousand connections take two thousand descriptors in a proxy; children inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    stop_within: float = 10.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command in a session of its own; at the end SIGTERM, then SIGKILL to whatever is left of it."""
    child: subprocess.Popen[bytes] | None = None
    try:
        with log.open("wb") as output, signals_held_back():
            child = subprocess.Popen(
                list(command),
                cwd=REPOSITORY,
                env=dict(env) if env is not None else None,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        yield child
    finally:
        if child is not None:
            _end(child, stop_within)


def _end(child: subprocess.Popen[bytes], within: float) -> None:
    family = family_of(child.pid)
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(within)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    # Those that were started after the look at the family are in its session.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Keep SIGINT and SIGTERM until the end of the block, where nothing may be started and then forgotten.

    Not masked, as the child would inherit that. Elsewhere than in the main thread signals do not arrive anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _frame: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def family_of(pid: int) -> list[psutil.Process]:
    """The process and all below it; empty when it is gone."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """User and system time these processes have used so far."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def resident_mib(processes: Sequence[psutil.Process]) -> float:
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 2**20


class PeakMemory:
    """Samples the resident memory of some processes while the block runs; `peak_mib` is the highest sum seen."""

    def __init__(self, processes: Sequence[psutil.Process], *, interval: float = 0.02) -> None:
        self._processes = list(processes)
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.peak_mib = 0.0

    def __enter__(self) -> Self:
        self.peak_mib = resident_mib(self._processes)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.peak_mib = max(self.peak_mib, resident_mib(self._processes))

    def _sample(self) -> None:
        while not self._stop.wait(self._interval):
            self.peak_mib = max(self.peak_mib, resident_mib(self._processes))


ProcessList = Callable[[], list[psutil.Process]]
