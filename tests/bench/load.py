"""Closed-loop load with wrk."""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench.nginx import Front
from tests.bench.processes import BenchError, PeakMemory, cpu_seconds

#: Bytes of an answer from which on the answers that a load leaves unfinished are too many to be left out.
LARGE = 1_000_000
#: Seconds after which wrk counts an answer as a timeout, of a load whose answers take a fraction of that.
TIMEOUT = 2
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}


@dataclass(frozen=True, slots=True)
class WrkResult:
    """What wrk printed: rates per second, latencies in seconds.

    Bytes are counted as they arrive, requests when their answer is complete. A timeout is an answer that was complete
    too late; it is among the requests, but not in the latencies.
    """

    requests: int
    seconds: float
    requests_per_second: float
    bytes_per_second: float
    p50: float
    p99: float
    socket_errors: int
    timeouts: int
    bad_statuses: int

    @property
    def errors(self) -> int:
        return self.socket_errors + self.timeouts + self.bad_statuses


def parse_wrk(output: str) -> WrkResult:
    """Raises ValueError when the text is not a complete report of `wrk --latency`."""

    def find(expression: str) -> re.Match[str]:
        match = re.search(expression, output, re.MULTILINE)
        if match is None:
            raise ValueError(f"no {expression!r} in what wrk printed")
        return match

    def latency(percent: int) -> float:
        # A unit of one letter is padded to two.
        match = find(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s|m|h) *$")
        return float(match[1]) * _SECONDS[match[2]]

    total = find(r"^\s*(\d+) requests in ([\d.]+)(us|ms|s|m|h), ")
    transfer = find(r"^Transfer/sec:\s+([\d.]+)(B|KB|MB|GB|TB) *$")
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    statuses = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    return WrkResult(
        requests=int(total[1]),
        seconds=float(total[2]) * _SECONDS[total[3]],
        requests_per_second=float(find(r"^Requests/sec:\s+([\d.]+)$")[1]),
        bytes_per_second=float(transfer[1]) * _BYTES[transfer[2]],
        p50=latency(50),
        p99=latency(99),
        socket_errors=sum(map(int, errors.groups()[:3])) if errors else 0,
        timeouts=int(errors[4]) if errors else 0,
        bad_statuses=int(statuses[1]) if statuses else 0,
    )


def wrk_program() -> str:
    program = shutil.which("wrk")
    if program is None:
        raise BenchError("wrk is missing: install it (Debian: apt-get install wrk) and run again.")
    return program


def wrk(
    url: str,
    *,
    connections: int,
    seconds: int,
    timeout: int = TIMEOUT,
    headers: Mapping[str, str] | None = None,
    script: Path | None = None,
    arguments: Sequence[str] = (),
) -> WrkResult:
    """One run of wrk in one thread; the arguments are the script's. Raises :class:`BenchError`."""
    command = [
        wrk_program(),
        "--latency",
        "--threads=1",
        f"--connections={connections}",
        f"--duration={seconds}s",
        f"--timeout={timeout}s",
    ]
    for name, value in (headers or {}).items():
        command += ["-H", f"{name}: {value}"]
    if script is not None:
        command += ["--script", str(script)]
    command.append(url)
    if arguments:
        command += ["--", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    if done.returncode != 0:
        raise BenchError(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
    return parse_wrk(done.stdout)


@dataclass(frozen=True, slots=True)
class Load:
    """One front under one load. CPU and memory are those of the front's own processes.

    CPU seconds are per 1,000 answers; of the resident memory it is the peak.
    """

    front: str
    workers: int
    size: int
    connections: int
    round: int
    wrk: WrkResult
    cpu_per_1000: float
    resident_mib: float

    @property
    def answers_per_second(self) -> float:
        return answers_per_second(self.wrk, self.size)

    @property
    def p50(self) -> float | None:
        return self.wrk.p50 if self._tells_percentiles else None

    @property
    def p99(self) -> float | None:
        return self.wrk.p99 if self._tells_percentiles else None

    @property
    def _tells_percentiles(self) -> bool:
        # Each connection's last answer is cut off, and slow ones more than others: they must not be most of all.
        return self.wrk.requests >= max(100, self.connections)

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "answers_per_second": self.answers_per_second,
            "errors": self.wrk.errors,
            "p50": self.p50,
            "p99": self.p99,
        }


def answers_per_second(result: WrkResult, size: int) -> float:
    """Answers of so many bytes that were carried; of large ones those that the end cut off count by their share."""
    return result.bytes_per_second / size if size >= LARGE else result.requests_per_second


def load(
    front: Front,
    *,
    size: int,
    connections: int,
    seconds: int,
    workers: int = 1,
    round: int = 0,
    timeout: int = TIMEOUT,
) -> Load:
    processes = front.processes()
    before = cpu_seconds(processes)
    with PeakMemory(processes, interval=0.25) as memory:
        result = wrk(
            front.url(f"/{size}"), connections=connections, seconds=seconds, timeout=timeout, headers=front.headers
        )
    spent = cpu_seconds(processes) - before
    carried = answers_per_second(result, size) * result.seconds
    return Load(
        front=front.name,
        workers=workers,
        size=size,
        connections=connections,
        round=round,
        wrk=result,
        cpu_per_1000=spent / carried * 1000 if carried else float("nan"),
        resident_mib=memory.peak_mib,
    )
