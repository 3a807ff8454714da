"""Sizes and pings as settings, each with other values than its default: what fits passes, what does not is refused as
documented.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from tests.proxy.mirror import OK, Got, Peer, Wire
from tests.proxy.test_websocket_frames import BINARY, KEY, TEXT, Far, accept, close, frame, plain, speaker
from tests.proxy.test_websocket_frames import PING as PING_FRAME
from tests.upstream import wait_until

pytestmark = pytest.mark.django_db

HEAD, FIELDS = 4096, 40
UPSTREAM_HEAD, UPSTREAM_FIELDS = 3000, 20
# A socket that answers no pings must last for as long as its test takes.
MESSAGE, PING = 2000, 2.0

UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n" % KEY


@pytest.fixture(scope="module")
def gateway_settings():
    return {
        "head_max_bytes": HEAD,
        "head_max_fields": FIELDS,
        "upstream_head_max_bytes": UPSTREAM_HEAD,
        "upstream_head_max_fields": UPSTREAM_FIELDS,
        "websocket_max_bytes": MESSAGE,
        "websocket_ping": PING,
    }


def ask(served, extra: bytes = b"", target: bytes = b"x") -> Got:
    with served.wire(timeout=20) as wire:
        wire.send(served.request(target, extra))
        return wire.read()


def filled(served, size: int, extra: bytes = b"") -> bytes:
    """Return the fields that make a request's head this large."""
    rest = size - len(served.request(b"x", extra + b"X-Fill: \r\n"))
    return extra + b"X-Fill: %b\r\n" % (b"v" * rest)


@pytest.mark.parametrize("upgrade", [b"", UPGRADE], ids=["request", "handshake"])
def test_a_requests_head(served, mirror, upgrade):
    mirror.clear()
    got = ask(served, filled(served, HEAD, upgrade))
    assert (got.status, got.code) == ((502, "upstream_refused") if upgrade else (200, ""))
    assert len(mirror.seen) == 1
    got = ask(served, filled(served, HEAD + 1, upgrade))
    assert (got.status, b'"code": "header_fields_too_large"' in got.body) == (431, True)
    assert len(mirror.seen) == 1


def test_a_head_behind_another_request_is_measured_as_well(served, mirror):
    mirror.clear()
    head = b"GET /api/v1/proxy/second HTTP/1.1\r\nHost: gw.test\r\n%bX-Fill: %b\r\n\r\n"
    with served.wire(timeout=20) as wire:
        body = b"b" * 100
        second = head % (served.credentials, b"v" * HEAD)
        wire.send(served.request(b"before-it", b"Content-Length: 100\r\n", body, method=b"POST") + second)
        assert wire.read().status == 200
        assert b"ok" not in wire.rest()
    assert [seen.target for seen in mirror.seen] == [b"/before-it"]


def test_a_requests_fields(served, mirror):
    mirror.clear()
    # Host and the two credentials are there already.
    assert ask(served, b"X: 1\r\n" * (FIELDS - 3)).status == 200
    assert ask(served, b"X: 1\r\n" * (FIELDS - 2)).status == 431
    assert len(mirror.seen) == 1


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"X-Fill: %b\r\n" % (b"v" * (UPSTREAM_HEAD - 100)), 200),
        (b"X-Fill: %b\r\n" % (b"v" * UPSTREAM_HEAD), 502),
        (b"X: 1\r\n" * (UPSTREAM_FIELDS - 1), 200),
        (b"X: 1\r\n" * UPSTREAM_FIELDS, 502),
    ],
    ids=["bytes that fit", "too many bytes", "fields that fit", "too many fields"],
)
def test_an_answers_head(served, mirror, fields, status):
    async def answer(peer: Peer) -> None:
        # The connection stays open: closed without a word it might be just what the next test's request meets.
        for piece in said.pop():
            with contextlib.suppress(OSError):
                await peer.send(piece)
            await asyncio.sleep(0.05)

    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n" + fields + b"\r\n"
    mirror.answers["answer"] = answer
    # At once with the body, and with the last byte of the head apart.
    said: list[list[bytes]] = [[head[:-1], head[-1:] + b"b" * 9000], [head + b"b" * 9000]]
    while said:
        got = ask(served, target=b"answer")
        assert (got.status, got.code) == (status, "" if status == 200 else "upstream_invalid")
        assert len(got.body) == 9000 or status != 200


def test_interim_answers_count_into_the_head(served, mirror):
    hint = b"HTTP/1.1 103 Early Hints\r\nX-Fill: %b\r\n\r\n" % (b"v" * 1000)

    async def one_by_one(peer: Peer) -> bool:
        with contextlib.suppress(OSError):
            for _ in range(4):
                await peer.send(hint)
                await asyncio.sleep(0.05)
            await peer.send(OK)
        return False

    mirror.answers["hints"] = one_by_one
    got = ask(served, target=b"hints")
    assert (got.status, got.code, got.interim) == (502, "upstream_invalid", [103, 103])


def shake(served, target: bytes) -> Wire:
    wire = served.wire(timeout=20)
    wire.send(served.request(target, UPGRADE))
    assert wire.head()[0] == 101
    return wire


def read_message(wire: Wire) -> tuple[int, bytes]:
    """Return the opcode and the payload of the next frame that is no ping."""
    opcode = PING_FRAME
    while opcode == PING_FRAME:
        first, size = wire._exactly(2)
        opcode = first & 15
        payload = wire._exactly(int.from_bytes(wire._exactly(2), "big") if size == 126 else size)
    return opcode, payload


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_of_the_client(served, mirror, opcode):
    mirror.answers["echo"] = speaker(Far())
    with shake(served, b"echo") as wire:
        wire.send(frame(opcode, b"m" * MESSAGE))
        got = read_message(wire)
        assert got == (opcode, b"m" * MESSAGE)
        wire.send(frame(opcode, b"m" * (MESSAGE + 1)))
        got = read_message(wire)
        assert got[0] == 8 and got[1][:2] == close(1009)


def test_a_message_of_the_upstream(served, mirror):
    def says(size: int):
        async def answer(peer: Peer) -> bool:
            protocol, _ = accept(peer, None)
            await peer.send(b"".join(protocol.data_to_send()) + plain(BINARY, b"m" * size))
            await peer.until_closed()
            return False

        return answer

    mirror.answers["fits"], mirror.answers["large"] = says(MESSAGE), says(MESSAGE + 1)
    with shake(served, b"fits") as wire:
        got = read_message(wire)
        assert got == (BINARY, b"m" * MESSAGE)
    with shake(served, b"large") as wire:
        got = read_message(wire)
        assert got[0] == 8 and got[1][:2] == close(1009)


def test_both_sides_are_pinged_and_given_up(served, mirror):
    """One that is silent, pongs included, is gone after two pings' time; the other side is told."""
    pinged: list[float] = []

    async def mute(peer: Peer) -> bool:
        protocol, _ = accept(peer, None)
        await peer.send(b"".join(protocol.data_to_send()))
        started = time.monotonic()
        while data := await peer.reader.read(100):
            if data[0] & 15 == 9:
                pinged.append(time.monotonic() - started)
        return False

    mirror.answers["mute"] = mute
    with shake(served, b"mute") as wire:
        started = time.monotonic()
        got = read_message(wire)
        assert got[0] == 8 and got[1][:2] in (close(1014), close(1011))
        # By default it would take twice twenty seconds.
        assert time.monotonic() - started < 2 * PING + 10
    assert pinged and pinged[0] < PING + 5
    wait_until(lambda: len(served.live.gateway.registry) == 0, what="the end of the exchange")
