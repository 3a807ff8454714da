"""HTTP/1.1 as the server speaks it: uvicorn's, with bounds of its own and less work a request.

A head may be neither endless nor slow, refusals have the API's own form, and what an answer's head and first bytes
cost is paid once: checked together, written together. uvicorn checks each field by itself, writes head and body
apart, and sets up a timer, an event and a parsed URL for every request; at thousands of requests a second that is a
third of a worker's time.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import uuid
from typing import Any
from urllib.parse import unquote

import httptools
from django.conf import settings
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets import http11

from zenzefi.lib.streaming import ANSWER, BODY_FOLLOWS, INTERIM
from zenzefi.runtime.strictness import handshake_fault, is_good_request_line

#: Bytes of a body in chunks that carry none of it: sizes, extensions, trailers. The parser keeps a trailer until its
#: end, and no deadline is as quick as a client (RFC 9112 §7.1.1).
FRAMING_MAX_BYTES = 64 * 1024

#: Seconds in which what a refused client still sends is thrown away. Closing on unread bytes resets the connection,
#: and the answer with it (RFC 9112 §9.6).
LINGER_SECONDS = 1.0

#: Seconds for which a kept connection may be silent when the worker stops. A request that is on its way finds it open.
LAST_REQUEST_SECONDS = 0.5

#: Who comes over a Unix socket, which has no addresses.
LOOPBACK = ("127.0.0.1", 0)

#: Bytes of an answer's first piece up to which copying it behind the head is cheaper than a second system call.
_JOIN_BYTES = 64 * 1024

_REFUSALS = {
    400: (b"Bad Request", "bad_request", "The request is malformed."),
    408: (b"Request Timeout", "head_timeout", "The request's head did not arrive in time."),
    431: (b"Request Header Fields Too Large", "header_fields_too_large", "The request's header fields are too large."),
}

# RFC 9110 §5.1 and §5.5: what a field's name consists of, and the bytes that no field may contain.
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PLAIN_BYTES = bytes(byte for byte in range(256) if byte >= 0x20 and byte != 0x7F) + b"\t"
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection"})

# How the head of an answer without a body ends, and the last one's of a connection.
_NOTHING = b"content-length: 0\r\n\r\n"
_NOTHING_MORE = b"content-length: 0\r\nconnection: close\r\n\r\n"

#: ``scope["extensions"]`` by version. RFC 9110 §15.2: HTTP/1.0 knows no interim answers.
_EXTENSIONS: dict[str, dict[str, dict[str, Any]]] = {
    "1.1": {INTERIM: {}, ANSWER: {}},
    "1.0": {ANSWER: {}},
}

# A handshake has passed our own bounds when the library reads it. What exceeded the library's it would never answer.
http11.MAX_LINE_LENGTH = http11.MAX_NUM_HEADERS = 2**31

#: Names of answers' fields as they go out, by how the application spells them. Bounded; they come from upstreams.
_names: dict[bytes, bytes] = {}


def _learn(name: bytes) -> bytes:
    """Return a field's name in lower case. Raises :class:`RuntimeError` when it is none."""
    if not _NAME.fullmatch(name):
        raise RuntimeError("Invalid HTTP header name.")
    lower = name.lower()
    if len(_names) < 2048:
        _names[name] = lower
    return lower


def _joined(lines: list[bytes]) -> bytes:
    """Return a head of these lines. Raises :class:`RuntimeError` when one of them is none, or more than one."""
    count = len(lines) + 1
    lines.append(b"\r\n")
    head = b"".join(lines)
    if head.translate(None, _PLAIN_BYTES) != b"\r\n" * count:
        raise RuntimeError("Invalid HTTP header value.")
    return head


def _size_of(target: bytes, fields: list[tuple[bytes, bytes]]) -> int:
    """Return the bytes of a request's head, without what pads the fields' values. The method counts as three."""
    return len(target) + 18 + sum(len(name) + len(value) + 4 for name, value in fields)


