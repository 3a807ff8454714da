"""The desktop client's local page may call the gateway; no other page may."""

from __future__ import annotations

import pytest

PAGE = "http://localhost:61000"


def test_a_preflight_of_the_clients_page_is_answered_without_a_token(live, upstream):
    with live.client(None, device=None) as client:
        answer = client.options(
            "certificates/filter",
            headers={
                "Origin": PAGE,
                "Access-Control-Request-Method": "PUT",
                "Access-Control-Request-Headers": "x-access-token,x-device-id",
            },
        )

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert "PUT" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == "x-access-token,x-device-id"
    assert upstream.requests == []


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:61000.evil.example"])
def test_another_page_gets_nothing(live, origin, issue):
    with live.client(None, device=None) as client:
        headers = {"Origin": origin, "Access-Control-Request-Method": "GET"}
        assert client.options("json", headers=headers).status_code == 401
    with live.client(issue().secret) as client:
        answer = client.get("json", headers={"Origin": origin})
    assert "access-control-allow-origin" not in answer.headers


def test_answers_and_refusals_can_be_read_by_the_clients_page(live, issue):
    with live.client(issue().secret) as client:
        relayed = client.get("json", headers={"Origin": PAGE})
        status = client.get("status", headers={"Origin": PAGE})
        refused = client.get("json", headers={"Origin": PAGE, "X-Device-ID": "short"})

    for answer in (relayed, status, refused):
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "X-Zenzefi-Error" in answer.headers["access-control-expose-headers"]


def test_an_ordinary_options_request_passes(live, upstream, issue):
    with live.client(issue().secret) as client:
        client.options("inspect", headers={"Origin": PAGE})
    assert len(upstream.requests) == 1
