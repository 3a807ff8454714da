"""Interim answers (RFC 9110 §15.2) pass as they come, in order, clean, bounded, and only to clients that know them."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest

from tests.proxy.live import request_bytes
from tests.proxy.mirror import OK, Got, Peer, Wire
from tests.upstream import RawUpstream, wait_until
from zenzefi.lib.streaming import INTERIM

pytestmark = pytest.mark.django_db

#: Seconds; what is answered at once is answered sooner on a busy machine, too.
FIRST_BYTE = 4.0
MOST = 20
HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"


@pytest.fixture(scope="module")
def gateway_settings():
    return {"first_byte_timeout": FIRST_BYTE, "upstream_max_interim": MOST}


def ask(served, target: bytes, extra: bytes = b"", body: bytes = b"", *, method: bytes = b"GET") -> Got:
    with served.wire() as wire:
        wire.send(served.request(target, extra, body, method=method))
        return wire.read(method)


def settled(served) -> None:
    wait_until(lambda: served.in_use == 0, what="the connections' return")
    wait_until(lambda: len(served.live.gateway.registry) == 0, what="the end of the exchanges")


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"DELETE"])
def test_one_before_the_answer(served, mirror, method):
    mirror.answers["one"] = HINT + (OK if method != b"HEAD" else OK[:-2])
    got = ask(served, b"one", b"Content-Length: 0\r\n" if method == b"POST" else b"", method=method)
    assert (got.status, got.interim) == (200, [103])
    assert got.interim_headers == [[(b"link", b"</a.css>; rel=preload"), (b"via", b"1.1 zenzefi-proxy")]]
    assert got.body == (b"" if method == b"HEAD" else b"ok")


def test_several_keep_their_order(served, mirror):
    mirror.answers["several"] = (
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <1>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nLink: <2>\r\n\r\nHTTP/1.1 199 Odd\r\nX-Odd: 1\r\n\r\n"
    ) + OK
    got = ask(served, b"several")
    assert (got.interim, got.status, got.body) == ([102, 103, 103, 199], 200, b"ok")
    assert [dict(fields).get(b"link") for fields in got.interim_headers] == [None, b"<1>", b"<2>", None]


def test_it_is_not_held_back(served, mirror):
    """The client has it while the upstream has not made up its mind yet."""
    arrived = threading.Event()

    async def slow(peer: Peer) -> None:
        await peer.send(HINT)
        assert await asyncio.to_thread(arrived.wait, 20)
        await peer.send(OK)

    mirror.answers["slow"] = slow
    with served.wire() as wire:
        wire.send(served.request(b"slow"))
        status, reason, fields = wire.head()
        assert (status, reason, fields[0]) == (103, b"Early Hints", (b"link", b"</a.css>; rel=preload"))
        arrived.set()
        assert wire.read().body == b"ok"
        # The connection goes on.
        wire.send(served.request(b"after"))
        assert wire.read().interim == []


def test_it_comes_while_the_body_is_on_its_way(served, mirror):
    async def eager(peer: Peer) -> None:
        await peer.send(HINT)
        assert await peer.reader.readexactly(4) == b"body"
        await peer.send(OK)

    mirror.answers["eager"] = eager
    mirror.early.add("eager")
    with served.wire() as wire:
        wire.send(served.request(b"eager", b"Content-Length: 4\r\nExpect: 100-continue\r\n", method=b"POST"))
        assert {wire.head()[0], wire.head()[0]} == {100, 103}
        wire.send(b"body")
        assert wire.read().body == b"ok"


def test_nothing_in_it_that_a_final_answer_may_not_have(served, mirror):
    mirror.answers["dirty"] = (
        b"HTTP/1.1 103 Early Hints\r\nConnection: X-Hop, keep-alive\r\nX-Hop: gone\r\nKeep-Alive: timeout=5\r\n"
        b"Upgrade: h2c\r\nTrailer: X-T\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\nAlt-Svc: h3=1\r\n"
        b"X-Zenzefi-Error: forged\r\nX-Request-ID: forged-id\r\nRateLimit: forged\r\nVia: 1.0 inner\r\n"
        b"Location: %b/there\r\nSet-Cookie: a=1; Domain=127.0.0.1; Path=/\r\nX-Kept: 1\r\n\r\n" % mirror.url.encode()
    ) + OK
    got = ask(served, b"dirty")
    assert got.interim_headers == [
        [
            (b"location", b"/api/v1/proxy/there"),
            (b"set-cookie", b"a=1; Path=/api/v1/proxy"),
            (b"x-kept", b"1"),
            (b"via", b"1.0 inner, 1.1 zenzefi-proxy"),
        ]
    ]
    assert (got.status, got.body, got.code) == (200, b"ok", "")


@pytest.mark.parametrize(
    "interim",
    [
        b"HTTP/1.1 103 Early\r\nX-One: a\rX-Two: b\r\n\r\n",
        b"HTTP/1.1 103 Early\r\nX-One: a\x00b\r\n\r\n",
        b"HTTP/1.1 103 Early\r\nX One: a\r\n\r\n",
        b"HTTP/1.1 103 Early\r\nX(One): a\r\n\r\n",
        b"HTTP/1.1 103 Early\r\nX-One\r\n\r\n",
        b"HTTP/1.1 103 Early\nX-One: a\n\n",
        b"HTTP/1.1 103 Early\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 104 Odd\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 104 Odd\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ],
)
def test_nothing_can_be_smuggled_in_it(served, mirror, interim):
    """Refused, or without what was wrong with it; the final answer is never another one than the upstream's."""
    mirror.answers["smuggled"] = interim + OK
    with served.wire() as wire:
        wire.send(served.request(b"smuggled"))
        got = wire.read()
        assert (got.status, got.code, got.interim) in [(502, "upstream_invalid", []), (502, "upstream_invalid", [104])]
        wire.send(served.request(b"after"))
        assert wire.read().body == b"ok"
    settled(served)


