"""``Server-Timing``: where an answer's time went, told to whoever asked."""

from __future__ import annotations

import json
import re
import time

import pytest
from websockets.exceptions import InvalidStatus

from tests.proxy.live import DEVICE, read_response, request_bytes
from tests.proxy.test_cors import PAGE
from tests.proxy.test_websocket import open_socket
from tests.upstream import RawUpstream, unused_port, wait_until
from tokens import secrets

METRIC = re.compile(r"([a-z]+);dur=(\d+\.\d\d)")


def durations(value: str) -> dict[str, float]:
    """Return the milliseconds of each metric of one field, in order."""
    found = {}
    for metric in value.split(", "):
        match = METRIC.fullmatch(metric)
        assert match is not None, value
        found[match[1]] = float(match[2])
    return found


def test_a_relayed_answer_tells_where_its_time_went(live, issue):
    issued = issue()
    with live.client(issued.secret) as client:
        client.get("json")
        began = time.monotonic()
        answer = client.get("slow?seconds=1")
        took = (time.monotonic() - began) * 1000

    times = durations(answer.headers["server-timing"])
    assert list(times) == ["auth", "upstream", "total"]
    # The wait for the server is no part of the decision.
    assert 0 < times["auth"] < 900
    assert 950 <= times["upstream"] <= times["total"] <= took
    assert times["auth"] + times["upstream"] <= times["total"] + 0.02


def test_an_upload_is_part_of_the_wait_for_the_server(live, upstream, issue):
    issued = issue()
    with live.raw() as peer:
        peer.sendall(request_bytes("sink?digest=0", issued.secret, method="POST", extra=b"Content-Length: 4\r\n"))
        wait_until(lambda: upstream.in_progress, what="the request at the server")
        time.sleep(1)
        peer.sendall(b"body")
        status, headers, _ = read_response(peer)

    assert status == 200
    times = durations(headers["server-timing"][0])
    assert times["upstream"] >= 950
    assert times["auth"] < 900


def test_what_the_server_says_of_its_own_stays_before_ours(live, settings, issue):
    said = b'Server-Timing: miss, db;dur=53;desc="a, b"\r\nX-Between: 1\r\nServer-Timing: app;dur=1\r\n'
    with RawUpstream(b"HTTP/1.1 200 OK\r\n" + said + b"Content-Length: 2\r\n\r\nok") as server:
        settings.ZENZEFI_TARGET_URLS = [server.url]
        live.stop()
        live.start()
        with live.raw() as peer:
            peer.sendall(request_bytes("x", issue().secret))
            _, headers, _ = read_response(peer)

    theirs, ours = headers["server-timing"][:-1], headers["server-timing"][-1]
    assert theirs == ['miss, db;dur=53;desc="a, b"', "app;dur=1"]
    assert list(durations(ours)) == ["auth", "upstream", "total"]


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize("path", ["status/204", "status/304", "status/500", "gzip"])
def test_every_relayed_answer_has_one(live, issue, method, path):
    with live.client(issue().secret) as client:
        answer = client.request(method, path)
    assert list(durations(answer.headers["server-timing"])) == ["auth", "upstream", "total"]


@pytest.mark.parametrize(
    ("token", "device", "status"),
    [(None, DEVICE, 401), ("unknown", DEVICE, 401), ("good", None, 403), ("restricted", DEVICE, 403)],
)
def test_a_decided_refusal_tells_of_the_decision(live, issue, token, device, status):
    secret = {
        None: None,
        "unknown": secrets.generate(),
        "good": issue().secret,
        "restricted": issue(scope="certificates_only").secret,
    }[token]
    with live.client(secret, device=device) as client:
        answer = client.get("json")

    assert answer.status_code == status
    times = durations(answer.headers["server-timing"])
    assert list(times) == ["auth", "total"]
    assert times["auth"] <= times["total"]


def test_a_server_that_fails_does_not_hide_what_it_cost(live, settings, issue):
    settings.GATEWAY = {**settings.GATEWAY, "first_byte_timeout": 0.4}
    live.stop()
    live.start()
    with live.client(issue().secret) as client:
        late = client.get("hang")
    assert late.headers["x-zenzefi-error"] == "upstream_timeout"
    times = durations(late.headers["server-timing"])
    assert list(times) == ["auth", "total"]
    assert times["total"] >= 390

    settings.ZENZEFI_TARGET_URLS = [f"http://127.0.0.1:{unused_port()}"]
    live.stop()
    live.start()
    with live.client(issue().secret) as client:
        unreachable = client.get("json")
    assert unreachable.headers["x-zenzefi-error"] == "upstream_unreachable"
    assert list(durations(unreachable.headers["server-timing"])) == ["auth", "total"]


def test_what_needs_no_decision_has_none(live, issue):
    issued = issue()
    with live.client(issued.secret) as client:
        assert "server-timing" not in client.get("status").headers
        assert "server-timing" not in client.request("TRACE", "json").headers
    with live.raw() as peer:
        peer.sendall(request_bytes("json", issued.secret, extra=b"Host: twice\r\n"))
        status, headers, _ = read_response(peer)
    assert status == 400
    assert "server-timing" not in headers


def test_a_page_may_read_it_but_gets_no_resource_timing(live, issue):
    with live.client(issue().secret) as client:
        answer = client.get("json", headers={"Origin": PAGE})
    assert "Server-Timing" in answer.headers["access-control-expose-headers"].split(", ")
    assert "timing-allow-origin" not in answer.headers


def test_a_handshake_has_one_whatever_comes_of_it(live, issue):
    issued = issue()
    with open_socket(live, issued.secret) as peer:
        assert peer.response is not None
        times = durations(peer.response.headers["server-timing"])
    assert list(times) == ["auth", "upstream", "total"]
    assert 0 < times["upstream"] < times["total"]

    for options in ({"device": "short"}, {"path": "json"}):
        with pytest.raises(InvalidStatus) as refused:
            open_socket(live, issued.secret, **options)
        response = refused.value.response
        assert json.loads(response.body)["code"] in ("device_malformed", "upstream_refused")
        assert list(durations(response.headers["server-timing"])) == ["auth", "total"]
