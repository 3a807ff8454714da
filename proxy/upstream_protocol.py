"""HTTP/1.1 towards a Zenzefi server: one request at a time on a connection of aiohttp's pool.

aiohttp keeps the pool, resolves names and speaks TLS. Its own reading of answers makes a parser, a queue and a
stream for each, ten times the work of parsing a small answer; here the connection is parser, head and body in one.
The parser is llhttp in its strict mode, as the server's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import httptools
from aiohttp.client_proto import ResponseHandler
from django.conf import settings

#: Bytes of an answer held from which on no more are read. One read brings up to four times as many, and as many again
#: wait to be sent: more than this buys no speed and costs each slow client as much.
READ_BUFFER = 2**16

_IDLE, _HEAD, _BODY, _DONE = range(4)


class UpstreamBroke(Exception):
    """The connection ended before the answer did."""


class UpstreamStale(UpstreamBroke):
    """A kept connection is of no use any more. Nothing of the request was sent."""


class UpstreamInvalid(Exception):
    """What came back is not an HTTP answer that can be relayed."""


class UpstreamProtocol(ResponseHandler):
    """One connection. :meth:`begin`, then :meth:`read_head`, then :meth:`read_body` until :attr:`is_complete`.

    aiohttp's own use of it, for WebSockets, stays as it is.
    """

    status = 0
    #: Name and value of each field of the head, as they came, in order.
    headers: list[tuple[bytes, bytes]]
    #: Status and fields of the interim answers (102 to 199) that nobody has taken yet.
    interim: Sequence[tuple[int, list[tuple[bytes, bytes]]]] = ()
    _ours = False
    _phase = _IDLE
    _without_body = False
    _held_bytes = 0
    _head_bytes = 0
    _interim_bytes = 0
    _heads = 0
    _held = False
    _failure: UpstreamBroke | UpstreamInvalid | None = None
    _awaited: asyncio.Future[None] | None = None
    _reader: Any = None

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._chunks: list[bytes] = []
        conf = settings.GATEWAY
        # Bytes of an answer's head with the interim ones before it, their number, and fields of each.
        self._head_max = int(conf["upstream_head_max_bytes"])
        self._interim_max = int(conf["upstream_max_interim"])
        self._fields_max = int(conf["upstream_head_max_fields"])

    # --- asked by the gateway

    def begin(self, head: bytes, *, without_body: bool) -> None:
        """Send a request's head. ``without_body``: the answer has none whatever its headers say (HEAD).

        Raises :class:`UpstreamStale` when the pooled connection turns out to be closed.
        """
        transport = self.transport
        if transport is None or transport.is_closing() or self._tail:
            raise UpstreamStale("closed while idle")
        if self._reader is None:
            self._reader = httptools.HttpResponseParser(self)
        self._ours = True
        self._phase = _HEAD
        self._without_body = without_body
        self._head_bytes = self._interim_bytes = self._heads = 0
        transport.write(head)

    async def read_head(self) -> None:
        """Wait for the final answer's :attr:`status` and :attr:`headers`, or until there is something in
        :attr:`interim`; what stands there is to be taken before reading on.

        Raises :class:`UpstreamBroke`, :class:`UpstreamInvalid`.
        """
        while self._phase == _HEAD and not self.interim:
            if self._failure is not None:
                raise self._failure
            await self._wait()

    def take_interim(self) -> Sequence[tuple[int, list[tuple[bytes, bytes]]]]:
        """Return the interim answers that have come, once."""
        taken, self.interim = self.interim, ()
        return taken

    async def read_body(self) -> bytes:
        """Return what has come of the body, waiting for something; empty at its end.

        Raises :class:`UpstreamBroke` once what had come before is read.
        """
        while not self._chunks and self._phase == _BODY:
            if self._failure is not None:
                raise self._failure
            await self._wait()
        return self.read_body_nowait()

    def read_body_nowait(self) -> bytes:
        """Return what has come of the body."""
        chunks = self._chunks
        if not chunks:
            return b""
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._held_bytes = 0
        if self._held:
            self._held = False
            self._resume_transport_reading()
        return body

    @property
    def is_complete(self) -> bool:
        """Whether the whole body has come and was read."""
        return self._phase == _DONE and not self._chunks

    async def _wait(self) -> None:
        self._awaited = self._loop.create_future()
        try:
            await self._awaited
        finally:
            self._awaited = None

    def _wake(self) -> None:
        waiter = self._awaited
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- told by the transport

    def data_received(self, data: bytes) -> None:
        if not self._ours:
            super().data_received(data)
            return
        if self._phase == _HEAD:
            self._head_bytes += len(data)
        elif self._phase != _BODY:
            # Bytes that nobody asked for must not become the answer to the next request.
            self._drop(UpstreamInvalid("bytes after the end of the answer"))
            return
        try:
            self._reader.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._drop(UpstreamInvalid("switched protocols unasked"))
        except httptools.HttpParserError as exc:
            self._drop(UpstreamInvalid(str(exc)) if self._phase == _HEAD else UpstreamBroke(str(exc)))
        else:
            if self._phase == _HEAD and self._head_bytes > self._head_max:
                self._drop(UpstreamInvalid("the head is too large"))
        self._wake()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._ours:
            if self._phase == _BODY and exc is None and self._ends_with_connection():
                self._phase = _DONE
            elif self._failure is None:
                self._failure = UpstreamBroke(repr(exc) if exc else "closed by the upstream")
            self._wake()
        # The parser holds our methods.
        self._reader = None
        super().connection_lost(exc)

    def _ends_with_connection(self) -> bool:
        """RFC 9112 §6.3: an answer with neither length nor chunks lasts until the connection's end."""
        return not any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self.headers)

    def _drop(self, failure: UpstreamBroke | UpstreamInvalid) -> None:
        """Give up the connection; whoever waits for the rest of the answer is told."""
        if self._failure is None:
            self._failure = failure
        self._should_close = True
        if self.transport is not None:
            self.transport.abort()

    # --- told by the parser

    def on_message_begin(self) -> None:
        self._heads += 1
        if self._phase != _HEAD:
            raise ValueError("an answer nobody asked for")
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase == _HEAD:
            # Else they are trailers, which are dropped.
            self.headers.append((name, value))
            if len(self.headers) > self._fields_max:
                raise ValueError("too many header lines")

    def on_headers_complete(self) -> None:
        reader = self._reader
        self.status = status = reader.get_status_code()
        if 100 <= status < 200:
            if status == 101:
                raise ValueError("switched protocols unasked")
            self._interim_bytes += self._size()
            if self._heads > self._interim_max or self._interim_bytes > self._head_max:
                raise ValueError("too many interim answers")
            if status != 100:
                # A 100 is for this hop alone: what our client is told, the server says.
                self.interim = [*self.interim, (status, self.headers)]
            return
        if not 200 <= status <= 599:
            raise ValueError(f"status {status}")
        if self._head_bytes > self._head_max and self._interim_bytes + self._size() > self._head_max:
            # It came at once, perhaps with much of its body: only now it is known where it ends.
            raise ValueError("the head is too large")
        if not reader.should_keep_alive():
            self._should_close = True
        self._phase = _BODY
        if self._without_body:
            # The parser, which cannot be told, would wait for the body that the head announces.
            self._phase = _DONE
            self._reader = None

    def _size(self) -> int:
        """Return the bytes of the head that has come, without its reason and what pads the fields' values."""
        return 16 + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        if self._phase != _BODY:
            raise ValueError("a body where none belongs")
        self._chunks.append(body)
        self._held_bytes += len(body)
        if self._held_bytes >= READ_BUFFER and not self._held:
            self._held = True
            self._pause_transport_reading()

    def on_message_complete(self) -> None:
        if self._phase == _BODY:
            self._phase = _DONE

    # --- asked by aiohttp's pool

    def set_response_params(self, **options: Any) -> None:
        # aiohttp takes the connection for a handshake of its own.
        self._ours = False
        super().set_response_params(**options)

    @property
    def should_close(self) -> bool:
        if self._ours:
            return self._should_close or self._phase != _DONE or bool(self._chunks)
        return super().should_close
