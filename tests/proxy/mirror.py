"""An upstream that says exactly what a test wants and keeps every byte that reached it; and a client that reads
every byte that came back. Neither is an HTTP library: what those tidy up is what is being looked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it arrived: which connection it came on, its first line, its fields, its body without framing."""

    connection: int
    method: bytes
    target: bytes
    headers: Headers
    body: bytes
    trailers: bytes = b""

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]


@dataclass(slots=True)
class Peer:
    """The connection of one request, for answers that are not simply sent."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    seen: Seen | None

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until_closed(self) -> None:
        with contextlib.suppress(OSError):
            while await self.reader.read(65536):
                pass

    def reset(self) -> None:
        self.writer.transport.abort()


#: Bytes are sent as they are and the connection is kept; a function may do anything and closes it by returning False.
Answer = bytes | Callable[[Peer], Awaitable[bool | None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Held:
    """An answer that is kept back from when the request has ``arrived`` until ``let_go`` is set."""

    def __init__(self, answer: bytes = OK) -> None:
        self.answer = answer
        self.arrived = threading.Event()
        self.let_go = threading.Event()

    async def __call__(self, peer: Peer) -> None:
        self.arrived.set()
        assert await asyncio.to_thread(self.let_go.wait, 60), "nobody let the answer go"
        await peer.send(self.answer)


class Mirror:
    """Answers ``/<key>...`` with ``answers[key]`` and ``OK`` where there is none.

    A function among ``early`` is called when the head has come, before the body is read.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.early: set[str] = set()
        self.seen: list[Seen] = []
        #: Every byte of every connection.
        self.raw: dict[int, bytearray] = {}
        self.accepted = 0
        self.open = 0
        self.port = 0
        self._stopping: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def clear(self) -> None:
        self.seen.clear()
        self.raw.clear()

    def __enter__(self) -> Self:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), daemon=True)
        self._thread.start()
        assert started.wait(30), "the mirror did not start"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None and self._stopping is not None and self._thread is not None
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(30)
        assert not self._thread.is_alive(), "the mirror did not stop"

    async def _serve(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        running: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            running.add(task)
            self.accepted += 1
            self.open += 1
            try:
                await self._requests(reader, writer, self.accepted)
            except (OSError, asyncio.IncompleteReadError):
                # The other side's going is for the tests to judge.
                pass
            except asyncio.CancelledError:
                # What nobody has read would keep the connection open beyond the loop.
                writer.transport.abort()
            finally:
                self.open -= 1
                running.discard(task)
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=2048, limit=2**24)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self._stopping.wait()
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        raw = self.raw.setdefault(number, bytearray())
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            raw += head
            first, *lines = head[:-4].split(b"\r\n")
            method, target, _ = first.split(b" ", 2)
            headers: Headers = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
            key = target.lstrip(b"/").partition(b"/")[0].partition(b"?")[0].decode("latin-1")
            answer = self.answers.get(key, OK)
            if key in self.early:
                assert callable(answer)
                self.seen.append(Seen(number, method, target, headers, b""))
                if await answer(Peer(reader, writer, None)) is False:
                    return
                continue
            body, trailers = await self._body(reader, headers, raw)
            seen = Seen(number, method, target, headers, body, trailers)
            self.seen.append(seen)
            if callable(answer):
                if await answer(Peer(reader, writer, seen)) is False:
                    return
            else:
                writer.write(answer)
                await writer.drain()

    @staticmethod
    async def _body(reader: asyncio.StreamReader, headers: Headers, raw: bytearray) -> tuple[bytes, bytes]:
        names = {name.lower(): value for name, value in headers}
        if b"transfer-encoding" in names:
            body = b""
            while True:
                line = await reader.readuntil(b"\r\n")
                raw += line
                size = int(line[:-2].partition(b";")[0], 16)
                if size == 0:
                    break
                piece = await reader.readexactly(size + 2)
                raw += piece
                body += piece[:-2]
            trailers = b""
            while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
                raw += line
                trailers += line
            raw += line
            return body, trailers
        body = await reader.readexactly(int(names.get(b"content-length", b"0")))
        raw += body
        return body, b""


@dataclass(slots=True)
class Got:
    """One answer as it came: interim ones, the final head, the body without framing, what came after it."""

    status: int
    reason: bytes
    headers: Headers
    body: bytes
    interim: list[int] = field(default_factory=list)
    #: The fields of each of those.
    interim_headers: list[Headers] = field(default_factory=list)
    trailers: bytes = b""
    #: How the body's end was told: "length", "chunked", "close", "none"; "broken" when it was not.
    framing: str = "none"
    rest: bytes = b""

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]

    @property
    def code(self) -> str:
        """The gateway's own code; empty for an upstream's answer."""
        return b"".join(self.values(b"x-zenzefi-error")).decode()


class Wire:
    """A connection that reads answers strictly."""

    def __init__(self, port: int, *, timeout: float = 30) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pending = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def _more(self) -> bool:
        try:
            piece = self.socket.recv(1 << 18)
        except ConnectionError:
            return False
        self._pending += piece
        return bool(piece)

    def _until(self, mark: bytes) -> bytes:
        while (at := self._pending.find(mark)) < 0:
            if not self._more():
                raise EOFError(bytes(self._pending))
        found = bytes(self._pending[: at + len(mark)])
        del self._pending[: at + len(mark)]
        return found

    def _exactly(self, count: int) -> bytes:
        while len(self._pending) < count:
            if not self._more():
                raise EOFError(bytes(self._pending))
        found = bytes(self._pending[:count])
        del self._pending[:count]
        return found

    def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        while self._more():
            pass
        rest = bytes(self._pending)
        self._pending.clear()
        return rest

    def head(self) -> tuple[int, bytes, Headers]:
        """Read one head, interim or final: status, reason, fields. Raises :class:`EOFError`."""
        head = self._until(b"\r\n\r\n")[:-4]
        first, *lines = head.split(b"\r\n")
        version, status, *reason = first.split(b" ", 2)
        assert version in (b"HTTP/1.1", b"HTTP/1.0"), first
        headers: Headers = []
        for line in lines:
            name, colon, value = line.partition(b":")
            assert colon and name and name == name.strip(), line
            headers.append((name, value.strip()))
        return int(status), b"".join(reason), headers

    def read(self, method: bytes = b"GET") -> Got:
        """Read one answer. Raises :class:`EOFError` when the connection ends before its head is whole."""
        interim: list[int] = []
        interim_headers: list[Headers] = []
        while (head := self.head())[0] < 200:
            interim.append(head[0])
            interim_headers.append(head[2])
        got = Got(*head, b"", interim, interim_headers)
        lengths, codings = got.values(b"content-length"), got.values(b"transfer-encoding")
        if method == b"HEAD" or got.status in (204, 304):
            return got
        try:
            if codings:
                assert codings == [b"chunked"] and not lengths, got
                got.framing = "chunked"
                while size := int(self._until(b"\r\n")[:-2].partition(b";")[0], 16):
                    got.body += self._exactly(size)
                    assert self._exactly(2) == b"\r\n"
                while (line := self._until(b"\r\n")) != b"\r\n":
                    got.trailers += line
            elif lengths:
                got.framing = "length"
                assert len(lengths) == 1, got
                got.body = self._exactly(int(lengths[0]))
            else:
                got.framing = "close"
                got.body = self.rest()
        except EOFError as broken:
            got.framing = "broken"
            got.body += broken.args[0]
        return got
