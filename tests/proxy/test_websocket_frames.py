"""WebSockets frame by frame, after the sections of the Autobahn test suite: what a client's frames are answered with,
what an upstream's frames become, and what a handshake must be. The upstream speaks through the websockets library's
protocol without I/O, the client writes its frames by hand, as no library would send most of them.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import threading
import time
from dataclasses import dataclass

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.sync.client import connect
from websockets.utils import accept_key

from tests.proxy.live import DEVICE
from tests.proxy.mirror import Peer, Wire
from tests.upstream import wait_until

pytestmark = pytest.mark.django_db

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MEGABYTE = 2**20
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True) -> bytes:
    size = len(payload)
    first = fin << 7 | rsv << 4 | opcode
    length = (
        struct.pack("!BB", first, mask << 7 | size)
        if size < 126
        else struct.pack("!BBH", first, mask << 7 | 126, size)
        if size < 65536
        else struct.pack("!BBQ", first, mask << 7 | 127, size)
    )
    if not mask:
        return length + payload
    key = b"\x11\x22\x33\x44"
    repeated = (key * (size // 4 + 1))[:size]
    masked = (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(size, "big")
    return length + key + masked


def close(code: int, reason: bytes = b"") -> bytes:
    return struct.pack("!H", code) + reason


# --- the upstream


class Far:
    """What the upstream's end of the sockets saw."""

    def __init__(self) -> None:
        self.closed: list[tuple[int, str]] = []
        self.messages: list[tuple[int, bytes]] = []
        self.requests: list[Request] = []
        self.pongs: list[bytes] = []


def accept(peer: Peer, subprotocols: list[str] | None) -> tuple[ServerProtocol, Request]:
    assert peer.seen is not None
    protocol = ServerProtocol(max_size=None, subprotocols=subprotocols)  # type: ignore[arg-type]
    lines = b"".join(b"%b: %b\r\n" % pair for pair in peer.seen.headers)
    protocol.receive_data(b"GET %b HTTP/1.1\r\n%b\r\n" % (peer.seen.target, lines))
    [request] = protocol.events_received()
    assert isinstance(request, Request)
    protocol.send_response(protocol.accept(request))
    return protocol, request


def speaker(far: Far, first: bytes = b"", *, echo: bool = True, vanish: bool = False):
    """Return an upstream that accepts, sends ``first`` as it is, and echoes messages."""

    async def answer(peer: Peer) -> bool:
        protocol, request = accept(peer, ["chat", "json"] if b"sec-websocket-protocol" in dict(lower(peer)) else None)
        far.requests.append(request)
        try:
            await peer.send(b"".join(protocol.data_to_send()) + first)
        except OSError:
            far.closed.append((1006, ""))
            return False
        if vanish:
            peer.reset()
            return False
        opcode, message = TEXT, b""
        while not peer.reader.at_eof():
            data = await peer.reader.read(1 << 18)
            protocol.receive_data(data) if data else protocol.receive_eof()
            for event in protocol.events_received():
                assert isinstance(event, Frame)
                if event.opcode is Opcode.PONG:
                    far.pongs.append(bytes(event.data))
                if event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                    opcode = opcode if event.opcode is Opcode.CONT else int(event.opcode)
                    message += event.data
                    if event.fin:
                        far.messages.append((opcode, message))
                        if echo:
                            (protocol.send_text if opcode == TEXT else protocol.send_binary)(message)
                        message = b""
            if sent := b"".join(protocol.data_to_send()):
                await peer.send(sent)
            if protocol.close_expected():
                break
        if protocol.close_rcvd is not None:
            far.closed.append((int(protocol.close_rcvd.code), protocol.close_rcvd.reason))
        else:
            far.closed.append((1006, ""))
        return False

    return answer


def lower(peer: Peer):
    assert peer.seen is not None
    return [(name.lower(), value) for name, value in peer.seen.headers]


@pytest.fixture
def far(mirror):
    """Echoes at ``/ws``."""
    seen = Far()
    mirror.answers["ws"] = speaker(seen)
    return seen


# --- the client


