"""Bodies that are too large for the control plane, sent to a real server."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from django.core.handlers import asgi

from tests.proxy.live import LiveGateway, read_all, read_response
from zenzefi.lib import bodies

LIMIT = 20_000
ROUTES = [
    ("POST", "/api/v1/auth/login"),
    ("PATCH", "/api/v1/users/me"),
    ("POST", "/api/v1/currency/mock-purchase"),
    ("GET", "/api/v1/bundles"),
    ("POST", "/admin/login/"),
    ("POST", "/nothing/here"),
    ("PUT", "/health"),
]


@pytest.fixture(autouse=True)
def small_limit(settings, many_requests):
    settings.JSON_BODY_MAX_BYTES = LIMIT
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = LIMIT


@pytest.fixture
def spooled(monkeypatch) -> list[int]:
    """How many bytes Django took of each request."""
    sizes: list[int] = []
    original = asgi.ASGIHandler.read_body

    async def counting(self, receive):
        file = await original(self, receive)
        file.seek(0, 2)
        sizes.append(file.tell())
        file.seek(0)
        return file

    monkeypatch.setattr(asgi.ASGIHandler, "read_body", counting)
    return sizes


def pieces(size: int) -> Iterator[bytes]:
    """A body of unknown length: httpx sends an iterator in chunks."""
    sent = 0
    while sent < size:
        piece = b" " * min(7000, size - sent)
        sent += len(piece)
        yield piece


def post(url: str, **options: Any) -> httpx.Response:
    return httpx.post(url, timeout=60, trust_env=False, **options)


def assert_too_large(response: httpx.Response) -> None:
    body = response.json()
    assert (response.status_code, body["code"]) == (413, "payload_too_large")
    assert set(body) == {"detail", "code", "request_id"}
    assert body["request_id"] == response.headers["X-Request-ID"]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_it_is_refused_before_django_takes_it(server: LiveGateway, spooled, method, path, framing):
    content = b" " * (LIMIT + 1) if framing == "length" else pieces(LIMIT + 1)

    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        response = client.request(method, path, content=content, headers={"Content-Type": "application/json"})
        assert_too_large(response)
        # The connection is not out of step: its next request is understood.
        assert client.get("/health/live").status_code == 200

    assert spooled == [0, 0]


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_the_limit_itself_is_let_through(server: LiveGateway, spooled, framing):
    document = json.dumps({"token": "x"}).encode()
    document += b" " * (LIMIT - len(document))
    content = document if framing == "length" else iter([document[:3], document[3:]])

    response = post(f"{server.url}/api/v1/tokens/check", content=content, headers={"Content-Type": "application/json"})

    assert (response.status_code, response.json()["valid"]) == (200, False)
    assert spooled == [LIMIT]


def test_a_body_in_chunks_is_read_like_any_other(server: LiveGateway):
    """DRF takes a request without a length for one without a body."""
    response = post(
        f"{server.url}/api/v1/auth/register",
        content=iter([b'{"email": "ada@example.com", ', b'"username": "ada", "password": "correct horse battery"}']),
        headers={"Content-Type": "application/json"},
    )

    assert response.status_code == 201


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_ten_megabytes_sent_to_the_end_get_their_answer(server: LiveGateway, spooled, framing):
    size = 10_000_000
    content = b" " * size if framing == "length" else pieces(size)

    response = post(f"{server.url}/api/v1/auth/login", content=content, headers={"Content-Type": "text/plain"})

    assert_too_large(response)
    assert spooled == [0]


def test_the_answer_is_in_the_callers_language_and_open_to_the_desktop_client(server: LiveGateway):
    response = post(
        f"{server.url}/api/v1/auth/login",
        content=b" " * (LIMIT + 1),
        headers={"Accept-Language": "ru", "Origin": "http://localhost:61000", "X-Request-ID": "large-body-1"},
    )

    assert_too_large(response)
    assert response.headers["Content-Language"] == "ru"
    assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:61000"
    assert response.json()["request_id"] == "large-body-1"


def head(*fields: str) -> bytes:
    return "\r\n".join(["POST /api/v1/auth/login HTTP/1.1", "Host: localhost", *fields, "", ""]).encode()


def test_whoever_asks_first_is_refused_without_being_told_to_continue(server: LiveGateway, spooled):
    with server.raw() as peer:
        peer.sendall(head(f"Content-Length: {10**12}", "Expect: 100-continue"))
        answer = read_all(peer)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"payload_too_large" in answer
    assert spooled == [0]


def test_what_nobody_would_wait_for_is_cut(server: LiveGateway, spooled):
    with server.raw() as peer:
        peer.sendall(head(f"Content-Length: {bodies.DISCARD_MAX_BYTES + 1}"))
        answer = read_all(peer)

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert re.search(rb"\r\nconnection: close\r\n", answer, re.IGNORECASE)
    assert spooled == [0]


def test_an_endless_body_is_cut(server: LiveGateway, spooled):
    sent = 0
    refused = threading.Event()

    with server.raw() as peer:
        peer.sendall(head("Transfer-Encoding: chunked"))
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        try:
            while sent < 20 * bodies.DISCARD_MAX_BYTES:
                peer.sendall(chunk)
                sent += 65536
        except OSError:
            refused.set()

    assert refused.is_set()
    assert spooled == [0]


@pytest.mark.parametrize("framing", [("Content-Length: 30000",), ("Transfer-Encoding: chunked",)])
def test_a_client_that_leaves_half_way_costs_nothing(server: LiveGateway, spooled, framing):
    with server.raw() as peer:
        peer.sendall(head(*framing) + b"5\r\nhello\r\n")
    with server.raw() as peer:
        peer.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        status, _headers, _body = read_response(peer)

    assert status == 200
    assert spooled == [0]
