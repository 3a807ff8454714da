"""How much one process of the gateway carries: a thousand connections, a gibibyte, few questions to PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil
import pytest

from proxy import keys
from tests.proxy.live import DEVICE
from tests.proxy.load import hammer
from tests.proxy.mirror import OK, Mirror, Peer
from tests.proxy.processes import web_servers
from tests.upstream import unused_port, wait_until
from zenzefi.lib import redis as redis_client

logger = logging.getLogger(__name__)

STREAMS, REQUESTS = 500, 500
#: Nothing ends, and nobody is taken for away, because the machine is busy.
PATIENT: dict[str, Any] = {"REDIS_TIMEOUT": "20", "GATEWAY_IDLE_TIMEOUT": "600", "GATEWAY_FIRST_BYTE_TIMEOUT": "600"}
MIB = 2**20


class Crowd(Mirror):
    """Has streams that say one thing, and requests that are answered when so many have come beside the streams."""

    def __init__(self, *, streams: int, requests: int) -> None:
        super().__init__()
        self.answers |= {"stream": self._stream, "meet": self._meet}
        self.streams = self.waiting = self.most = 0
        self._expected = (streams, requests)
        self._complete = asyncio.Event()

    async def _stream(self, peer: Peer) -> bool:
        self.streams += 1
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: first\n\n")
        await peer.until_closed()
        self.streams -= 1
        return False

    async def _meet(self, peer: Peer) -> None:
        self.waiting += 1
        self.most = max(self.most, self.streams + self.waiting)
        if (self.streams, self.waiting) == self._expected:
            self._complete.set()
        await self._complete.wait()
        await peer.send(OK)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for both ends of two thousand connections, in this process and in those it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192
    assert hard == resource.RLIM_INFINITY or hard >= wanted, f"only {hard} files may be open"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_thousand_connections_of_which_half_are_idle_streams(settings, transactional_db, issue, allow, many_files):
    """As many at once as the token may have: nobody is refused, nobody hangs, and the streams are open afterwards."""
    issued = issue()
    allow(issued, concurrent_requests=STREAMS + REQUESTS)
    headers = {"X-Access-Token": issued.secret, "X-Device-ID": DEVICE}
    codes: Counter[int] = Counter()

    async def load(proxy: str, upstream: Crowd) -> None:
        connector = aiohttp.TCPConnector(limit=STREAMS + REQUESTS)
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

            async def open_stream() -> aiohttp.ClientResponse:
                answer = await session.get(f"{proxy}/stream")
                assert answer.status == 200
                await answer.content.readany()
                return answer

            async def ask(path: str, rounds: int) -> None:
                for _ in range(rounds):
                    async with session.get(f"{proxy}/{path}") as answer:
                        await answer.read()
                        codes[answer.status] += 1

            streams = await asyncio.gather(*(open_stream() for _ in range(STREAMS)))
            assert upstream.streams == STREAMS
            await asyncio.gather(*(ask("meet", 1) for _ in range(REQUESTS)))
            await asyncio.gather(*(ask("fine", 3) for _ in range(REQUESTS)))
            # What is given back is told without waiting for it.
            deadline = time.monotonic() + 20
            while leases() != STREAMS and time.monotonic() < deadline:  # noqa: ASYNC110 - Redis has no event for it
                await asyncio.sleep(0.05)
            assert leases() == STREAMS
            assert not any(stream.content.at_eof() or stream.closed for stream in streams)
            for stream in streams:
                stream.close()

    def leases() -> int:
        return redis_client.client().zcard(keys.leases(issued.token.pk))

    async def bounded(proxy: str, upstream: Crowd) -> None:
        async with asyncio.timeout(150):
            await load(proxy, upstream)

    started = time.monotonic()
    with (
        Crowd(streams=STREAMS, requests=REQUESTS) as upstream,
        web_servers(settings, upstream.url, RATE_LIMIT_PROXY="1000000/60", **PATIENT) as [server],
    ):
        asyncio.run(bounded(server.proxy, upstream))
        wait_until(lambda: leases() == 0, seconds=30, what="the end of the streams")
        assert server.get("fine", issued.secret).status_code == 200
    logger.warning("%d at once at the server, %s, %.1f s", upstream.most, dict(codes), time.monotonic() - started)

    assert codes == {200: REQUESTS * 4}
    assert upstream.most == STREAMS + REQUESTS


# --- memory


@pytest.fixture
def bulk() -> Iterator[str]:
    """The address of a server of whole gibibytes, in a process of its own."""
    port = unused_port()
    server = subprocess.Popen([sys.executable, "-m", "tests.bench.bulk_upstream", "--port", str(port)])
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert server.poll() is None
        try:
            return httpx.get(f"{url}/1", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(answers, seconds=40, what="the bulk server")
        yield url
    finally:
        server.kill()
        server.wait()


def peak(process: psutil.Process, *, forget: bool = False) -> float:
    """Return the most memory that was resident, MiB; with ``forget`` the kernel begins to look anew."""
    folder = Path(f"/proc/{process.pid}")
    if forget:
        (folder / "clear_refs").write_text("5")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", (folder / "status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["down", "up"])
def test_a_gibibyte_passes_in_less_than_20_mib(settings, transactional_db, issue, bulk, direction):
    """The peak of the gateway's own process, not only what it keeps afterwards."""
    issued = issue()

    def pieces(size: int) -> Iterator[bytes]:
        block = bytes(MIB)
        for _ in range(size // MIB):
            yield block

    with web_servers(settings, bulk) as [server]:
        [worker] = server.workers()
        headers = {"X-Access-Token": issued.secret, "X-Device-ID": DEVICE}
        with httpx.Client(base_url=server.proxy, headers=headers, timeout=60, trust_env=False) as client:

            def transfer(size: int) -> None:
                if direction == "up":
                    assert client.post("/sink", content=pieces(size)).text == str(size)
                    return
                with client.stream("GET", f"/{size}") as answer:
                    assert sum(len(piece) for piece in answer.iter_raw(MIB)) == size

            transfer(32 * MIB)
            before = peak(worker, forget=True)
            started = time.monotonic()
            transfer(1024 * MIB)
            took = time.monotonic() - started
            growth = peak(worker) - before
    logger.warning("1 GiB %s: %.1f s, the peak grew by %.1f MiB from %.0f MiB", direction, took, growth, before)
    assert growth < 20


# --- PostgreSQL

#: Seconds; short, so that the steady state has many ends of what was remembered in it. Three hundred in production.
REMEMBERED = 2


def test_hardly_a_validation_asks_postgresql(settings, upstream, transactional_db, issue):
    """What goes over the connection to PostgreSQL is counted; what the figures for operators say is compared."""
    tokens = [issue() for _ in range(2)]
    with web_servers(
        settings,
        upstream.url,
        gated=True,
        GATEWAY_CACHE_SECONDS=str(REMEMBERED),
        RATE_LIMIT_PROXY="1000000/60",
        METRICS_TOKEN="",
        **PATIENT,
    ) as [server]:
        for issued in tokens:
            assert server.get("json", issued.secret).status_code == 200
        gate = server.gate
        assert gate is not None
        looked_up = [issued.token.digest.encode() for issued in tokens]
        # Figures are handed over once a second.
        wait_until(lambda: sum(validations(server).values()) == len(tokens), what="the figures of before")
        time.sleep(REMEMBERED)
        before = validations(server)
        gate.questions = dict.fromkeys(looked_up, 0)
        started = time.monotonic()
        codes: Counter[int] = Counter()
        for issued in tokens:
            codes += hammer([server], issued.secret, connections=4, rounds=250, seconds=1.5 * REMEMBERED)
        took = time.monotonic() - started
        questions = sum(gate.questions.values())
        total = codes.total()
        wait_until(lambda: sum(validations(server).values()) >= sum(before.values()) + total, what="the figures of all")
        after = validations(server)

    answered = {layer: after[layer] - before[layer] for layer in after}
    logger.warning(
        "%d validations, %d asked PostgreSQL: %.2f %% did not", total, questions, 100 - 100 * questions / total
    )
    assert set(codes) == {200}
    assert answered["redis"] + answered["postgresql"] == total
    assert answered["fallback"] == 0
    # Each token is looked up at the beginning and when it was forgotten, but no more often than time went by.
    assert 4 <= questions <= 2 * (took / REMEMBERED + 1)
    assert questions < 0.01 * total
    # Whoever came while it was looked up waited for the same answer.
    assert questions <= answered["postgresql"] <= 4 * questions


def validations(server: Any) -> dict[str, float]:
    """Return the decisions so far by where they were made, as Prometheus reads them."""
    text = httpx.get(f"{server.url}/metrics", timeout=30, trust_env=False).text
    found = re.findall(r'^zenzefi_proxy_validations_total\{layer="(\w+)"\} (\S+)$', text, re.MULTILINE)
    return {"redis": 0.0, "postgresql": 0.0, "fallback": 0.0} | {layer: float(count) for layer, count in found}


def test_those_who_wait_are_let_in_together(live):
    """A loop that is busy has few turns; whoever got in one by one would wait for seconds behind a thousand others."""
    waiting: list[socket.socket] = []

    async def turns(count: int) -> int:
        for _ in range(count):
            await asyncio.sleep(0)
        assert live._server is not None
        return len(live._server.server_state.connections)

    begun, all_wait = threading.Event(), threading.Event()

    async def busy() -> None:
        begun.set()
        # Nothing else may run meanwhile.
        assert all_wait.wait(60)

    with contextlib.ExitStack() as stack:
        blocked = asyncio.run_coroutine_threadsafe(busy(), live.loop)
        assert begun.wait(20)
        try:
            for _ in range(100):
                waiting.append(stack.enter_context(live.raw()))
        finally:
            all_wait.set()
        blocked.result(30)
        assert live.run(turns(10)) >= 90
    for peer in waiting:
        peer.close()
