"""The gateway as it is served: uvicorn with the settings of production's worker, on a real port, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any, Self

import httpx
import uvicorn
import uvloop

from proxy.gateway import Gateway
from zenzefi.lib import health
from zenzefi.runtime import serving

DEVICE = "device-one"


class LiveGateway:
    """One worker. ``gateway`` is the application's own object, to look into from tests."""

    def __init__(self, *, port: int = 0) -> None:
        self.gateway = Gateway()
        self._wanted_port = port
        self.port = port
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def proxy(self) -> str:
        return f"{self.url}/api/v1/proxy"

    async def _application(self, scope: Any, receive: Any, send: Any) -> None:
        import zenzefi.asgi

        # The application of production around a gateway of this test.
        await zenzefi.asgi.Application(self.gateway)(scope, receive, send)

    def start(self) -> Self:
        ready = threading.Event()
        failures: list[BaseException] = []

        async def serve() -> None:
            self.loop = asyncio.get_running_loop()
            config = uvicorn.Config(
                self._application,
                host="127.0.0.1",
                # Another one at each start: the last may be the near end of another test's connection by now.
                port=self._wanted_port,
                interface="asgi3",
                log_level="warning",
                log_config=None,
                **{**serving.options(), "timeout_graceful_shutdown": 1},
            )
            server = self._server = serving.Server(config)
            running = asyncio.create_task(server.serve())
            while not server.started and not running.done():  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.005)
            if server.started:
                self.port = server.servers[0].sockets[0].getsockname()[1]
            ready.set()
            await running

        def run() -> None:
            try:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(serve())
            except BaseException as error:
                failures.append(error)
                ready.set()

        self._thread = threading.Thread(target=run, name="live-gateway", daemon=True)
        self._thread.start()
        assert ready.wait(40), "the gateway did not start"
        if failures:
            raise failures[0]
        assert self.port
        return self

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is None or self._thread is None:
            return
        server.should_exit = True
        self._thread.join(40)
        # Process-wide, and here several workers share the process.
        health.draining.clear()
        assert not self._thread.is_alive(), f"the gateway did not stop:\n{self._what_runs()}"

    def _what_runs(self) -> str:
        assert self.loop is not None and self._thread is not None
        frame = sys._current_frames().get(self._thread.ident or 0)
        tasks = [f"{task!r} {task.get_stack(limit=3)}" for task in asyncio.all_tasks(self.loop)]
        return "\n".join([*traceback.format_stack(frame), *tasks])

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine in the gateway's event loop and return its result."""
        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def client(self, token: str | None = None, *, device: str | None = DEVICE, **options: Any) -> httpx.Client:
        """Return an HTTP client for paths below the proxy's prefix."""
        headers = {}
        if token is not None:
            headers["X-Access-Token"] = token
        if device is not None:
            headers["X-Device-ID"] = device
        return httpx.Client(base_url=f"{self.proxy}/", headers=headers, timeout=30, trust_env=False, **options)

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        self.start()
        try:
            yield self
        finally:
            self.stop()


def request_bytes(
    target: str,
    token: str | None,
    *,
    method: str = "GET",
    device: str | None = DEVICE,
    extra: bytes = b"",
    body: bytes = b"",
    host: str = "gateway.test",
) -> bytes:
    """Return a request as bytes, for what no HTTP client would send. ``target`` stands below the prefix."""
    lines = [f"{method} /api/v1/proxy/{target} HTTP/1.1".encode(), f"Host: {host}".encode()]
    if token is not None:
        lines.append(f"X-Access-Token: {token}".encode())
    if device is not None:
        lines.append(f"X-Device-ID: {device}".encode())
    return b"\r\n".join(lines) + b"\r\n" + extra + b"\r\n" + body


def read_all(peer: socket.socket) -> bytes:
    """Return everything up to the end of the connection."""
    data = bytearray()
    while True:
        try:
            piece = peer.recv(65536)
        except ConnectionResetError:
            break
        if not piece:
            break
        data += piece
    return bytes(data)


def _read_line(peer: socket.socket) -> bytes:
    """Read a line with its end, and no byte of what follows: that may belong to the next answer."""
    line = bytearray()
    while not line.endswith(b"\r\n"):
        byte = peer.recv(1)
        assert byte, f"closed after {bytes(line)!r}"
        line += byte
    return bytes(line)


def _read_exactly(peer: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = peer.recv(min(65536, size - len(data)))
        assert piece, f"closed after {len(data)} bytes of {size}"
        data += piece
    return bytes(data)


def read_response(peer: socket.socket) -> tuple[int, dict[str, list[str]], bytes]:
    """Read one response off a connection, with its length or chunks; one that has neither is its head alone."""
    status = int(_read_line(peer).split(b" ")[1])
    headers: dict[str, list[str]] = {}
    while (line := _read_line(peer)) != b"\r\n":
        name, _, value = line.decode("latin-1").removesuffix("\r\n").partition(": ")
        headers.setdefault(name.lower(), []).append(value)
    body = b""
    if "content-length" in headers:
        body = _read_exactly(peer, int(headers["content-length"][0]))
    elif "transfer-encoding" in headers:
        while size := int(_read_line(peer), 16):
            body += _read_exactly(peer, size + 2)[:-2]
        assert _read_line(peer) == b"\r\n"
    return status, headers, body