class Near:
    """A client that sends and reads single frames."""

    def __init__(self, served, target: bytes = b"ws", extra: bytes = b"") -> None:
        self.wire = Wire(served.live.port, timeout=20)
        upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY
        self.wire.send(served.request(target, upgrade + b"\r\n" + extra))
        self.head = self.wire._until(b"\r\n\r\n")
        assert self.head.startswith(b"HTTP/1.1 101 "), self.head

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.__exit__()

    def send(self, data: bytes) -> None:
        self.wire.send(data)

    def read(self) -> tuple[int, bytes]:
        """Return opcode and payload of one frame. Raises EOFError."""
        first, second = self.wire._exactly(2)
        assert not second & 128, "a server's frames are not masked"
        assert not first & 0x70, "reserved bits"
        size = second & 127
        if size > 125:
            size = int.from_bytes(self.wire._exactly(2 if size == 126 else 8), "big")
        assert first & 128, "the gateway sends whole messages"
        return first & 15, self.wire._exactly(size)

    def end(self) -> int:
        """Skip to the close frame and return its code; 1005 without one in it, 1006 without a frame."""
        try:
            while True:
                opcode, payload = self.read()
                if opcode == CLOSE:
                    return int.from_bytes(payload[:2], "big") if payload else 1005
        except EOFError:
            return 1006


@dataclass(frozen=True)
class Sent:
    """What a client sends, and the frames or the close code that it gets."""

    name: str
    data: bytes
    frames: tuple[tuple[int, bytes], ...] = ()
    ends: int | None = None
    #: Bytes a write; the whole at once otherwise.
    chopped: int = 0


def echoes(name: str, opcode: int, payload: bytes, **options) -> Sent:
    return Sent(name, frame(opcode, payload), ((opcode, payload),), **options)


def fails(name: str, data: bytes, code: int = 1002) -> Sent:
    return Sent(name, data, (), code)