def test_it_has_no_body_whatever_it_says(served, mirror):
    """RFC 9112 §6.3: what follows its head is the next answer."""
    mirror.answers["bodiless"] = b"HTTP/1.1 103 Early\r\nContent-Length: %d\r\n\r\n" % len(OK) + OK
    got = ask(served, b"bodiless")
    assert (got.interim, got.status, got.body) == ([103], 200, b"ok")
    assert got.interim_headers == [[(b"via", b"1.1 zenzefi-proxy")]]


def test_then_the_connection_is_lost(served, mirror):
    async def lost(peer: Peer) -> bool:
        await peer.send(HINT)
        return False

    mirror.answers["lost"] = lost
    got = ask(served, b"lost", b"Content-Length: 0\r\n", method=b"POST")
    assert (got.status, got.code, got.interim) == (502, "upstream_unreachable", [103])
    # What is safe to repeat is asked for once more.
    got = ask(served, b"lost")
    assert (got.status, got.code, got.interim) == (502, "upstream_unreachable", [103, 103])
    settled(served)


def test_it_is_no_answer_in_time(served, mirror):
    async def never(peer: Peer) -> bool:
        await peer.send(HINT)
        await peer.until_closed()
        return False

    mirror.answers["never"] = never
    started = time.monotonic()
    got = ask(served, b"never")
    assert (got.status, got.code, got.interim) == (504, "upstream_timeout", [103])
    assert FIRST_BYTE - 0.2 < time.monotonic() - started < FIRST_BYTE + 15
    settled(served)


def test_it_does_not_start_the_tokens_clock(live, settings, issue):
    issued = issue()
    with RawUpstream(HINT + b"garbage\r\n\r\n") as server:
        settings.ZENZEFI_TARGET_URLS = [server.url]
        live.stop()
        live.start()
        with Wire(live.port) as wire:
            wire.send(request_bytes("x", issued.secret))
            got = wire.read()
    assert (got.interim, got.status) == ([103], 502)
    assert issued.reload().activated_at is None


def test_an_old_client_gets_none(served, mirror):
    mirror.answers["old"] = HINT * 3 + OK
    with served.wire() as wire:
        wire.send(served.request(b"old").replace(b"HTTP/1.1", b"HTTP/1.0"))
        got = wire.read()
    assert (got.interim, got.status, got.body) == ([], 200, b"ok")


def test_a_server_that_does_not_know_them_gets_none(served, mirror):
    """Asked as any ASGI server would ask, the application sends nothing that the specification does not have."""
    mirror.answers["other"] = HINT + OK
    sent: list[dict] = []

    async def call() -> None:
        async def receive() -> dict:
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            sent.append(message)

        fields = [line.split(b": ", 1) for line in served.credentials.splitlines()]
        scope = {
            "type": "http",
            "method": "GET",
            "http_version": "1.1",
            "scheme": "http",
            "path": "/api/v1/proxy/other",
            "raw_path": b"/api/v1/proxy/other",
            "query_string": b"",
            "client": ("127.0.0.1", 1),
            "headers": [(b"host", b"gw.test"), *((name.lower(), value) for name, value in fields)],
        }
        await served.live.gateway(scope, receive, send)

    served.live.run(call())
    assert {message["type"] for message in sent} == {"http.response.start", "http.response.body"}
    assert sent[0]["status"] == 200
    assert INTERIM not in {message["type"] for message in sent}


@pytest.mark.parametrize("size", [0, 20_000], ids=["many", "large"])
def test_a_flood_is_bounded(served, mirror, size):
    """By their number, and together by the size of a head."""
    mirror.answers["flood"] = b"HTTP/1.1 103 Early\r\nX-Fill: %b\r\n\r\n" % (b"v" * size) * 5000 + OK
    got = ask(served, b"flood")
    assert (got.status, got.code) == (502, "upstream_invalid")
    assert len(got.interim) <= MOST
    settled(served)
    assert ask(served, b"after").body == b"ok"


def test_as_many_as_are_allowed(served, mirror):
    mirror.answers["many"] = HINT * MOST + OK
    got = ask(served, b"many")
    assert (len(got.interim), got.status, got.body) == (MOST, 200, b"ok")


def test_a_client_that_reads_slowly_gets_all_of_them(served, mirror):
    """They are not waited for one by one, nothing is lost, and the upstream is not blamed for the client."""
    hint = b"HTTP/1.1 103 Early\r\nX-Fill: %b\r\n\r\n" % (b"v" * 12_000)
    mirror.answers["wide"] = hint * MOST + b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n" + b"x" * 500_000
    # What an earlier test left under way must not fail in this one.
    wait_until(lambda: len(served.live.gateway.registry) == 0, what="the end of what runs")
    failures = [target.circuit.failures for target in served.live.gateway.upstream.targets]
    with served.wire() as wire:
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        wire.send(served.request(b"wide"))
        time.sleep(FIRST_BYTE + 0.5)
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
        got = wire.read()
    assert (len(got.interim), got.status, len(got.body)) == (MOST, 200, 500_000)
    # An earlier test's failures may be forgotten by now; none has come.
    for target, before in zip(served.live.gateway.upstream.targets, failures, strict=True):
        assert target.circuit.failures <= before
