"""Stopping and reloading gunicorn as production runs it: nothing that was accepted is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

import httpx
import psutil
import pytest
from websockets.exceptions import ConnectionClosed

from proxy import services
from tests.proxy.live import DEVICE, read_response, request_bytes
from tests.proxy.steady import Clients
from tests.proxy.test_websocket import open_socket
from tests.upstream import unused_port, wait_until
from zenzefi.runtime.protocol import LAST_REQUEST_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

GRACE = 4
#: Seconds beyond the grace period within which everything has ended.
BOUND = 10.0


class Gunicorn:
    """The web processes alone, on the suite's PostgreSQL and Redis."""

    def __init__(self, settings, upstream_url: str, *, workers: int) -> None:
        database = settings.DATABASES["default"]
        self.port = unused_port()
        command = [
            sys.executable,
            "-m",
            "gunicorn",
            "-c",
            "python:zenzefi.runtime.gunicorn_conf",
            "--log-level",
            "info",
        ]
        self.process = subprocess.Popen(
            command,
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "zenzefi.settings.base",
                "DATABASE_URL": f"postgresql://{database['USER']}@/{database['NAME']}?host={database['HOST']}"
                f"&port={database['PORT'] or 5432}",
                "REDIS_URL": settings.REDIS_URL,
                "REDIS_PREFIX": settings.REDIS_PREFIX,
                "ZENZEFI_TARGET_URL": upstream_url,
                "PORT": str(self.port),
                "WEB_WORKERS": str(workers),
                "GATEWAY_SHUTDOWN_GRACE": str(GRACE),
                "RATE_LIMIT_PROXY": "1000000/60",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.master = psutil.Process(self.process.pid)

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def workers(self) -> list[psutil.Process]:
        return self.master.children()

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def refuses(self) -> bool:
        try:
            self.raw().close()
        except ConnectionRefusedError:
            return True
        return False

    def ready(self) -> bool:
        assert self.process.poll() is None, self.said
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def __enter__(self) -> Self:
        try:
            wait_until(self.ready, seconds=60, what="gunicorn")
        except BaseException:
            # Nobody else would end it.
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(GRACE + 15)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def gunicorn(settings, upstream, transactional_db) -> Iterator[Gunicorn]:
    with Gunicorn(settings, upstream.url, workers=2) as running:
        yield running


@dataclass
class Load(Clients):
    """Requests on kept connections, one after the other on each, by a client that knows RFC 9112.

    It opens a new connection after an answer with ``Connection: close``. A GET whose kept connection ended before any
    byte of the answer is sent once more (§9.3.1) and counted in ``repeated``; anything else that goes wrong in
    ``failed``.
    """

    connections: int = 16
    answered: Counter[int] = field(default_factory=Counter)
    closed: int = 0
    repeated: int = 0
    failed: list[str] = field(default_factory=list)
    longest: float = 0.0

    async def _one(self) -> None:
        link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        kept = False
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                async with asyncio.timeout(30):
                    if link is None:
                        link, kept = await asyncio.open_connection("127.0.0.1", self.port), False
                    reader, writer = link
                    writer.write(self.request)
                    head = await reader.readuntil(b"\r\n\r\n")
                    [length] = re.findall(rb"content-length: (\d+)", head)
                    await reader.readexactly(int(length))
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as broken:
                untouched = isinstance(broken, ConnectionError) or (
                    isinstance(broken, asyncio.IncompleteReadError) and broken.partial == b""
                )
                if kept and untouched:
                    self.repeated += 1
                else:
                    self.failed.append(repr(broken))
                if link is not None:
                    link[1].close()
                    link = None
                continue
            self.longest = max(self.longest, time.monotonic() - started)
            self.answered[int(head[9:12])] += 1
            kept = True
            if b"connection: close" in head:
                self.closed += 1
                writer.close()
                link = None
            await asyncio.sleep(0.002)
        if link is not None:
            link[1].close()


def watch_socket(
    gunicorn: Gunicorn, secret: str, ended: list[tuple[float, int]], beats: list[float]
) -> threading.Thread:
    """Keep a WebSocket busy from a thread until it is closed; take down when, with which code, and each echo."""
    opened = threading.Event()

    def run() -> None:
        with open_socket(gunicorn, secret) as peer:
            try:
                while True:
                    peer.send("beat")
                    assert peer.recv(10) == "beat"
                    beats.append(time.monotonic())
                    opened.set()
                    time.sleep(0.05)
            except ConnectionClosed as closed:
                ended.append((time.monotonic(), closed.rcvd.code if closed.rcvd else 1006))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert opened.wait(30)
    return thread


def test_reloading_under_load_fails_nobody(gunicorn, issue):
    boss = issue(superuser=True)
    old = {worker.pid for worker in gunicorn.workers()}
    assert len(old) == 2
    ended: list[tuple[float, int]] = []
    beats: list[float] = []
    watcher = watch_socket(gunicorn, issue().secret, ended, beats)
    with Load(gunicorn.port, request_bytes("bytes/500", boss.secret)) as load:
        wait_until(lambda: sum(load.answered.values()) > 100, what="some traffic")
        reloaded = time.monotonic()
        gunicorn.process.send_signal(signal.SIGHUP)
        wait_until(
            lambda: not old & {worker.pid for worker in gunicorn.workers()},
            seconds=GRACE + BOUND + 15,
            what="the old workers' end",
        )
        before = sum(load.answered.values())
        wait_until(lambda: sum(load.answered.values()) > before + 200, seconds=20, what="answers of the new workers")
    watcher.join(20)
    sys.stdout.write(f"{load.answered}, {load.closed} told, {load.repeated} repeated, longest {load.longest:.3f} s\n")
    assert load.failed == []
    assert set(load.answered) == {200}
    # Whoever is busy is told with an answer; only a client that stalled for half a second can find its connection shut.
    assert load.closed + load.repeated >= load.connections
    assert load.repeated <= 2
    # The WebSocket had its grace at the old worker, and was alive throughout.
    [(cut, code)] = ended
    assert code == 1012
    assert GRACE - 0.5 < cut - reloaded < GRACE + BOUND
    assert cut - max(beats) < GRACE / 2
    assert len(gunicorn.workers()) == 2


def test_stopping_lets_finish_cuts_and_counts(gunicorn, upstream, issue):
    """SIGTERM at the master, with everything open that there is."""
    short, long, sockets = issue(), issue(), issue()
    ended: list[tuple[float, int]] = []
    received: dict[str, bytes] = {}
    broken: list[str] = []

    def stream(name: str, target: str, secret: str) -> None:
        headers = {"X-Access-Token": secret, "X-Device-ID": DEVICE}
        url = f"http://127.0.0.1:{gunicorn.port}/api/v1/proxy/{target}"
        received[name] = b""
        try:
            with httpx.stream("GET", url, headers=headers, timeout=20, trust_env=False) as answer:
                for piece in answer.iter_raw():
                    received[name] += piece
        except httpx.RemoteProtocolError:
            broken.append(name)

    # Ends by itself within the grace period; does not.
    threads = [
        threading.Thread(target=stream, args=("short", "events?n=15&interval=0.1", short.secret), daemon=True),
        threading.Thread(target=stream, args=("long", "events?n=0&interval=0.1", long.secret), daemon=True),
    ]
    for thread in threads:
        thread.start()
    beats: list[float] = []
    threads.append(watch_socket(gunicorn, sockets.secret, ended, beats))
    wait_until(lambda: len(received) == 2 and all(received.values()), what="the streams")
    probes = [gunicorn.raw() for _ in range(4)]
    probe = b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for peer in probes:
        peer.sendall(probe)
        assert read_response(peer)[0] == 200
    family = [gunicorn.master, *gunicorn.workers()]

    stopped = time.monotonic()
    gunicorn.process.terminate()
    # Half of them ask all the time: the answer of one that was under way says that it is the last, and may have been
    # made before the worker stopped being ready. The others ask again when both workers have heard of the signal.
    waiting, rested = probes[:2], probes[2:]
    heard = dict.fromkeys(probes, stopped)
    while waiting or rested:
        if rested and gunicorn.refuses():
            waiting, rested = waiting + rested, []
        asked = time.monotonic()
        for peer in waiting:
            with contextlib.suppress(OSError):
                peer.sendall(probe)
        for peer in list(waiting):
            try:
                status, headers, body = read_response(peer)
            except (AssertionError, ConnectionError):
                # Only where this test was held up for so long that the connection counted as silent.
                assert asked - heard[peer] > LAST_REQUEST_SECONDS / 2
                peer.close()
                waiting.remove(peer)
                continue
            heard[peer] = time.monotonic()
            last = (status, headers.get("connection"))
            assert last in [(200, None), (200, ["close"]), (503, ["close"])]
            if peer in probes[2:] or last != (200, None):
                assert status == 503 or peer in probes[:2]
                assert status == 200 or b"draining" in body
                assert peer.recv(1) == b""
                peer.close()
                waiting.remove(peer)
        time.sleep(0.005)
        assert time.monotonic() - stopped < GRACE - 0.5
    wait_until(gunicorn.refuses, seconds=1, what="an end of new connections")
    assert gunicorn.process.wait(GRACE + BOUND) == 0
    took = time.monotonic() - stopped
    for thread in threads:
        thread.join(20)
    assert GRACE - 0.5 < took < GRACE + BOUND

    assert broken == ["long"]
    assert received["short"].count(b"data:") == 15
    [(cut, code)] = ended
    assert code == 1012
    assert GRACE - 0.5 < cut - stopped < GRACE + BOUND
    assert [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE] == []
    assert "Traceback" not in gunicorn.said
    wait_until(lambda: upstream.in_progress == 0, what="the end of the upstream's work")

    # To the byte: what a client received was counted, whichever way its answer ended.
    services.flush_meter_stream()
    for issued, name in ((short, "short"), (long, "long")):
        session = issued.token.sessions.get()
        assert (session.requests, session.bytes_out) == (1, len(received[name])), name
    session = sockets.token.sessions.get()
    # The last message may have been cut off on its way back.
    assert session.bytes_in - session.bytes_out in (0, 4)
    assert 4 * len(beats) <= session.bytes_out <= 4 * (len(beats) + 1)