KOSME = "κόσμε 𝄞".encode()
SIZES = (0, 1, 125, 126, 127, 128, 65535, 65536)
CLIENT = [
    # 1: framing
    *(echoes(f"1 text of {size}", TEXT, b"x" * size) for size in SIZES),
    *(
        echoes(f"1 binary of {size}", BINARY, bytes(range(256)) * (size // 256) + b"\xfe" * (size % 256))
        for size in SIZES
    ),
    echoes("1 text byte by byte", TEXT, b"x" * 300, chopped=1),
    echoes("1 binary in pieces", BINARY, b"\x00" * 65536, chopped=997),
    fails("1 not masked", frame(TEXT, b"x", mask=False)),
    # 2: pings and pongs
    Sent("2 ping", frame(PING), ((PONG, b""),)),
    Sent("2 ping with a payload", frame(PING, b"hello"), ((PONG, b"hello"),)),
    Sent("2 ping with bytes", frame(PING, b"\x00\xff\xfe"), ((PONG, b"\x00\xff\xfe"),)),
    Sent("2 ping of 125", frame(PING, b"p" * 125), ((PONG, b"p" * 125),)),
    Sent("2 ping byte by byte", frame(PING, b"p" * 125), ((PONG, b"p" * 125),), chopped=1),
    fails("2 ping of 126", frame(PING, b"p" * 126)),
    Sent("2 pong unasked", frame(PONG, b"x") + frame(TEXT, b"t"), ((TEXT, b"t"),)),
    Sent("2 ten pings", frame(PING, b"a") * 10, ((PONG, b"a"),) * 10),
    # 3: reserved bits
    *(fails(f"3 text with bits {bits:03b}", frame(TEXT, b"x", rsv=bits)) for bits in (1, 2, 3, 5, 7)),
    fails("3 ping with a bit", frame(PING, b"x", rsv=1)),
    fails("3 close with bits", frame(CLOSE, close(1000), rsv=7)),
    # 4: reserved opcodes
    *(fails(f"4 opcode {opcode}", frame(opcode, b"x")) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
    # 5: fragmentation
    Sent("5 two fragments", frame(TEXT, b"a", fin=False) + frame(CONT, b"b"), ((TEXT, b"ab"),)),
    Sent(
        "5 binary in three",
        frame(BINARY, b"a", fin=False) + frame(CONT, b"b", fin=False) + frame(CONT),
        ((BINARY, b"ab"),),
    ),
    Sent(
        "5 a ping between fragments",
        frame(TEXT, b"a", fin=False) + frame(PING, b"p") + frame(CONT, b"b"),
        ((PONG, b"p"), (TEXT, b"ab")),
    ),
    Sent("5 empty fragments", frame(TEXT, fin=False) + frame(CONT, fin=False) * 3 + frame(CONT, b"x"), ((TEXT, b"x"),)),
    Sent("5 fragments byte by byte", frame(TEXT, b"a", fin=False) + frame(CONT, b"b"), ((TEXT, b"ab"),), chopped=1),
    fails("5 a fragmented ping", frame(PING, b"p", fin=False) + frame(CONT, b"q")),
    fails("5 a fragmented close", frame(CLOSE, close(1000), fin=False)),
    fails("5 a continuation of nothing", frame(CONT, b"x")),
    fails("5 an end of nothing", frame(CONT, b"x", fin=False)),
    fails("5 a message within a message", frame(TEXT, b"a", fin=False) + frame(TEXT, b"b")),
    fails("5 a binary within a text", frame(TEXT, b"a", fin=False) + frame(BINARY, b"b", fin=False)),
    # 6: UTF-8
    echoes("6 text of several scripts", TEXT, KOSME),
    echoes("6 the last code point", TEXT, "\U0010ffff\ufffe\u0000".encode()),
    Sent("6 a code point over fragments", frame(TEXT, KOSME[:3], fin=False) + frame(CONT, KOSME[3:]), ((TEXT, KOSME),)),
    Sent(
        "6 a code point byte by byte",
        b"".join(
            [
                frame(TEXT, fin=False),
                *(frame(CONT, KOSME[n : n + 1], fin=False) for n in range(len(KOSME))),
                frame(CONT),
            ]
        ),
        ((TEXT, KOSME),),
    ),
    *(
        fails(f"6 {name}", frame(TEXT, data), 1007)
        for name, data in (
            ("a lone continuation", b"\x80"),
            ("a cut sequence", KOSME[:-1]),
            ("an overlong slash", b"\xc0\xaf"),
            ("an overlong NUL", b"\xe0\x80\x80"),
            ("a surrogate", b"\xed\xa0\x80"),
            ("beyond Unicode", b"\xf4\x90\x80\x80"),
            ("0xff", b"ok\xff"),
        )
    ),
    fails("6 invalid over fragments", frame(TEXT, b"\xce", fin=False) + frame(CONT, b"\xff"), 1007),
    # 7: closing
    *(
        fails(f"7 code {code}", frame(CLOSE, close(code)), code)
        for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011)
    ),
    *(fails(f"7 code {code}", frame(CLOSE, close(code)), code) for code in (3000, 3999, 4000, 4999)),
    *(
        fails(f"7 invalid code {code}", frame(CLOSE, close(code)))
        for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65535)
    ),
    fails("7 no code", frame(CLOSE), 1005),
    fails("7 half a code", frame(CLOSE, b"\x03")),
    fails("7 the longest reason", frame(CLOSE, close(1000, b"r" * 123)), 1000),
    fails("7 a reason too long", frame(CLOSE, close(1000, b"r" * 124))),
    fails("7 a reason that is no text", frame(CLOSE, close(1000, b"\xff")), 1007),
    fails("7 text after close", frame(CLOSE, close(1000)) + frame(TEXT, b"x"), 1000),
    fails("7 ping after close", frame(CLOSE, close(1000)) + frame(PING, b"x"), 1000),
    fails("7 close twice", frame(CLOSE, close(1000)) * 2, 1000),
    # 9: limits
    echoes("9 text of 1 MiB", TEXT, b"x" * MEGABYTE),
    echoes("9 binary of 16 MiB", BINARY, b"\x01" * (16 * MEGABYTE)),
    Sent(
        "9 1 MiB in fragments of 4 KiB",
        frame(BINARY, b"z" * 4096, fin=False) + frame(CONT, b"z" * 4096, fin=False) * 254 + frame(CONT, b"z" * 4096),
        ((BINARY, b"z" * MEGABYTE),),
    ),
    fails("9 more than 16 MiB", frame(BINARY, b"\x01" * (16 * MEGABYTE + 1)), 1009),
    fails("9 a length that nobody sends", b"\x82\xff" + b"\x7f" + b"\xff" * 7 + b"mask", 1009),
    fails(
        "9 more than 16 MiB in fragments",
        frame(BINARY, b"z" * MEGABYTE, fin=False) + frame(CONT, b"z" * MEGABYTE, fin=False) * 16,
        1009,
    ),
    # 10: everything in one packet
    Sent(
        "10 many messages in one packet",
        b"".join(frame(TEXT, b"%d" % n) for n in range(500)),
        tuple((TEXT, b"%d" % n) for n in range(500)),
    ),
]


@pytest.mark.parametrize("case", CLIENT, ids=lambda case: case.name)
def test_a_clients_frames(served, far, case):
    with Near(served) as near:
        if case.chopped:
            for at in range(0, len(case.data), case.chopped):
                near.send(case.data[at : at + case.chopped])
        else:
            try:
                near.send(case.data)
            except ConnectionError:
                # Refused before it was all sent.
                assert case.ends == 1009
        for expected in case.frames:
            assert near.read() == expected
        if case.ends is None:
            near.send(frame(CLOSE, close(1000, b"done")))
            assert near.end() == 1000
        else:
            assert near.end() == case.ends
            assert far.messages == []
    wait_until(lambda: far.closed, what="the end of the upstream's side")
    wait_until(lambda: len(served.live.gateway.registry) == 0, what="the end of the exchange")
    if case.ends is None:
        assert far.closed == [(1000, "done")]
    elif case.name.startswith("7 code"):
        assert far.closed == [(case.ends, "")]


def said(name: str, data: bytes, *frames: tuple[int, bytes], ends: int | None = None) -> Sent:
    return Sent(name, data, frames, ends)


def plain(opcode: int, payload: bytes = b"", **options) -> bytes:
    return frame(opcode, payload, mask=False, **options)


UPSTREAM = [
    said("text", plain(TEXT, KOSME), (TEXT, KOSME)),
    said("binary", plain(BINARY, b"\x00\xff"), (BINARY, b"\x00\xff")),
    said("fragments", plain(TEXT, b"a", fin=False) + plain(CONT, b"b"), (TEXT, b"ab")),
    said("a ping between fragments", plain(TEXT, b"a", fin=False) + plain(PING) + plain(CONT, b"b"), (TEXT, b"ab")),
    said("a code point over fragments", plain(TEXT, KOSME[:3], fin=False) + plain(CONT, KOSME[3:]), (TEXT, KOSME)),
    said("empty", plain(TEXT), (TEXT, b"")),
    said("16 MiB", plain(BINARY, b"\x01" * (16 * MEGABYTE)), (BINARY, b"\x01" * (16 * MEGABYTE))),
    # RFC 6455 §5.1 would have it refused; the library unmasks it, and nothing is gained by such a frame.
    said("masked", frame(TEXT, b"x"), (TEXT, b"x")),
    said("an unasked pong", plain(PONG, b"x") + plain(TEXT, b"t"), (TEXT, b"t")),
    *(
        said(f"close {code}", plain(CLOSE, close(code, b"why")), ends=code)
        for code in (1000, 1001, 1003, 1008, 1011, 1012)
    ),
    *(said(f"close {code}", plain(CLOSE, close(code, b"why")), ends=code) for code in (3000, 4000, 4999)),
    said("close without a code", plain(CLOSE), ends=1000),
    said("a message and close", plain(TEXT, b"last") + plain(CLOSE, close(1001)), (TEXT, b"last"), ends=1001),
    # What the upstream does wrong is no fault of the client's: 1014, bad gateway.
    said("reserved bits", plain(TEXT, b"x", rsv=2), ends=1014),
    said("compressed unasked", plain(TEXT, b"x", rsv=4), ends=1014),
    said("a reserved opcode", plain(3, b"x"), ends=1014),
    said("a fragmented ping", plain(PING, b"x", fin=False), ends=1014),
    said("a ping of 126", plain(PING, b"x" * 126), ends=1014),
    said("a continuation of nothing", plain(CONT, b"x"), ends=1014),
    said("a message within a message", plain(TEXT, b"a", fin=False) + plain(TEXT, b"b"), ends=1014),
    said("text that is none", plain(TEXT, b"\xff"), ends=1014),
    said("an invalid close code", plain(CLOSE, close(999)), ends=1014),
    said("half a close code", plain(CLOSE, b"\x03"), ends=1014),
    said("more than 16 MiB", plain(BINARY, b"\x01" * (16 * MEGABYTE + 1)), ends=1009),
    said("not frames at all", b"HTTP/1.1 200 OK\r\n\r\n", ends=1014),
]


@pytest.mark.parametrize("number", range(len(UPSTREAM)), ids=[case.name for case in UPSTREAM])
def test_an_upstreams_frames(served, mirror, number):
    case, seen = UPSTREAM[number], Far()
    mirror.answers[f"said{number}"] = speaker(seen, case.data)
    with Near(served, b"said%d" % number) as near:
        for expected in case.frames:
            assert near.read() == expected
        if case.ends is not None:
            assert near.end() == case.ends
    wait_until(lambda: seen.closed, what="the end of the upstream's side")
    wait_until(lambda: len(served.live.gateway.registry) == 0, what="the end of the exchange")
    if "ping between" in case.name:
        assert seen.pongs == [b""]


def test_there_are_enough_cases():
    assert len(CLIENT) + len(UPSTREAM) >= 60


# --- handshakes


KEYED = b"Sec-WebSocket-Key: " + KEY + b"\r\n"
VERSION = b"Sec-WebSocket-Version: 13\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"


@pytest.mark.parametrize(
    ("method", "extra"),
    [
        (b"GET", UPGRADE + VERSION),
        (b"GET", UPGRADE + VERSION + KEYED + KEYED),
        (b"GET", UPGRADE + VERSION + b"Sec-WebSocket-Key: short\r\n"),
        (b"GET", UPGRADE + VERSION + b"Sec-WebSocket-Key: !!!\r\n"),
        (b"GET", UPGRADE + VERSION + b"Sec-WebSocket-Key: " + b"A" * 24 + b"\r\n"),
        (b"GET", UPGRADE + KEYED),
        (b"GET", UPGRADE + KEYED + b"Sec-WebSocket-Version: 8\r\n"),
        (b"GET", UPGRADE + KEYED + VERSION + VERSION),
        (b"POST", UPGRADE + KEYED + VERSION),
        (b"GET", UPGRADE + KEYED + VERSION + b"Content-Length: 5\r\n"),
        (b"GET", UPGRADE + KEYED + VERSION + b"Transfer-Encoding: chunked\r\n"),
    ],
)
def test_a_handshake_that_is_none_is_refused_in_our_form(served, mirror, far, method, extra):
    mirror.clear()
    with served.wire() as wire:
        wire.send(served.request(b"ws", extra, method=method))
        got = wire.read()
        assert got.status == 400
        assert json.loads(got.body)["code"] == "bad_request"
        assert got.values(b"content-type") == [b"application/json"]
        assert wire.rest() == b""
    assert mirror.seen == []


def test_an_upgrade_to_something_else_is_an_ordinary_request(served, mirror):
    mirror.clear()
    with served.wire() as wire:
        wire.send(
            served.request(b"plain", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n")
        )
        assert wire.read().body == b"ok"
    assert not mirror.seen[0].values(b"upgrade") + mirror.seen[0].values(b"http2-settings")


def socket_of(served, path: str = "ws", **options):
    headers = {"X-Access-Token": served.issued.secret, "X-Device-ID": DEVICE}
    url = f"ws://127.0.0.1:{served.live.port}/api/v1/proxy/{path}"
    return connect(url, additional_headers=headers, proxy=None, open_timeout=20, close_timeout=20, **options)


@pytest.mark.parametrize(
    ("offered", "chosen"), [(["json", "chat"], "json"), (["x", "chat"], "chat"), (["x", "y"], None), (None, None)]
)
def test_the_upstream_chooses_the_subprotocol(served, mirror, offered, chosen):
    seen = Far()

    async def choosy(peer: Peer) -> bool:
        fields = dict(lower(peer))
        names = [name.strip() for name in fields.get(b"sec-websocket-protocol", b"").decode().split(",")]
        known = next((name for name in names if name in ("chat", "json")), None)
        protocol = ServerProtocol(subprotocols=[known] if known else None)
        lines = b"".join(b"%b: %b\r\n" % pair for pair in peer.seen.headers)  # type: ignore[union-attr]
        protocol.receive_data(b"GET /ws HTTP/1.1\r\n%b\r\n" % lines)
        [request] = protocol.events_received()
        seen.requests.append(request)  # type: ignore[arg-type]
        protocol.send_response(protocol.accept(request))  # type: ignore[arg-type]
        await peer.send(b"".join(protocol.data_to_send()))
        await peer.until_closed()
        return False

    mirror.answers["choosy"] = choosy
    with socket_of(served, "choosy", subprotocols=offered) as near:
        assert near.subprotocol == chosen
    seen_offer = seen.requests[0].headers.get("Sec-WebSocket-Protocol", "")
    assert [name.strip() for name in seen_offer.split(",") if name] == (offered or [])
    # Each hop agrees on its own extensions; to the upstream none is offered.
    assert "Sec-WebSocket-Extensions" not in seen.requests[0].headers


def test_compression_towards_the_client_is_undone_towards_the_upstream(served, far):
    with socket_of(served, compression="deflate") as near:
        assert "permessage-deflate" in near.response.headers["Sec-WebSocket-Extensions"]
        near.send("x" * 100_000)
        assert near.recv(20) == "x" * 100_000
    assert far.messages == [(TEXT, b"x" * 100_000)]


def test_both_ends_ping_on_their_own_hop(served, far):
    with socket_of(served) as near:
        assert near.ping().wait(20)
        near.send("after")
        assert near.recv(20) == "after"


# --- leaving, and not reading


def test_an_upstream_that_vanishes_is_a_bad_gateway(served, mirror):
    mirror.answers["vanish"] = speaker(Far(), vanish=True)
    with socket_of(served, "vanish") as near, pytest.raises(ConnectionClosed) as closed:
        near.recv(20)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1014


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_vanishes_is_told_as_going_away(served, far, reset):
    near = Near(served)
    near.send(frame(TEXT, b"hello"))
    assert near.read() == (TEXT, b"hello")
    if reset:
        near.wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    left = time.monotonic()
    near.wire.socket.close()
    wait_until(lambda: far.closed, what="the upstream's notice")
    # Long before a ping would have found out.
    assert time.monotonic() - left < 5
    assert far.closed == [(1001, "")]


def test_a_client_that_does_not_read_holds_the_upstream_back(served, mirror):
    sent = 0

    async def flood(peer: Peer) -> bool:
        nonlocal sent
        protocol, _ = accept(peer, None)
        await peer.send(b"".join(protocol.data_to_send()))
        message = plain(BINARY, bytes(65536))
        while not peer.writer.is_closing():
            await peer.send(message)
            sent += len(message)
        return False

    mirror.answers["flood"] = flood
    with Near(served, b"flood") as near:
        assert near.read()[0] == BINARY
        before = -1
        while sent != before:
            before = sent
            time.sleep(0.2)
        assert 0 < sent < 40 * MEGABYTE
        # It goes on as soon as somebody reads.
        for _ in range(200):
            assert len(near.read()[1]) == 65536
    wait_until(lambda: len(served.live.gateway.registry) == 0, what="the end of the exchange")


def test_an_upstream_that_does_not_read_holds_the_client_back(served, mirror):
    over = threading.Event()

    async def deaf(peer: Peer) -> bool:
        protocol, _ = accept(peer, None)
        await peer.send(b"".join(protocol.data_to_send()))
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        while not over.is_set():  # noqa: ASYNC110 - it is set in another thread
            await asyncio.sleep(0.01)
        return False

    mirror.answers["deaf"] = deaf
    with Near(served, b"deaf") as near:
        near.wire.socket.settimeout(1)
        message = frame(BINARY, os.urandom(65536))
        sent = 0
        try:
            with pytest.raises(TimeoutError):
                while sent < 100 * MEGABYTE:
                    near.send(message)
                    sent += len(message)
        finally:
            over.set()
        assert sent < 60 * MEGABYTE
    wait_until(lambda: len(served.live.gateway.registry) == 0, what="the end of the exchange")


@pytest.mark.parametrize(
    "fields", [b"X: 1\r\n" * 180, b"Cookie: a=%b\r\n" % (b"v" * 30_000)], ids=["many fields", "a large field"]
)
def test_a_handshake_may_have_as_large_a_head_as_a_request(served, mirror, fields):
    """The library's own bounds, a hundred and twenty-eight fields of 8 KiB, are not ours."""

    async def answer(peer: Peer) -> bool:
        assert peer.seen is not None
        [key] = peer.seen.values(b"sec-websocket-key")
        await peer.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: %b\r\n%b\r\n"
            % (accept_key(key.decode()).encode(), fields.replace(b"Cookie", b"X-Set"))
        )
        await peer.send(plain(TEXT, b"hello"))
        await peer.until_closed()
        return False

    mirror.answers["wide"] = answer
    with served.wire() as wire:
        upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        wire.send(served.request(b"wide", upgrade + b"Sec-WebSocket-Key: %b\r\n" % KEY + fields))
        status, _, _ = wire.head()
        assert status == 101
        assert wire._exactly(7) == plain(TEXT, b"hello")
