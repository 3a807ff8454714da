"""One large body down and one up: how fast, and what it does to the memory of the process that carries it."""

import contextlib
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from tests.bench.nginx import Front
from tests.bench.processes import BenchError, PeakMemory, ProcessList, resident_mib, running
from tests.upstream import unused_port, wait_until

BUFFER = 2**20
ROUNDS = 3
STALL_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Transfer:
    """MB are 10**6 bytes; the rate is the median of the rounds, the growth is up to the highest peak."""

    front: str
    direction: str
    size: int
    mb_per_second: float
    growth_mib: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@contextlib.contextmanager
def bulk_upstream(directory: Path) -> Iterator[tuple[str, ProcessList]]:
    directory.mkdir(parents=True)
    port = unused_port()
    command = [sys.executable, "-m", "tests.bench.bulk_upstream", "--port", str(port)]
    with running(command, log=directory / "bulk.log") as child:

        def accepts() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(accepts, seconds=20, what="the bulk upstream")
        yield f"http://127.0.0.1:{port}", lambda: [psutil.Process(child.pid)]


def _open(front: Front, method: str, path: str, fields: str) -> socket.socket:
    address = urlsplit(front.url(path))
    peer = socket.create_connection((address.hostname, address.port), timeout=STALL_SECONDS)
    headers = "".join(f"{name}: {value}\r\n" for name, value in front.headers.items())
    peer.sendall(f"{method} {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\n{headers}{fields}\r\n".encode("ascii"))
    return peer


def _read_head(peer: socket.socket, front: Front) -> tuple[int, bytes]:
    """(Content-Length, what came of the body along with the header section)."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = peer.recv(65_536)
        if not piece:
            raise BenchError(f"{front.name} closed the connection before it answered")
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    if lines[0].split()[1] != b"200":
        raise BenchError(f"{front.name} answered {lines[0].decode()}: {rest[:300].decode(errors='replace')}")
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value), rest
    raise BenchError(f"{front.name} dropped Content-Length")


def download(front: Front, size: int) -> float:
    """Seconds for `size` bytes; raises BenchError when fewer or more arrive."""
    buffer = memoryview(bytearray(BUFFER))
    start = time.perf_counter()
    with _open(front, "GET", f"/{size}", "") as peer:
        length, rest = _read_head(peer, front)
        received = len(rest)
        while received < length:
            count = peer.recv_into(buffer)
            if not count:
                break
            received += count
    seconds = time.perf_counter() - start
    if length != size or received != size:
        raise BenchError(f"{front.name} sent {received} of {size} bytes")
    return seconds


def upload(front: Front, size: int) -> float:
    """Seconds until the upstream has confirmed `size` bytes; raises BenchError when it counted others."""
    block = memoryview(bytes(BUFFER))
    start = time.perf_counter()
    with _open(front, "POST", "/upload", f"Content-Length: {size}\r\n") as peer:
        left = size
        while left:
            piece = block[: min(left, BUFFER)]
            peer.sendall(piece)
            left -= len(piece)
        length, counted = _read_head(peer, front)
        while len(counted) < length:
            piece_back = peer.recv(4096)
            if not piece_back:
                break
            counted += piece_back
    seconds = time.perf_counter() - start
    if counted != b"%d" % size:
        raise BenchError(f"{front.name} delivered {counted!r} of {size} bytes")
    return seconds


def transfers(fronts: Sequence[tuple[Front, ProcessList]], *, size: int, rounds: int = ROUNDS) -> list[Transfer]:
    """Each front in turn, several rounds. The processes are those whose memory counts."""
    ways: list[tuple[str, Callable[[Front, int], float]]] = [("down", download), ("up", upload)]
    results = []
    for direction, carry in ways:
        rates: dict[str, list[float]] = {front.name: [] for front, _ in fronts}
        growth: dict[str, float] = {front.name: 0.0 for front, _ in fronts}
        before: dict[str, float] = {}
        for front, processes in fronts:
            # Pools, buffers and allocator arenas that any first request sets up are no growth.
            carry(front, min(size, 8 * 2**20))
            before[front.name] = resident_mib(processes())
        for _ in range(rounds):
            for front, processes in fronts:
                with PeakMemory(processes()) as memory:
                    seconds = carry(front, size)
                rates[front.name].append(size / seconds / 1e6)
                growth[front.name] = max(growth[front.name], memory.peak_mib - before[front.name])
        results += [
            Transfer(front.name, direction, size, statistics.median(rates[front.name]), growth[front.name])
            for front, _ in fronts
        ]
    return results
