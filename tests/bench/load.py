"""Closed-loop load with wrk."""

import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from typing import Any

from tests.bench.nginx import Front
from tests.bench.processes import BenchError, cpu_seconds, resident_mib

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}


@dataclass(frozen=True, slots=True)
class WrkResult:
    """What wrk printed: rates per second, latencies in seconds."""

    requests: int
    requests_per_second: float
    bytes_per_second: float
    p50: float
    p99: float
    socket_errors: int
    bad_statuses: int


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

    transfer = find(r"^Transfer/sec:\s+([\d.]+)(B|KB|MB|GB|TB) *$")
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    statuses = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    return WrkResult(
        requests=int(find(r"^\s*(\d+) requests in ")[1]),
        requests_per_second=float(find(r"^Requests/sec:\s+([\d.]+)$")[1]),
        bytes_per_second=float(transfer[1]) * _BYTES[transfer[2]],
        p50=latency(50),
        p99=latency(99),
        socket_errors=sum(map(int, errors.groups())) if errors else 0,
        bad_statuses=int(statuses[1]) if statuses else 0,
    )


def wrk_program() -> str:
    program = shutil.which("wrk")
    if program is None:
        raise BenchError("wrk is missing: install it (Debian: apt-get install wrk) and run again.")
    return program


@dataclass(frozen=True, slots=True)
class Load:
    """One front under one load. CPU seconds are those of the front's own processes, per 1,000 requests."""

    front: str
    size: int
    connections: int
    wrk: WrkResult
    cpu_per_1000: float
    resident_mib: float

    @property
    def errors(self) -> int:
        return self.wrk.socket_errors + self.wrk.bad_statuses

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def load(front: Front, *, size: int, connections: int, seconds: int) -> Load:
    command = [
        wrk_program(),
        "--latency",
        "--threads=1",
        f"--connections={connections}",
        f"--duration={seconds}s",
        "--timeout=10s",
    ]
    for name, value in front.headers.items():
        command += ["-H", f"{name}: {value}"]
    command.append(front.url(f"/{size}"))
    processes = front.processes()
    before = cpu_seconds(processes)
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    spent = cpu_seconds(processes) - before
    if done.returncode != 0:
        raise BenchError(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
    result = parse_wrk(done.stdout)
    return Load(
        front=front.name,
        size=size,
        connections=connections,
        wrk=result,
        cpu_per_1000=spent / result.requests * 1000 if result.requests else float("nan"),
        resident_mib=resident_mib(processes),
    )
