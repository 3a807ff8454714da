"""Real servers on loopback for tests: one that records what reached it, one that misbehaves as scripted."""

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aiohttp import web

from zenzefi.runtime.demo_upstream import Exchange, make_app, make_runner

START_WITHIN_SECONDS = 30.0
STOP_WITHIN_SECONDS = 20.0


def wait_until(condition: Callable[[], object], *, seconds: float = 20.0, what: str = "the condition") -> None:
    """Polls until the condition is true; raises AssertionError that names it when time is up."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {seconds:g} s")
        time.sleep(0.01)


class RecordingUpstream:
    """The demo upstream in a thread of its own, on a port that stays the same over stop() and start().

    `requests` lists an `Exchange` per request from the moment its headers arrived; its body fields are
    complete when its `finished` event is set. WebSocket handshakes are requests too.
    """

    def __init__(self, *, host: str = "127.0.0.1") -> None:
        self.host = host
        self.port = 0
        self._requests: list[Exchange] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def requests(self) -> list[Exchange]:
        with self._lock:
            return list(self._requests)

    @property
    def targets(self) -> list[bytes]:
        return [exchange.target for exchange in self.requests]

    @property
    def in_progress(self) -> int:
        """Requests whose handler has not ended."""
        return sum(not exchange.finished.is_set() for exchange in self.requests)

    @property
    def open_connections(self) -> int:
        """Connections that are open right now, idle ones included."""
        if self._runner is None or self._runner.server is None:
            return 0
        return len(self._runner.server.connections)

    def clear(self) -> None:
        with self._lock:
            self._requests.clear()

    def wait_for(self, count: int, *, seconds: float = 20.0) -> list[Exchange]:
        """The requests, once at least `count` of them have arrived and been handled to the end."""
        wait_until(
            lambda: sum(exchange.finished.is_set() for exchange in self.requests) >= count,
            seconds=seconds,
            what=f"{count} finished requests",
        )
        return self.requests

    def start(self) -> Self:
        """Raises OSError when the port of an earlier start is taken by now."""
        if self._thread is not None:
            raise RuntimeError("already started")
        started = threading.Event()
        failures: list[BaseException] = []

        def run() -> None:
            try:
                asyncio.run(self._serve(started))
            except BaseException as error:
                failures.append(error)
                started.set()

        self._thread = threading.Thread(target=run, name="recording-upstream", daemon=True)
        self._thread.start()
        if not started.wait(START_WITHIN_SECONDS):
            raise TimeoutError("the upstream did not start")
        if failures:
            self._thread.join()
            self._thread = None
            raise failures[0]
        return self

    def stop(self) -> None:
        """Cuts every connection; harmless when stopped already."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        assert self._loop is not None and self._stopping is not None
        self._loop.call_soon_threadsafe(self._stopping.set)
        thread.join(STOP_WITHIN_SECONDS)
        if thread.is_alive():
            raise TimeoutError("the upstream did not stop")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _observe(self, exchange: Exchange) -> None:
        with self._lock:
            self._requests.append(exchange)

    async def _serve(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        runner = make_runner(make_app(observer=self._observe))
        await runner.setup()
        try:
            await web.TCPSite(runner, self.host, self.port, backlog=2048).start()
            self.port = runner.addresses[0][1]
            self._runner = runner
            started.set()
            await self._stopping.wait()
        finally:
            self._runner = None
            await runner.cleanup()


@dataclass(frozen=True, slots=True)
class Send:
    """Sends these bytes as they are."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Wait:
    """Does nothing for some seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class ReadHead:
    """Reads up to and including the blank line that ends a header section."""


@dataclass(frozen=True, slots=True)
class ReadBytes:
    """Reads this many bytes more (or less, when the peer closes)."""

    count: int


@dataclass(frozen=True, slots=True)
class ReadUntilClosed:
    """Reads until the peer has closed its side."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Ends the connection with RST instead of FIN."""


Step = Send | Wait | ReadHead | ReadBytes | ReadUntilClosed | Reset
Script = Sequence[Step]


def answer_with(data: bytes) -> Script:
    """Reads one header section, sends these bytes, closes."""
    return (ReadHead(), Send(data))


class RawUpstream:
    """A TCP server that follows a script and keeps what it received: for answers no HTTP library would send.

    The nth connection follows the nth script, later ones the last; a connection is closed when its script has
    ended. A bare bytes object stands for `answer_with` it.
    """

    def __init__(self, *scripts: Script | bytes, host: str = "127.0.0.1") -> None:
        if not scripts:
            raise ValueError("at least one script is needed")
        self._scripts = [answer_with(script) if isinstance(script, bytes) else script for script in scripts]
        self.host = host
        self.port = 0
        self._received: list[bytearray] = []
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._peers: list[socket.socket] = []
        self._stopping = threading.Event()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def received(self) -> list[bytes]:
        """What came in, per connection, in the order they were accepted."""
        with self._lock:
            return [bytes(data) for data in self._received]

    def start(self) -> Self:
        self._stopping.clear()
        self._listener = socket.create_server((self.host, self.port), backlog=512)
        self.port = self._listener.getsockname()[1]
        thread = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._threads = [thread]
        thread.start()
        return self

    def stop(self) -> None:
        """Closes every connection; harmless when stopped already."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        self._stopping.set()
        # shutdown wakes a thread that is blocked in accept or recv; close alone does not.
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        with self._lock:
            peers, self._peers = self._peers, []
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(STOP_WITHIN_SECONDS)
            if thread.is_alive():
                raise TimeoutError("a connection of the upstream did not end")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                number = len(self._received)
                received = bytearray()
                self._received.append(received)
                self._peers.append(peer)
            script = self._scripts[min(number, len(self._scripts) - 1)]
            thread = threading.Thread(target=self._follow, args=(peer, script, received), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _follow(self, peer: socket.socket, script: Script, received: bytearray) -> None:
        pending = bytearray()

        def read() -> bool:
            data = peer.recv(65_536)
            with self._lock:
                received.extend(data)
            pending.extend(data)
            return bool(data)

        # The peer may go at any step; what it did before is what the test looks at.
        with contextlib.suppress(OSError), contextlib.closing(peer):
            for step in script:
                match step:
                    case Send(data):
                        peer.sendall(data)
                    case Wait(seconds):
                        if self._stopping.wait(seconds):
                            return
                    case ReadHead():
                        while b"\r\n\r\n" not in pending and read():
                            pass
                        del pending[: pending.find(b"\r\n\r\n") + 4]
                    case ReadBytes(count):
                        while len(pending) < count and read():
                            pass
                        del pending[:count]
                    case ReadUntilClosed():
                        while read():
                            pass
                    case Reset():
                        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        return


#: Below where the system takes the ports of outgoing connections from: of those, one that was free a moment ago may be
#: the near end of another test's connection when a server comes to listen on it.
_PORTS = range(10_000, 32_000)


def unused_port(host: str = "127.0.0.1", *, datagrams: bool = False) -> int:
    """A port of TCP, or of UDP, where nothing listens at the moment and where no outgoing connection will be."""
    while True:
        port = random.choice(_PORTS)
        with (
            contextlib.suppress(OSError),
            socket.socket(type=socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM) as one,
        ):
            if not datagrams:
                # As servers do, who may follow one that has just stopped.
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((host, port))
            return port
