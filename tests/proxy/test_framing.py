"""Requests whose end two servers could see differently go no further."""

from __future__ import annotations

import pytest

from tests.proxy.live import read_all, read_response, request_bytes
from tests.proxy.test_refusals import assert_untouched
from tests.upstream import RawUpstream, ReadBytes, ReadHead, Send, Wait


def exchange(live, data):
    with live.raw() as peer:
        peer.sendall(data)
        return read_all(peer)


SMUGGLED = b"GET /api/v1/proxy/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "extra",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: \x0bchunked\r\n",
        b"Host: second.example\r\n",
        b"X-Header : x\r\n",
        b"X-Folded: a\r\n b\r\n",
        b"X-Nul: a\x00b\r\n",
        b"X-Bare: a\rb\r\n",
        b"X(Odd): a\r\n",
    ],
)
def test_an_ambiguous_head_is_refused(live, upstream, issue, extra):
    issued = issue()
    answer = exchange(live, request_bytes("inspect", issued.secret, method="POST", extra=extra, body=SMUGGLED))

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1, "what followed was read as a request"
    assert_untouched(upstream, issued)


@pytest.mark.parametrize("host", ["a b", "evil.example/path", "a\\b", "user@evil.example", 'a"b'])
def test_an_odd_host_is_refused(live, upstream, issue, host):
    issued = issue()
    answer = exchange(live, request_bytes("inspect", issued.secret, host=host))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert_untouched(upstream, issued)


def test_a_request_without_a_host_is_refused(live, upstream, issue):
    issued = issue()
    data = request_bytes("inspect", issued.secret).replace(b"Host: gateway.test\r\n", b"")
    assert exchange(live, data).startswith(b"HTTP/1.1 400 ")
    assert_untouched(upstream, issued)


def test_chunks_are_made_anew(live, settings, issue):
    script = (ReadHead(), ReadBytes(15), Send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), Wait(1))
    with RawUpstream(script) as server:
        settings.ZENZEFI_TARGET_URLS = [server.url]
        live.stop()
        live.start()
        with live.raw() as peer:
            body = b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: evil\r\n\r\n"
            peer.sendall(
                request_bytes("x", issue().secret, method="POST", extra=b"Transfer-Encoding: Chunked\r\n", body=body)
            )
            assert read_response(peer)[0] == 200
        [data] = server.received

    head, _, rest = data.partition(b"\r\n\r\n")
    assert head.lower().count(b"transfer-encoding: chunked") == 1
    assert b"content-length" not in head.lower()
    assert b"ext" not in rest and b"evil" not in rest
    assert rest == b"5\r\nabcde\r\n0\r\n\r\n"


@pytest.mark.parametrize("length", [b"0", b"00", b"5"])
def test_a_length_goes_out_as_a_plain_number(live, settings, issue, length):
    with RawUpstream(
        (ReadHead(), ReadBytes(int(length)), Send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), Wait(1))
    ) as server:
        settings.ZENZEFI_TARGET_URLS = [server.url]
        live.stop()
        live.start()
        with live.raw() as peer:
            extra = b"Content-Length: %b\r\n" % length
            peer.sendall(request_bytes("x", issue().secret, method="POST", extra=extra, body=b"x" * int(length)))
            assert read_response(peer)[0] == 200
        [data] = server.received

    assert b"content-length: %d\r\n" % int(length) in data
    assert data.endswith(b"\r\n\r\n" + b"x" * int(length))


def test_requests_in_one_packet_are_answered_in_order(live, upstream, issue):
    secret = issue().secret
    with live.raw() as peer:
        peer.sendall(b"".join(request_bytes(f"bytes/{n}", secret) for n in (1, 2, 3)))
        data = b""
        while data.count(b"\r\n\r\n") < 3 or len(data.rpartition(b"\r\n\r\n")[2]) < 3:
            data += peer.recv(65536)

    assert upstream.targets == [b"/bytes/1", b"/bytes/2", b"/bytes/3"]
    assert data.count(b"HTTP/1.1 200 ") == 3


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 700 Odd\r\nContent-Length: 0\r\n\r\n",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\n",
    ],
)
def test_an_answer_that_is_none_becomes_502(live, settings, issue, answer):
    with RawUpstream(answer) as server:
        settings.ZENZEFI_TARGET_URLS = [server.url]
        live.stop()
        live.start()
        issued = issue()
        with live.client(issued.secret) as client:
            got = client.get("x")

    assert (got.status_code, got.headers["x-zenzefi-error"]) == (502, "upstream_invalid")
    assert issued.reload().activated_at is None


def test_an_old_client_gets_its_answer(live, issue):
    with live.raw() as peer:
        data = request_bytes("bytes/1000", issue().secret).replace(b"HTTP/1.1", b"HTTP/1.0")
        peer.sendall(data)
        answer = read_all(peer)
    assert b"content-length: 1000\r\n" in answer.lower()
    assert len(answer.partition(b"\r\n\r\n")[2]) == 1000


def test_an_old_client_gets_no_chunks(live, settings, issue):
    """RFC 9112 §6.1: to HTTP/1.0, what has no known length lasts until the connection's end."""
    with RawUpstream(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    ) as server:
        settings.ZENZEFI_TARGET_URLS = [server.url]
        live.stop()
        live.start()
        with live.raw() as peer:
            peer.sendall(request_bytes("anything", issue().secret).replace(b"HTTP/1.1", b"HTTP/1.0"))
            head, _, body = read_all(peer).partition(b"\r\n\r\n")

    assert body == b"hello world"
    assert b"transfer-encoding" not in head.lower()
    assert b"\r\nconnection: close" in head.lower()


def test_head_and_body_leave_together(live, issue):
    """A small answer is one packet: the client sees it whole or not at all."""
    with live.raw() as peer:
        peer.sendall(request_bytes("bytes/100", issue().secret))
        first = peer.recv(65536)

    assert first.startswith(b"HTTP/1.1 200 ") and len(first.partition(b"\r\n\r\n")[2]) == 100


def test_bytes_after_an_answer_are_not_the_next_answer(live, settings, issue):
    """What an upstream sends on a kept connection unasked must reach nobody."""
    with RawUpstream(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother"
    ) as server:
        settings.ZENZEFI_TARGET_URLS = [server.url]
        live.stop()
        live.start()
        with live.client(issue().secret) as client:
            assert [client.get("/a").content for _ in range(3)] == [b"ok"] * 3
