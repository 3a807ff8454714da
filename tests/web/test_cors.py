"""Which pages of other origins may use the API: the desktop client's, and nobody else's."""

from __future__ import annotations

import pytest
from django.test import Client

CLIENT = "http://localhost:61000"


def preflight(client: Client, origin: str, method: str = "POST", headers: str = "authorization,content-type"):
    return client.options(
        "/api/v1/tokens/purchase",
        HTTP_ORIGIN=origin,
        HTTP_ACCESS_CONTROL_REQUEST_METHOD=method,
        HTTP_ACCESS_CONTROL_REQUEST_HEADERS=headers,
    )


@pytest.mark.parametrize(
    "origin",
    [CLIENT, "https://localhost:61000", "http://127.0.0.1:61000", "https://127.0.0.1:61000"],
)
def test_the_desktop_client_may(client: Client, origin):
    answer = preflight(client, origin)

    assert answer.status_code == 200
    assert answer["Access-Control-Allow-Origin"] == origin
    assert answer["Access-Control-Allow-Credentials"] == "true"
    assert "POST" in answer["Access-Control-Allow-Methods"]
    allowed = answer["Access-Control-Allow-Headers"]
    for name in ("authorization", "content-type", "idempotency-key", "x-access-token", "x-device-id"):
        assert name in allowed
    assert "origin" in answer["Vary"].lower()


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:61001",
        "http://localhost",
        "https://evil.example",
        "http://localhost:61000.evil.example",
        "null",
    ],
)
def test_nobody_else_may(client: Client, origin):
    answer = preflight(client, origin)

    assert "Access-Control-Allow-Origin" not in answer
    assert "Access-Control-Allow-Credentials" not in answer


def test_answers_name_the_origin_never_a_star(client: Client):
    answer = client.get("/health", HTTP_ORIGIN=CLIENT)

    assert answer["Access-Control-Allow-Origin"] == CLIENT
    exposed = answer["Access-Control-Expose-Headers"]
    for name in ("RateLimit", "Retry-After", "X-Request-ID", "X-Zenzefi-Error"):
        assert name in exposed


@pytest.mark.parametrize("path", ["/", "/docs", "/metrics"])
def test_pages_are_not_for_other_origins(client: Client, path):
    assert "Access-Control-Allow-Origin" not in client.get(path, HTTP_ORIGIN=CLIENT)
