"""Requests that no application sees: refused by the server, in the form of every other refusal."""

from __future__ import annotations

import json

import pytest
from django.conf import settings

from tests.proxy.live import LiveGateway, read_all, read_response

PLANES = ["/health/live", "/api/v1/auth/login", "/api/v1/proxy/certificates/filter"]


def assert_refused(answer: bytes, status: int, code: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    fields = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
    parsed = json.loads(body)
    assert set(parsed) == {"detail", "code", "request_id"} and parsed["detail"]
    assert parsed["code"] == code
    assert parsed["request_id"] == fields["x-request-id"]
    assert fields["content-type"] == "application/json"
    assert fields["connection"] == "close"


def exchange(server: LiveGateway, *pieces: bytes) -> bytes:
    with server.raw() as peer:
        for piece in pieces:
            try:
                peer.sendall(piece)
            except OSError:
                break
        return read_all(peer)


@pytest.mark.parametrize("path", PLANES)
@pytest.mark.parametrize(
    "field",
    [
        b"X: a\x00b",
        b"X : a",
        b"Content-Length: 5, 5",
        b"Content-Length: -1",
        b"Transfer-Encoding: identity",
        b"\xff: a",
    ],
)
def test_a_malformed_field(server, path, field):
    answer = exchange(server, f"POST {path} HTTP/1.1\r\nHost: localhost\r\n".encode() + field + b"\r\n\r\n")

    assert_refused(answer, 400, "bad_request")


@pytest.mark.parametrize(
    "line",
    [
        b"GET /a b HTTP/1.1",
        b"GET /\xff HTTP/1.1",
        b"GET /\x00 HTTP/1.1",
        b"FOO / HTTP/1.1",
        b"GET / HTTP/9.9",
        b"\x16\x03",
    ],
)
def test_a_malformed_first_line(server, line):
    assert_refused(exchange(server, line + b"\r\nHost: localhost\r\n\r\n"), 400, "bad_request")


def test_a_broken_chunk(server):
    head = b"POST /api/v1/auth/login HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"

    assert_refused(exchange(server, head, b"2\r\n{}\r\nzz\r\n"), 400, "bad_request")


@pytest.mark.parametrize("path", PLANES)
@pytest.mark.parametrize("what", ["one field", "many fields", "without end", "the path"])
def test_a_head_that_is_too_large(server, path, what):
    size = int(settings.GATEWAY["head_max_bytes"]) + 1
    start = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n".encode()
    if what == "one field":
        pieces = [start, b"X: " + b"a" * size + b"\r\n\r\n"]
    elif what == "many fields":
        pieces = [start, b"X: a\r\n" * (int(settings.GATEWAY["head_max_fields"]) + 1), b"\r\n"]
    elif what == "without end":
        pieces = [start, b"X: ", *[b"a" * 65536] * 100]
    else:
        pieces = [f"GET {path}?".encode(), *[b"a" * 65536] * 100]

    assert_refused(exchange(server, *pieces), 431, "header_fields_too_large")


def test_large_heads_below_the_limit_pass_one_after_another(server):
    """The count starts anew with each request of a connection, and a body is no part of it."""
    field = b"X: " + b"a" * 40_000 + b"\r\n"
    with server.raw() as peer:
        for _ in range(3):
            peer.sendall(
                b"POST /health/live HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n" + field + b"\r\n"
            )
            peer.sendall(b"b" * 100_000)
            assert read_response(peer)[0] == 405


def test_requests_sent_ahead_are_answered_in_turn(server):
    request = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 3000 + b"\r\n\r\n"
    with server.raw() as peer:
        peer.sendall(request * 40)
        for _ in range(40):
            assert read_response(peer)[0] == 200


def test_a_websocket_outside_the_gateway_is_not_there(server):
    handshake = (
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with server.raw() as peer:
        peer.sendall(handshake)
        status, headers, body = read_response(peer)

    assert (status, json.loads(body)["code"]) == (404, "not_found")
    assert headers["x-request-id"] == [json.loads(body)["request_id"]]


@pytest.fixture
def hasty_server(transactional_db, settings):
    settings.GATEWAY = {**settings.GATEWAY, "head_timeout": 0.4}
    with LiveGateway().running() as live:
        yield live


@pytest.mark.parametrize("before", [b"", b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_a_head_that_comes_too_slowly(hasty_server, before):
    """On a new connection, and on one that has been good for a request."""
    with hasty_server.raw() as peer:
        if before:
            peer.sendall(before)
            assert read_response(peer)[0] == 200
        for piece in (b"GET /health/live HT", b"TP/1.1\r\n", b"Host: loc"):
            peer.sendall(piece)
        answer = read_all(peer)

    assert_refused(answer, 408, "head_timeout")


def test_a_connection_that_says_nothing_is_closed(hasty_server):
    with hasty_server.raw() as peer:
        assert read_all(peer) == b""
