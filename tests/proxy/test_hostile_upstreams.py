"""Upstreams that hang, lie, flood and break off: each ends in bounded time with an honest answer, and never reaches
into another request's answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from tests.proxy.mirror import Answer, Got, Peer
from tests.upstream import wait_until

pytestmark = pytest.mark.django_db

#: Seconds. What is late below is later than these; what is there at once is there before on a busy machine, too.
FIRST_BYTE, IDLE, TOTAL = 0.4, 0.5, 2.5
PATIENCE = 30.0
#: Within which every vector must be over, on a busy machine too; what is unbounded takes for ever.
BOUND = TOTAL + 15.0

HEAD = b"HTTP/1.1 200 OK\r\n"
FORGED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-Forged: 1\r\n\r\nforged"


@pytest.fixture(scope="module")
def gateway_settings():
    return {"first_byte_timeout": PATIENCE, "idle_timeout": PATIENCE, "total_timeout": PATIENCE}


@contextlib.contextmanager
def deadlines(served, *, first_byte: float = PATIENCE, idle: float = PATIENCE, total: float = PATIENCE):
    """Let the gateway wait this long, and no longer than for other tests afterwards."""
    registry = served.live.gateway.registry
    registry._first_byte, registry._idle, registry._total = first_byte, idle, total
    yield
    registry._first_byte = registry._idle = registry._total = PATIENCE


def then_close(data: bytes) -> Callable[[Peer], Awaitable[bool]]:
    async def answer(peer: Peer) -> bool:
        await peer.send(data)
        return False

    return answer


def then_wait(data: bytes) -> Callable[[Peer], Awaitable[bool]]:
    async def answer(peer: Peer) -> bool:
        await peer.send(data)
        await peer.until_closed()
        return False

    return answer


def then_reset(data: bytes) -> Callable[[Peer], Awaitable[bool]]:
    async def answer(peer: Peer) -> bool:
        if data:
            await peer.send(data)
            await asyncio.sleep(0.05)
        peer.reset()
        return False

    return answer


def endless(start: bytes, piece: bytes, every: float = 0.0) -> Callable[[Peer], Awaitable[bool]]:
    async def answer(peer: Peer) -> bool:
        await peer.send(start)
        while not peer.writer.is_closing():
            await peer.send(piece)
            await asyncio.sleep(every)
        return False

    return answer


class InTwo:
    """Goes on serving the connection, as every server does that got out of step. ``sent`` is set after both."""

    def __init__(self, first: bytes, second: bytes) -> None:
        self.first, self.second = first, second
        self.sent = threading.Event()

    async def __call__(self, peer: Peer) -> None:
        try:
            await peer.send(self.first)
            await asyncio.sleep(0.05)
            await peer.send(self.second)
        finally:
            self.sent.set()


@dataclass(frozen=True)
class Vector:
    name: str
    answer: Answer
    #: Of our answer; for an answer that was passed on, its status and "", or "broken" when it breaks off.
    status: int
    code: str
    #: What of it the gateway must not wait for any longer.
    deadlines: dict[str, float] = field(default_factory=dict, kw_only=True)
    body: bytes | None = None
    method: bytes = b"GET"


def invalid(name: str, answer: bytes | Answer, **options) -> Vector:
    """An answer that cannot be passed on."""
    return Vector(name, then_wait(answer) if isinstance(answer, bytes) else answer, 502, "upstream_invalid", **options)


def gone(name: str, answer: Answer, **options) -> Vector:
    return Vector(name, answer, 502, "upstream_unreachable", **options)


def late(name: str, answer: Answer, **options) -> Vector:
    return Vector(name, answer, 504, "upstream_timeout", deadlines={"first_byte": FIRST_BYTE}, **options)


def broken(name: str, answer: Answer, **options) -> Vector:
    """Begun before it went wrong; then only hanging up is honest."""
    return Vector(name, answer, 200, "broken", deadlines={"idle": IDLE, "total": TOTAL}, **options)


def whole(name: str, answer: Answer, body: bytes, status: int = 200, **options) -> Vector:
    return Vector(name, answer, status, "", body, **options)


VECTORS = [
    # It hangs, or goes.
    late("says nothing", then_wait(b"")),
    late("half a status line", then_wait(b"HTTP/1.1 20")),
    late("half a head", then_wait(HEAD + b"X-One: 1\r\n")),
    late("a head byte by byte", endless(HEAD, b"X", 0.05)),
    late("a head line by line", endless(HEAD, b"X-One: 1\r\n", 0.05)),
    gone("closes", then_close(b"")),
    gone("resets", then_reset(b"")),
    gone("closes on a POST", then_close(b""), method=b"POST"),
    gone("resets in the status line", then_reset(b"HTTP/1.1 2")),
    gone("closes in the head", then_close(HEAD + b"X-One: 1\r\n")),
    broken("stalls in the body", then_wait(HEAD + b"Content-Length: 10\r\n\r\nhalf")),
    broken("stalls in a chunk", then_wait(HEAD + b"Transfer-Encoding: chunked\r\n\r\n8\r\nhalf")),
    broken("trickles for ever", endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 0.05)),
    broken("trickles without length", endless(HEAD + b"\r\n", b"x", 0.05)),
    broken("closes in the body", then_close(HEAD + b"Content-Length: 10\r\n\r\nhalf")),
    broken("resets in the body", then_reset(HEAD + b"Content-Length: 10\r\n\r\nhalf")),
    broken("closes in a chunk", then_close(HEAD + b"Transfer-Encoding: chunked\r\n\r\n8\r\nhalf")),
    broken("closes before the last chunk", then_close(HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")),
    broken(
        "closes before the end of the trailers",
        then_close(HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n"),
    ),
    # It lies about the length.
    whole("longer than it says", HEAD + b"Content-Length: 4\r\n\r\nhalf and more", b"half"),
    whole("longer than it says, later", InTwo(HEAD + b"Content-Length: 4\r\n\r\nhalf", b" and more"), b"half"),
    invalid("two lengths", HEAD + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nhalf"),
    invalid("a list of lengths", HEAD + b"Content-Length: 4, 4\r\n\r\nhalf"),
    invalid("a negative length", HEAD + b"Content-Length: -1\r\n\r\nhalf"),
    invalid("a length with a sign", HEAD + b"Content-Length: +4\r\n\r\nhalf"),
    invalid("a length beyond 64 bits", HEAD + b"Content-Length: 99999999999999999999\r\n\r\nhalf"),
    invalid(
        "length and chunks", HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n\r\n"
    ),
    invalid("a coding nobody asked for", HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n4\r\nhalf\r\n0\r\n\r\n"),
    invalid("a coding that is none", then_close(HEAD + b"Transfer-Encoding: gzip\r\n\r\nhalf")),
    invalid("chunked twice", HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n4\r\nhalf\r\n0\r\n\r\n"),
    broken("a chunk size that is none", InTwo(HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", b"zz\r\n")),
    broken(
        "a chunk size beyond 64 bits",
        InTwo(HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", b"f" * 17 + b"\r\n"),
    ),
    broken(
        "a chunk longer than it says", InTwo(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n", b"half\r\n0\r\n\r\n")
    ),
    broken(
        "an endless chunk extension", endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n4;", b"x" * 9999)
    ),
    broken(
        "endless trailers",
        endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n", b"X-One: 1\r\n" * 500),
    ),
    # Its head.
    invalid("garbage", b"garbage\r\n\r\n"),
    invalid("endless garbage", endless(b"", b"garbage" * 1000)),
    invalid("SSH", b"SSH-2.0-OpenSSH_9\r\n\r\n"),
    invalid("another protocol", b"ICY 200 OK\r\n\r\n"),
    invalid("a status of two digits", b"HTTP/1.1 99 Odd\r\nContent-Length: 0\r\n\r\n"),
    invalid("a status of four digits", b"HTTP/1.1 2000 Odd\r\nContent-Length: 0\r\n\r\n"),
    invalid("a status above 599", b"HTTP/1.1 600 Odd\r\nContent-Length: 0\r\n\r\n"),
    invalid("no status", b"HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n"),
    invalid("101 unasked", b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
    invalid("NUL in a value", HEAD + b"X-One: a\x00b\r\nContent-Length: 0\r\n\r\n"),
    invalid("a control character in a value", HEAD + b"X-One: a\x01b\r\nContent-Length: 0\r\n\r\n"),
    invalid("DEL in a value", HEAD + b"X-One: a\x7fb\r\nContent-Length: 0\r\n\r\n"),
    invalid("a bare CR in a value", HEAD + b"X-One: a\rX-Two: b\r\nContent-Length: 0\r\n\r\n"),
    invalid("a space in a name", HEAD + b"X One: 1\r\nContent-Length: 0\r\n\r\n"),
    invalid("a bracket in a name", HEAD + b"X(One): 1\r\nContent-Length: 0\r\n\r\n"),
    invalid("an empty name", HEAD + b": 1\r\nContent-Length: 0\r\n\r\n"),
    invalid("a line without a colon", HEAD + b"X-One\r\nContent-Length: 0\r\n\r\n"),
    invalid("10,000 fields", HEAD + b"".join(b"X-N%d: %d\r\n" % (n, n) for n in range(10_000)) + b"\r\n"),
    invalid("a field of a megabyte", HEAD + b"X-One: " + b"v" * 2**20 + b"\r\nContent-Length: 0\r\n\r\n"),
    invalid("a name of a megabyte", HEAD + b"X" * 2**20 + b": 1\r\nContent-Length: 0\r\n\r\n"),
    invalid(
        "fields of several megabytes",
        HEAD + b"".join(b"X-N%d: %b\r\n" % (n, b"v" * 30_000) for n in range(99)) + b"\r\n",
    ),
    invalid("an endless head", endless(HEAD, b"X-One: 1\r\n" * 500)),
    invalid("an endless field", endless(HEAD + b"X-One: ", b"v" * 9999)),
    invalid("an endless status line", endless(b"HTTP/1.1 200 ", b"v" * 9999)),
    # Interim answers.
    whole("a few interim answers", b"HTTP/1.1 103 Early\r\n\r\n" * 5 + HEAD + b"Content-Length: 2\r\n\r\nok", b"ok"),
    invalid("a flood of interim answers", b"HTTP/1.1 103 Early\r\n\r\n" * 5000 + HEAD + b"Content-Length: 2\r\n\r\nok"),
    invalid("interim answers without end", endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 500)),
    late("interim answers and nothing else", endless(b"", b"HTTP/1.1 102 Processing\r\n\r\n", 0.1)),
    # What follows an answer is nobody's.
    whole("a second answer in one packet", HEAD + b"Content-Length: 2\r\n\r\nok" + FORGED, b"ok"),
    whole("a second answer later", InTwo(HEAD + b"Content-Length: 2\r\n\r\nok", FORGED), b"ok"),
    whole("half a second answer later", InTwo(HEAD + b"Content-Length: 2\r\n\r\nok", FORGED[:20]), b"ok"),
    whole("garbage later", InTwo(HEAD + b"Content-Length: 2\r\n\r\nok", b"garbage"), b"ok"),
    whole(
        "an interim answer later",
        InTwo(HEAD + b"Content-Length: 2\r\n\r\nok", b"HTTP/1.1 100 Continue\r\n\r\n"),
        b"ok",
    ),
    whole(
        "a second answer after chunks",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + FORGED,
        b"ok",
    ),
    whole("a second answer after 204", b"HTTP/1.1 204 No\r\n\r\n" + FORGED, b"", 204),
    whole("a second answer after 304", b"HTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n" + FORGED, b"", 304),
    whole("a body to HEAD", HEAD + b"Content-Length: 6\r\n\r\nforged", b"", method=b"HEAD"),
    whole("a second answer after HEAD", HEAD + b"Content-Length: 9\r\n\r\n" + FORGED, b"", method=b"HEAD"),
    whole("a body later, to HEAD", InTwo(HEAD + b"Content-Length: 6\r\n\r\n", b"forged"), b"", method=b"HEAD"),
]


def ask(served, target: bytes, method: bytes = b"GET") -> Got:
    with served.wire(timeout=BOUND + 5) as wire:
        extra = b"Content-Length: 0\r\n" if method == b"POST" else b""
        wire.send(served.request(target, extra, method=method))
        return wire.read(method)


@pytest.mark.parametrize("number", range(len(VECTORS)), ids=[vector.name for vector in VECTORS])
def test_it_ends_in_time_and_stays_apart(served, mirror, number):
    vector = VECTORS[number]
    key = f"hostile{number}"
    mirror.answers[key] = vector.answer
    mirror.clear()
    started = time.monotonic()
    with deadlines(served, **vector.deadlines):
        got = ask(served, key.encode(), vector.method)
    assert time.monotonic() - started < BOUND
    assert (got.status, got.code or ("broken" if got.framing == "broken" else "")) == (vector.status, vector.code)
    if vector.body is not None:
        assert got.body == vector.body
    if vector.code == "broken":
        assert b"0\r\n\r\n" not in got.body
    if isinstance(vector.answer, InTwo):
        # Bytes that come when the connection is in use again would be of that exchange.
        assert vector.answer.sent.wait(20)
    # Two requests: whatever is left on a kept connection must not answer either of them.
    for _ in range(2):
        after = ask(served, b"after")
        assert (after.status, after.body) == (200, b"ok")
        assert not after.values(b"x-forged")
    wait_until(lambda: served.in_use == 0, what="the connections' return")
    wait_until(lambda: len(served.live.gateway.registry) == 0, what="the end of the exchanges")
    if vector.method == b"POST":
        assert len([seen for seen in mirror.seen if seen.method == b"POST"]) == 1


def test_there_are_enough_vectors():
    assert len(VECTORS) >= 60
    assert len({vector.name for vector in VECTORS}) == len(VECTORS)


def test_an_upstream_that_does_not_read_is_given_up(served, mirror):
    async def deaf(peer: Peer) -> bool:
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        while not over.is_set():  # noqa: ASYNC110 - set by another thread
            await asyncio.sleep(0.02)
        return False

    over = threading.Event()
    before = mirror.open - served.pooled
    mirror.answers["deaf"] = deaf
    mirror.early.add("deaf")
    size = 64_000_000
    started = time.monotonic()
    with deadlines(served, idle=2.0), served.wire(timeout=BOUND + 5) as wire:
        wire.send(served.request(b"deaf", b"Content-Length: %d\r\n" % size, method=b"POST"))
        wire.socket.settimeout(BOUND)
        try:
            for _ in range(size // 65536):
                wire.send(b"x" * 65536)
        except OSError:
            # What nobody reads is not taken either.
            pass
        got = wire.read()
    assert (got.status, got.code) == (504, "upstream_timeout")
    assert time.monotonic() - started < BOUND
    # It does not notice by itself, and others count its connections.
    over.set()
    wait_until(lambda: mirror.open - served.pooled == before, what="the end of the deaf connection")


def test_a_thousand_clients_that_leave_cost_no_connection(served, mirror):
    """Aborted before, during and after the answer's head: the pool returns to where it was."""

    async def hang(peer: Peer) -> bool:
        await peer.until_closed()
        return False

    mirror.answers["hang"] = hang
    mirror.answers["stall"] = then_wait(HEAD + b"Content-Length: 10\r\n\r\nhalf")
    mirror.answers["long"] = endless(HEAD + b"\r\n", b"x" * 65536)
    mirror.early.add("hang")
    targets = (b"hang", b"stall", b"long", b"fine")
    # The upstream's own count: what the gateway believes is not asked.
    ask(served, b"fine")
    for _ in range(10):
        peers = []
        for number in range(100):
            wire = served.wire()
            wire.send(served.request(targets[number % 4]))
            peers.append(wire)
        for number, wire in enumerate(peers):
            if number % 4 == 1:
                wire.socket.recv(10)
            # Half of them with a reset, half with an orderly end.
            if number % 8 < 4:
                wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            wire.socket.close()
    wait_until(lambda: len(served.live.gateway.registry) == 0, what="the end of the exchanges")
    wait_until(lambda: served.in_use == 0, what="the connections' return")
    wait_until(lambda: mirror.open == served.pooled, what="the upstream's connections to be those that are kept")
    assert ask(served, b"after").body == b"ok"


def test_the_upstreams_work_stops_within_a_second(served, mirror):
    async def hang(peer: Peer) -> bool:
        await peer.until_closed()
        stopped.append(time.monotonic())
        return False

    stopped: list[float] = []
    mirror.answers["quiet"] = hang
    mirror.early.add("quiet")
    mirror.clear()
    with served.wire() as wire:
        wire.send(served.request(b"quiet"))
        wait_until(lambda: mirror.seen, what="the request at the upstream")
        left = time.monotonic()
    wait_until(lambda: stopped, what="the end of the upstream's work")
    assert stopped[0] - left < 1.0
