"""Where a gateway worker spends its time under load: py-spy when it is there, else cProfile inside the worker."""

import contextlib
import io
import os
import pstats
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench.gateway import gateway
from tests.bench.load import load
from tests.bench.nginx import SMALL_SIZE
from tests.upstream import wait_until

PROFILE_DIRECTORY = "BENCH_PROFILE_DIRECTORY"
LINES = 45


def _py_spy() -> str | None:
    return shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))


@contextlib.contextmanager
def _sampled(program: str, pid: int, seconds: int, output: Path) -> Iterator[None]:
    command = [program, "record", "--pid", str(pid), "--duration", str(seconds), "--rate", "200"]
    command += ["--format", "raw", "--output", str(output)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        yield
        child.wait(seconds + 30)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def _hottest(stacks: Path) -> str:
    """Share of samples per function, by the innermost frame, from py-spy's raw format."""
    own: dict[str, int] = {}
    total = 0
    for line in stacks.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        leaf = stack.rpartition(";")[2]
        own[leaf] = own.get(leaf, 0) + int(count)
        total += int(count)
    ranked = sorted(own.items(), key=lambda item: -item[1])[:LINES]
    return "\n".join(f"{count / total:6.1%}  {name}" for name, count in ranked)


def profile(directory: Path, *, target: str, connections: int, seconds: int) -> str:
    """A table of the hottest functions of one worker under `connections` small requests."""
    program = _py_spy()
    output = directory / "profile"
    output.mkdir(parents=True)
    if program is not None:
        with gateway(directory / "gateway", target=target) as running:
            stacks = output / "stacks.txt"
            pid = running.workers()[0].pid
            with _sampled(program, pid, seconds, stacks):
                result = load(running.front, size=SMALL_SIZE, connections=connections, seconds=seconds + 1)
        return f"py-spy, {result.wrk.requests_per_second:.0f} requests/s\n{_hottest(stacks)}"

    # sitecustomize of that folder lets a signal start the profiler in a worker, and the next one write its figures.
    path = os.pathsep.join(
        part for part in (str(Path(__file__).parent / "profile_site"), os.environ.get("PYTHONPATH", "")) if part
    )
    extra = {"PYTHONPATH": path, PROFILE_DIRECTORY: str(output)}
    with gateway(directory / "gateway", target=target, extra=extra) as running:
        worker = running.workers()[0]
        worker.send_signal(signal.SIGRTMIN)
        result = load(running.front, size=SMALL_SIZE, connections=connections, seconds=seconds)
        worker.send_signal(signal.SIGRTMIN)
        file = output / f"{worker.pid}.pstats"
        wait_until(file.is_file, seconds=10, what="the worker's profile")
    text = io.StringIO()
    pstats.Stats(str(file), stream=text).strip_dirs().sort_stats("tottime").print_stats(LINES)
    heading = f"cProfile (its own cost included), {result.wrk.requests_per_second:.0f} requests/s"
    return f"{heading}\n{text.getvalue().strip()}"