class Wakeup:
    """What uvicorn needs of ``asyncio.Event``, for half the price while nobody waits."""

    __slots__ = ("_is_set", "_loop", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None

    def set(self) -> None:
        self._is_set = True
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def clear(self) -> None:
        self._is_set = False

    async def wait(self) -> None:
        while not self._is_set:
            if self._waiter is None or self._waiter.done():
                self._waiter = self._loop.create_future()
            # Shared, so that one waiter's end is not the others'.
            await asyncio.shield(self._waiter)


def _bound_unread(transport: asyncio.Transport) -> None:
    """Have the kernel reset a connection whose client leaves what it was sent unread.

    Nothing else ends it: closing waits for the rest to be written, and so does a WebSocket's answer to a missing pong.
    """
    peer = transport.get_extra_info("socket")
    if peer is not None and peer.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = max(1, round(settings.GATEWAY["unread_timeout"] * 1000))
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


class Cycle(RequestResponseCycle):
    """One request and its answer. uvicorn's own, but for how the answer is written."""

    disconnected = False
    more_body = True
    response_started = False
    response_complete = False
    chunked_encoding = None
    expected_content_length = 0
    #: The answer has neither length nor chunks: the connection's end is its end (RFC 9112 §6.3, for HTTP/1.0).
    _until_close = False
    #: Waits for the first bytes of the body, which the application has announced.
    _head = b""

    def __init__(self, protocol: BoundedHttpProtocol, scope: dict[str, Any], keep_alive: bool) -> None:
        # The class has the rest of what uvicorn's constructor would set.
        self.scope = scope  # type: ignore[assignment]
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.logger = protocol.logger
        self.message_event = Wakeup(protocol.loop)  # type: ignore[assignment]
        self.on_response = protocol.on_response_complete
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = protocol.expect_100_continue
        self.body = bytearray()

    async def send(self, message: Any) -> None:
        # An interim answer waits for nobody: those of a request are few, and the final one waits.
        if self.flow.write_paused and not self.disconnected and message["type"] != INTERIM:
            await self.flow.drain()
        if self.disconnected:
            return
        if message["type"] == ANSWER and not self.response_started:
            self._send_answer(message["lines"], message["count"])
            return
        expected = "http.response.body" if self.response_started else "http.response.start"
        if message["type"] != expected or self.response_complete:
            if message["type"] == INTERIM and not self.response_started and INTERIM in self.scope["extensions"]:
                self._send_interim(message["status"], message["headers"])
                return
            raise RuntimeError(f"Expected ASGI message {expected!r}, but got {message['type']!r}.")
        if self.response_started:
            self._send_body(message.get("body", b""), message.get("more_body", False))
        else:
            self._send_head(message["status"], message.get("headers", ()), BODY_FOLLOWS in message)

    def _send_interim(self, status: int, headers: Any) -> None:
        if not 102 <= status <= 199:
            raise RuntimeError(f"{status} is not the status of an interim answer.")
        lines = [STATUS_LINE[status]]
        for name, value in headers:
            lower = _names.get(name) or _learn(name)
            if lower in _FRAMING:
                raise RuntimeError("An interim answer has no framing.")
            lines.append(b"%b: %b\r\n" % (lower, value))
        self.transport.write(_joined(lines))

    def _send_answer(self, lines: bytes, count: int) -> None:
        if lines.translate(None, _PLAIN_BYTES) != b"\r\n" * count:
            raise RuntimeError("Invalid HTTP header value.")
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.transport.write(b"HTTP/1.1 200 OK\r\n%b%b" % (lines, _NOTHING if self.keep_alive else _NOTHING_MORE))
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def _send_head(self, status: int, headers: Any, body_follows: bool) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        lines = [STATUS_LINE[status]]
        closes = False
        for name, value in headers:
            lower = _names.get(name) or _learn(name)
            lines.append(b"%b: %b\r\n" % (lower, value))
            if lower in _FRAMING:
                if lower == b"content-length" and self.chunked_encoding is None:
                    self.expected_content_length = int(value)
                    self.chunked_encoding = False
                elif lower == b"transfer-encoding" and value.lower() == b"chunked":
                    self.expected_content_length = 0
                    self.chunked_encoding = True
                elif lower == b"connection" and b"close" in (token.strip() for token in value.lower().split(b",")):
                    self.keep_alive = False
                    closes = True
        if not self.keep_alive and not closes:
            lines.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in (204, 304):
            if self.scope["http_version"] == "1.0":
                self._until_close = True
            else:
                self.chunked_encoding = True
                lines.append(b"transfer-encoding: chunked\r\n")
        head = _joined(lines)
        if body_follows:
            self._head = head
        else:
            self.transport.write(head)

    def _send_body(self, body: bytes, more_body: bool) -> None:
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            data = b""
        elif self.chunked_encoding:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more_body:
                data += b"0\r\n\r\n"
        else:
            data = body
            if not self._until_close:
                self.expected_content_length -= len(body)
                if self.expected_content_length < 0:
                    raise RuntimeError("Response content longer than Content-Length")
        if self._head:
            head, self._head = self._head, b""
            if len(data) <= _JOIN_BYTES:
                data = head + data
            else:
                self.transport.write(head)
        if data:
            self.transport.write(data)
        if not more_body:
            if self.expected_content_length != 0:
                raise RuntimeError("Response content shorter than Content-Length")
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()


class BoundedHttpProtocol(HttpToolsProtocol):
    """Refuses with 431 (RFC 6585 §5) a head above ``GATEWAY_HEAD_MAX_BYTES`` or ``GATEWAY_HEAD_MAX_FIELDS``, and with
    408 one that takes longer than ``GATEWAY_HEAD_TIMEOUT``, counted from its first byte; ends with 400 a body whose
    framing has no end.
    """

    _head_bytes = 0
    #: Since the head, or since the last piece of the body.
    _framing_bytes = 0
    #: What was read last could hold a head that is too large, and whole.
    _is_much = False
    _in_head = True
    _refused = False
    #: The worker stops: the connection ends with the next answer.
    _leaving = False
    _watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        if peer is not None and peer.family == socket.AF_UNIX:
            # On a Unix socket: somebody of this machine, as on its loopback.
            self.client, self.server = LOOPBACK, (settings.HOST, settings.PORT)
        _bound_unread(transport)
        #: When the connection fell idle, or the head began that is being read.
        self._since = self.loop.time()
        conf = settings.GATEWAY
        self._head_seconds: float = conf["head_timeout"]
        self._head_max = int(conf["head_max_bytes"])
        self._fields_max = int(conf["head_max_fields"])
        self._pause = self._head_seconds / 4
        self._watch = self.loop.call_later(self._pause, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self) -> None:
        fault = handshake_fault(self.scope["method"], self.scope["http_version"], self.headers)
        if fault or not (self.cycle is None or self.cycle.response_complete):
            # Where an earlier answer is still on its way, it would end up among the frames.
            self._refuse(400)
            return
        self._stop_watching()
        super().handle_websocket_upgrade()

    def shutdown(self) -> None:
        """Take leave: the last answer tells the client, and only what is silent is closed without a word.

        uvicorn closes at once what is idle, and loses the request that is just arriving (RFC 9112 §9.5).
        """
        self._leaving = True
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False
        elif not self._head_bytes:
            self._since = self.loop.time()
        self._stop_watching()
        self._pause = LAST_REQUEST_SECONDS / 4
        self._watch = self.loop.call_later(LAST_REQUEST_SECONDS, self._look)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _look(self) -> None:
        """Close what has been idle, and refuse a head that has been coming, for too long.

        A look now and then takes the place of a timer for every request.
        """
        self._watch = self.loop.call_later(self._pause, self._look)
        if self.cycle is None or self.cycle.response_complete:
            waited = self.loop.time() - self._since
            if self._head_bytes:
                if waited > self._head_seconds:
                    self._refuse(408)
            elif self._leaving:
                if waited >= LAST_REQUEST_SECONDS:
                    self.transport.close()
            elif waited > (self._head_seconds if self.cycle is None else self.timeout_keep_alive):
                self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        size = len(data)
        self._is_much = size > self._head_max
        if self._in_head:
            self._head_bytes += size
        elif self._framing_bytes > FRAMING_MAX_BYTES:
            self._refuse(400)
            return
        else:
            self._framing_bytes += size
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse(400)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:
                self._unsupported_upgrade_warning()
        if self._in_head and self._head_bytes > self._head_max:
            self._refuse(431)

    def on_message_begin(self) -> None:
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._in_head = True
        self._since = self.loop.time()
        # What came with the end of another request is not counted, but it has begun.
        self._head_bytes = self._head_bytes or 1

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            # A trailer: it comes after the decision on the request and must not look like a part of its head.
            return
        name = name.lower()
        self.headers.append((name, value))
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        if len(self.headers) > self._fields_max or len(name) + len(value) > self._head_max:
            self._refuse(431)
            # Stops the parser, which reports it as malformed; by then it is refused.
            raise ValueError("too many header fields")

    def on_headers_complete(self) -> None:
        parser = self.parser
        url = self.url
        if (self._is_much or self._head_bytes > self._head_max) and _size_of(url, self.headers) > self._head_max:
            self._refuse(431)
            raise ValueError("a head that is too large")
        self._in_head = False
        self._head_bytes = self._framing_bytes = 0
        version = parser.get_http_version()
        if not is_good_request_line(url, version, self.headers):
            self._refuse(400)
            raise ValueError("a request line that is not acted on")
        if url[:1] == b"/" and b"#" not in url:
            raw_path, _, query = url.partition(b"?")
        else:
            parsed = httptools.parse_url(url)
            raw_path, query = parsed.path, parsed.query or b""
        path = raw_path.decode("ascii")
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "method": parser.get_method().decode("ascii"),
            "path": self.root_path + (unquote(path) if "%" in path else path),
            "raw_path": self.root_path.encode("ascii") + raw_path,
            "query_string": query,
            "headers": self.headers,
            "extensions": _EXTENSIONS[version],
        }
        self.scope = scope  # type: ignore[assignment]
        if parser.should_upgrade() and self._should_upgrade():
            return
        running = self.cycle
        self.cycle = cycle = Cycle(self, scope, version != "1.0" and parser.should_keep_alive() and not self._leaving)
        if running is None or running.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:
            # A pipelined request waits for the answer before it.
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def on_body(self, body: bytes) -> None:
        self._framing_bytes = 0
        cycle = self.cycle
        if (self.parser.should_upgrade() and self._should_upgrade()) or cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)

    def _refuse(self, status: int) -> None:
        """Answer and close. Nothing of the request can be believed, so neither its id nor its language is used."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        running = self.cycle
        if running is not None and not running.response_complete:
            if not running.more_body:
                # Good requests came before; the last of their answers ends the connection, and nobody takes this
                # refusal for one of them.
                running.keep_alive = False
                return
            if running.response_started or self.pipeline:
                self.transport.close()
                return
        request_id = uuid.uuid4().hex
        reason, code, detail = _REFUSALS[status]
        body = json.dumps({"detail": detail, "code": code, "request_id": request_id}).encode()
        head = (
            b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"x-request-id: %b\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head % (status, reason, len(body), request_id.encode()) + body)
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            # The malformed part is a body; the application that reads it must see the client gone.
            self.transport.close()


class GracefulWebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's own, but that it is not cut when the worker should stop: that is the gateway's part, with 1012, once
    the grace period is over.
    """

    def shutdown(self) -> None:
        if self.close_sent:
            super().shutdown()
