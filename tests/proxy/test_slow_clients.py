"""Clients that send slowly, read slowly or do neither are cut, each with its own status and code; and the deadlines
and sizes of one request.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import time

import pytest

from tests.proxy.mirror import Peer, Wire
from tests.proxy.test_websocket_frames import BINARY, accept, plain
from tests.upstream import wait_until

pytestmark = pytest.mark.django_db

# Not so short that a busy machine meets one of them where a test does not mean it to.
HEAD, IDLE, UNREAD, TOTAL = 1.0, 2.0, 1.5, 4.0
#: Seconds within which what is due has happened, on a busy machine as well; the defaults are 20 and more.
LATE = 5.0
BODY_MAX = 1_000_000


@pytest.fixture(scope="module")
def gateway_settings():
    return {
        "head_timeout": HEAD,
        "idle_timeout": IDLE,
        "unread_timeout": UNREAD,
        "total_timeout": TOTAL,
        "body_max_bytes": BODY_MAX,
    }


def trickle(wire: Wire, data: bytes, every: float = 0.05) -> None:
    """Send byte by byte until the other side has had enough."""
    with contextlib.suppress(OSError):
        for at in range(len(data)):
            wire.send(data[at : at + 1])
            time.sleep(every)
            if select.select([wire.socket], [], [], 0)[0]:
                return


@pytest.mark.parametrize("kept", [False, True], ids=["a new connection", "a kept connection"])
@pytest.mark.parametrize("start", [b"G", b"GET /api/v1/proxy/x HTTP/1.1\r\nHost: gw.test\r\nX-One: 1\r\n"])
@pytest.mark.parametrize("trickles", [False, True], ids=["stalls", "trickles"])
def test_a_slow_head_is_refused(served, mirror, kept, start, trickles):
    with served.wire(timeout=20) as wire:
        if kept:
            wire.send(served.request(b"first"))
            assert wire.read().status == 200
        mirror.clear()
        started = time.monotonic()
        wire.send(start)
        if trickles:
            trickle(wire, (b"ET /" if start == b"G" else b"") + b"x" * 100)
        got = wire.read()
        assert (got.status, b'"code": "head_timeout"' in got.body) == (408, True)
        assert got.values(b"connection") == [b"close"]
        assert time.monotonic() - started < HEAD + LATE
    assert mirror.seen == []


@pytest.mark.parametrize("noise", [b"", b"\r\n"], ids=["nothing", "empty lines"])
def test_a_connection_that_says_nothing_is_closed(served, noise):
    with served.wire(timeout=20) as wire:
        started = time.monotonic()
        if noise:
            trickle(wire, noise * 50)
        rest = wire.rest()
        assert rest == b"" if not noise else rest.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - started < HEAD + LATE


def test_a_slow_body_is_refused(served, mirror):
    with served.wire(timeout=20) as wire:
        started = time.monotonic()
        wire.send(served.request(b"x", b"Content-Length: 10\r\n", b"half", method=b"POST"))
        got = wire.read()
        assert (got.status, got.code) == (408, "request_timeout")
        assert time.monotonic() - started < IDLE + LATE


def test_a_body_that_trickles_meets_the_total(served, mirror):
    with served.wire(timeout=20) as wire:
        started = time.monotonic()
        wire.send(served.request(b"x", b"Content-Length: 1000\r\n", method=b"POST"))
        trickle(wire, b"x" * 999, every=0.1)
        got = wire.read()
        assert (got.status, got.code) == (504, "total_timeout")
        assert TOTAL - 0.2 < time.monotonic() - started < TOTAL + LATE


def test_an_event_stream_is_not_bound_by_the_total(served, mirror):
    async def events(peer: Peer) -> bool:
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(45):
            await peer.send(b"9\r\ndata: x\n\n\r\n")
            await asyncio.sleep(0.1)
        await peer.send(b"0\r\n\r\n")
        return True

    mirror.answers["events"] = events
    with served.wire(timeout=20) as wire:
        started = time.monotonic()
        wire.send(served.request(b"events"))
        assert wire.read().body == b"data: x\n\n" * 45
        assert time.monotonic() - started > TOTAL + 0.3


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "in chunks"])
def test_a_body_beyond_the_limit_is_refused(served, mirror, chunked):
    mirror.clear()
    with served.wire(timeout=20) as wire:
        if chunked:
            wire.send(served.request(b"x", b"Transfer-Encoding: chunked\r\n", method=b"POST"))
            with contextlib.suppress(OSError):
                for _ in range(BODY_MAX // 50_000 + 1):
                    wire.send(b"%x\r\n%b\r\n" % (50_000, bytes(50_000)))
        else:
            wire.send(served.request(b"x", b"Content-Length: %d\r\n" % (BODY_MAX + 1), method=b"POST"))
        got = wire.read()
        assert (got.status, got.code) == (413, "body_too_large")
        assert got.values(b"connection") == [b"close"]
    assert mirror.seen == [], "the upstream got a whole request"
    wait_until(lambda: served.in_use == 0, what="the connection's return")


def test_a_body_of_the_limit_passes(served, mirror):
    mirror.clear()
    with served.wire(timeout=20) as wire:
        wire.send(served.request(b"x", b"Content-Length: %d\r\n" % BODY_MAX, bytes(BODY_MAX), method=b"POST"))
        assert wire.read().status == 200
    assert len(mirror.seen[0].body) == BODY_MAX


def connections(served) -> int:
    server = served.live._server
    assert server is not None
    return len(server.server_state.connections)


def small_window(served) -> socket.socket:
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.settimeout(20)
    peer.connect(("127.0.0.1", served.live.port))
    return peer


@pytest.mark.parametrize("size", [3_000_000, 100_000_000], ids=["whole answer written", "answer under way"])
def test_a_client_that_does_not_read_is_cut(served, mirror, size):
    """Both when the exchange is cut and when it was over long before: nothing of it stays."""

    async def much(peer: Peer) -> bool:
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        with contextlib.suppress(OSError):
            for _ in range(size // 100_000):
                await peer.send(bytes(100_000))
        return True

    mirror.answers["much"] = much
    wait_until(lambda: connections(served) == 0, what="the end of earlier connections")
    with small_window(served) as peer:
        peer.sendall(served.request(b"much"))
        wait_until(lambda: connections(served) == 1, what="the connection")
        wait_until(lambda: connections(served) == 0, seconds=UNREAD + 2 * LATE, what="the end of the connection")
        wait_until(lambda: len(served.live.gateway.registry) == 0, what="the end of the exchange")
        wait_until(lambda: served.in_use == 0, what="the upstream's connection")


def test_a_websocket_that_does_not_read_is_cut(served, mirror):
    async def flood(peer: Peer) -> bool:
        protocol, _ = accept(peer, None)
        await peer.send(b"".join(protocol.data_to_send()))
        with contextlib.suppress(OSError):
            while not peer.writer.is_closing():
                await peer.send(plain(BINARY, bytes(65536)))
        return False

    mirror.answers["flood"] = flood
    upgrade = (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    with small_window(served) as peer:
        peer.sendall(served.request(b"flood", upgrade))
        assert peer.recv(12) == b"HTTP/1.1 101"
        wait_until(
            lambda: len(served.live.gateway.registry) == 0, seconds=UNREAD + 2 * LATE, what="the end of the exchange"
        )


def test_a_refusal_is_never_taken_for_an_answer_that_is_owed(served, mirror):
    """What is malformed behind a good request ends the connection after that one's answer."""

    async def late(peer: Peer) -> None:
        await asyncio.sleep(0.2)
        await peer.send(b"HTTP/1.1 201 Made\r\nContent-Length: 4\r\n\r\nmade")

    mirror.answers["late"] = late
    with served.wire(timeout=20) as wire:
        wire.send(served.request(b"late", b"Content-Length: 0\r\n", method=b"POST") + b"garbage\r\n\r\n")
        got = wire.read()
        assert (got.status, got.body) == (201, b"made")
        assert wire.rest() == b""


@pytest.mark.parametrize("length", [True, False], ids=["length", "no length"])
def test_an_old_client_gets_no_chunks(served, mirror, length):
    body = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    if not length:
        body = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
    mirror.answers["old"] = body
    with served.wire(timeout=20) as wire:
        wire.send(served.request(b"old").replace(b"HTTP/1.1", b"HTTP/1.0"))
        got = wire.read()
        assert (got.body, got.framing) == (b"hello", "length" if length else "close")
        assert got.values(b"connection") == [b"close"]


def test_a_half_answer_to_an_old_client_breaks_off(served, mirror):
    async def half(peer: Peer) -> bool:
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        return False

    mirror.answers["half"] = half
    with served.wire(timeout=20) as wire:
        wire.send(served.request(b"half").replace(b"HTTP/1.1", b"HTTP/1.0"))
        got = wire.read()
        assert got.framing == "broken"
