"""Edge mode: nginx, configured as shipped, carries what the gateway hands over, and nothing else changes."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from proxy import services, upstream_services
from proxy.edge import Edge
from proxy.edge_log import EdgeLog
from proxy.models import Session, UpstreamTarget
from tests.factories import UserFactory
from tests.proxy.carrier import SECRET, Carrier, carrier, edge_log, edge_mode
from tests.proxy.live import DEVICE, LiveGateway, read_response, request_bytes
from tests.proxy.servers import own_redis
from tests.proxy.test_edge_log import line
from tests.proxy.test_quotas import admitted
from tests.proxy.test_refusals import assert_refused
from tests.proxy.test_tls import certificate, tls_server  # noqa: F401 - a fixture
from tests.upstream import RawUpstream, ReadHead, RecordingUpstream, Send, Wait, unused_port, wait_until
from tokens import services as tokens_services

pytestmark = pytest.mark.nginx

#: Long enough that nothing ends in a test.
RUNNING = timedelta(hours=12)


@pytest.fixture(autouse=True)
def edge_settings(settings: Any) -> None:
    for name, value in edge_mode().items():
        setattr(settings, name, value)


@pytest.fixture
def log(live: LiveGateway) -> Iterator[EdgeLog]:
    with edge_log(live) as receiving:
        yield receiving


@contextlib.contextmanager
def quiet(directory: Path, live: LiveGateway) -> Iterator[Carrier]:
    """An nginx that has nothing to complain about its configuration."""
    with carrier(directory, live) as nginx:
        yield nginx
        assert "[emerg]" not in nginx.errors and "[warn]" not in nginx.errors, nginx.errors


@pytest.fixture
def edge(live: LiveGateway, log: EdgeLog, tmp_path: Path) -> Iterator[Carrier]:
    with quiet(tmp_path / "nginx", live) as nginx:
        yield nginx


Handed = Callable[[LiveGateway], list[str]]


def watch(live: LiveGateway) -> list[str]:
    """Return a list that grows by the server of each request that is handed over."""
    seen: list[str] = []
    original = live.gateway.edge.handover

    def handover(target: Any, **what: Any) -> Any:
        seen.append(target.spec.name)
        return original(target, **what)

    live.gateway.edge.handover = handover  # type: ignore[method-assign]
    return seen


@pytest.fixture
def handed(live: LiveGateway) -> list[str]:
    return watch(live)


def metered(issued: Any, *, requests: int, seconds: float = 40) -> Session:
    """Return the token's session once it has so many requests."""

    def stored() -> bool:
        services.flush_meter_stream()
        return bool(Session.objects.filter(token=issued.token, requests__gte=requests).exists())

    wait_until(stored, seconds=seconds, what=f"{requests} metered requests")
    return Session.objects.get(token=issued.token)


# --- what the server sees and the client gets


def test_the_server_sees_the_same_whoever_carries(edge, live, handed, upstream: RecordingUpstream, issue):
    issued = issue(active_for=RUNNING)
    target = "certificates/filter?b=2&a=1&a=&x=%2F%2e"
    fields = {"X-Own": "a, b", "Accept": "text/html;q=0.9", "User-Agent": "browser (x)", "Cookie": "a=1; b=2"}
    with edge.client(issued.secret) as client:
        assert client.get(target, headers=fields).status_code == 200
        assert len(handed) == 1
        # As these are relayed; of the head everything else must be alike.
        assert client.get(target, headers={**fields, "X-Forwarded-User": "x"}).status_code == 200
        assert len(handed) == 1
    carried, relayed = upstream.wait_for(2)
    assert carried.target == relayed.target == b"/certificates/filter?b=2&a=1&a=&x=%2F%2e"

    def told(exchange: Any) -> list[tuple[bytes, bytes]]:
        varies = (b"x-request-id", b"content-length", b"traceparent")
        return sorted((name.lower(), value) for name, value in exchange.headers if name.lower() not in varies)

    assert told(carried) == told(relayed)
    names = [name.lower() for name, _ in carried.headers]
    assert len(names) == len(set(names))
    for name in (b"x-access-token", b"x-device-id", b"x-zenzefi-edge", b"connection"):
        assert name not in names
    assert dict(told(carried))[b"x-token-id"] == str(issued.token.pk).encode()
    assert dict(told(carried))[b"x-user-id"] == str(issued.token.owner_id).encode()


def test_the_answer_is_the_same_whoever_carries(edge, live, handed, issue, upstream):
    issued = issue(active_for=RUNNING)
    with edge.client(issued.secret) as carried, live.client(issued.secret) as direct:
        one = carried.get("certificates/filter", headers={"X-Request-ID": "the-same-id-1"})
        assert len(handed) == 1
        other = direct.get(
            "certificates/filter", headers={"X-Request-ID": "the-same-id-1", "Accept-Encoding": "identity"}
        )
        assert len(handed) == 1
    assert one.content == other.content
    ours = {"connection", "date", "ratelimit", "server-timing"}
    assert {n: v for n, v in one.headers.items() if n not in ours} == {
        n: v for n, v in other.headers.items() if n not in ours
    }
    # One request more has been counted by then.
    assert one.headers["ratelimit"].startswith('"proxy";r=999;')
    assert other.headers["ratelimit"].startswith('"proxy";r=998;')


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE", "PUT"])
def test_methods_arrive_as_they_were(edge, handed, issue, upstream, method):
    with edge.client(issue(active_for=RUNNING).secret) as client:
        answer = client.request(method, "echo")
    assert answer.status_code < 500
    assert upstream.requests[0].method.encode() == method.encode()
    assert len(handed) == 1


def test_an_encoded_answer_has_no_length(live, settings, tmp_path, issue, handed, upstream):
    body = gzip.compress(b"plain text " * 500)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    with RawUpstream([ReadHead(), Send(head + body), Wait(5)]) as server:
        settings.ZENZEFI_TARGET_URLS = [server.url]
        with LiveGateway().running() as one, edge_log(one), quiet(tmp_path, one) as edge:
            seen = watch(one)
            with edge.raw() as peer:
                peer.sendall(
                    request_bytes("file", issue(active_for=RUNNING).secret, extra=b"Accept-Encoding: gzip\r\n")
                )
                status, headers, received = read_response(peer)
    assert len(seen) == 1
    assert status == 200
    assert headers["content-encoding"] == ["gzip"]
    assert "content-length" not in headers
    assert headers["transfer-encoding"] == ["chunked"]
    assert received == body


def test_orders_to_nginx_from_a_server_are_not_obeyed(settings, transactional_db, tmp_path, issue):
    """Relayed or carried: a server that says X-Accel-Redirect gets nothing of ours shown."""
    answer = (
        b"HTTP/1.1 200 OK\r\nX-Accel-Redirect: /metrics\r\nX-Accel-Limit-Rate: 1\r\nX-Accel-Buffering: no\r\n"
        b"X-Accel-Expires: 9\r\nContent-Length: 4\r\n\r\ntrue"
    )
    with RawUpstream((ReadHead(), Send(answer)) * 4) as server:
        settings.ZENZEFI_TARGET_URLS = [server.url]
        with LiveGateway().running() as live, edge_log(live), quiet(tmp_path, live) as edge:
            seen = watch(live)
            with edge.client(issue(active_for=RUNNING).secret) as client:
                for headers in ({}, {"Origin": "http://localhost:61000"}):
                    answered = client.get("x", headers=headers)
                    assert (answered.status_code, answered.text) == (200, "true")
                    assert not [name for name in answered.headers if name.startswith("x-accel")]
            assert len(seen) == 1


# --- what is carried, and what is not


def relayed(edge: Carrier, handed: list[str], issued: Any, **request: Any) -> httpx.Response:
    with edge.client(issued.secret) as client:
        answer = client.request(request.pop("method", "GET"), request.pop("path", "certificates/filter"), **request)
    assert handed == []
    return answer


def test_the_first_request_starts_the_clock_and_the_second_is_carried(edge, handed, issue):
    issued = issue()
    assert relayed(edge, handed, issued).status_code == 200
    assert issued.reload().activated_at is not None
    with edge.client(issued.secret) as client:
        assert client.get("certificates/filter").status_code == 200
    assert len(handed) == 1


@pytest.mark.parametrize(
    "request_",
    [
        {"method": "POST", "path": "echo", "content": b"body"},
        {"method": "PUT", "path": "echo", "content": b"body"},
        {"method": "POST", "path": "echo"},
        {"method": "PATCH", "path": "echo"},
        {"method": "PROPFIND", "path": "echo"},
        {"headers": {"Accept": "text/event-stream"}},
        {"headers": {"Origin": "http://localhost:61000"}},
        {"headers": {"Authorization": "Api-Key znk_of-the-control-plane"}},
        {"headers": {"Cookie": "sessionid=ours; theirs=1"}},
        {"headers": {"Connection": "close, X-Hop", "X-Hop": "1"}},
        {"headers": {"X-Forwarded-User": "somebody"}},
        {"headers": {"X-Original-Method": "DELETE"}},
        {"headers": {"User-Agent": "x" * 2000}},
    ],
    ids=lambda one: " ".join(f"{name}={str(value)[:30]}" for name, value in one.items()),
)
def test_relayed_by_the_gateway(edge, handed, issue, request_):
    assert relayed(edge, handed, issue(active_for=RUNNING), **request_).status_code < 500


def test_a_field_for_one_hop_ends_with_it(edge, handed, issue, upstream):
    headers = {"Connection": "keep-alive, X-Hop", "X-Hop": "gone", "X-Kept": "here"}
    relayed(edge, handed, issue(active_for=RUNNING), headers=headers)
    names = [name.lower() for name, _ in upstream.requests[0].headers]
    assert b"x-kept" in names
    assert b"x-hop" not in names


@pytest.mark.parametrize(
    ("limits", "carried"),
    [
        ({"concurrent_requests": 5}, False),
        ({"bandwidth": 10**9}, False),
        ({"bytes_per_day": 10**9}, False),
        ({"bytes_per_month": 10**9}, False),
        ({"requests_per_minute": 50}, True),
        ({"requests_per_day": 50, "requests_per_month": 60}, True),
        ({"seats": 3}, True),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_limits_that_hold_while_a_request_lasts_are_the_gateways(edge, handed, issue, allow, limits, carried):
    issued = issue(active_for=RUNNING)
    allow(issued, **limits)
    with edge.client(issued.secret) as client:
        assert client.get("certificates/filter").status_code == 200
    assert len(handed) == carried


def test_near_its_end_a_token_is_relayed(edge, handed, issue):
    assert relayed(edge, handed, issue(active_for=timedelta(seconds=55))).status_code == 200


def test_an_event_stream_and_an_upload_pass_as_they_come(edge, handed, issue, upstream):
    issued = issue(active_for=RUNNING)
    sent = os.urandom(5_000_000)
    with edge.raw() as peer:
        head = b"Content-Length: %d\r\n" % len(sent)
        peer.sendall(request_bytes("sink", issued.secret, method="POST", extra=head) + sent[:100_000])
        # The first of it is there before the last is sent.
        wait_until(lambda: upstream.requests and upstream.requests[0].body_length > 50_000, what="the first part")
        peer.sendall(sent[100_000:])
        status, _, _ = read_response(peer)
    assert status == 200
    assert upstream.wait_for(1)[0].body_sha256 == hashlib.sha256(sent).hexdigest()
    events = {"Accept": "text/event-stream"}
    with (
        edge.client(issued.secret) as client,
        client.stream("GET", "events?n=0&interval=0.3", headers=events) as stream,
    ):
        # Held back, the first would come when there are kilobytes of them, long after the client has given up.
        arrived = (line for line in stream.iter_lines() if line.startswith("data:"))
        assert [next(arrived) for _ in range(3)] == [f'data: {{"n":{number}}}' for number in range(3)]
    assert handed == []


def test_a_websocket_passes_and_is_cut_on_revocation(edge, handed, issue):
    issued = issue(active_for=RUNNING)
    url = f"{edge.url.replace('http', 'ws')}/api/v1/proxy/ws"
    headers = {"X-Access-Token": issued.secret, "X-Device-ID": DEVICE}
    with connect(url, additional_headers=headers, proxy=None) as socket:
        socket.send("hello")
        assert socket.recv(timeout=20) == "hello"
        tokens_services.revoke_token(token_id=issued.token.pk, actor=None, refund=False)
        with pytest.raises(Exception, match=r"1008|token_revoked"):
            socket.recv(timeout=20)
    assert handed == []


# --- refusals


def test_refusals_are_the_gateways_own(edge, handed, issue, allow, upstream):
    issued = issue(active_for=RUNNING)
    restricted = issue(active_for=RUNNING, scope="certificates_only")
    with edge.client(None) as client:
        assert_refused(client.get("x"), 401, "token_missing")
    with edge.client("znz_wrong") as client:
        assert_refused(client.get("x"), 401, "token_invalid")
    with edge.client(issued.secret, device=None) as client:
        assert_refused(client.get("x"), 403, "device_missing")
    with edge.client(restricted.secret) as client:
        assert_refused(client.get("system/version"), 403, "scope_forbidden")
    with edge.client(issued.secret) as client:
        assert client.get("certificates/filter").status_code == 200
    with edge.client(issued.secret, device="another-device") as client:
        assert_refused(client.get("certificates/filter"), 409, "device_conflict")
    allow(issued, requests_per_minute=2)
    with edge.client(issued.secret) as client:
        assert client.get("certificates/filter").status_code == 200
        answer = client.get("certificates/filter")
        assert_refused(answer, 429, "rate_limited")
        assert int(answer.headers["retry-after"]) > 0
    assert len(upstream.requests) == 2


def test_a_revoked_token_is_refused_at_once(edge, handed, issue):
    issued = issue(active_for=RUNNING)
    with edge.client(issued.secret) as client:
        assert client.get("certificates/filter").status_code == 200
        tokens_services.revoke_token(token_id=issued.token.pk, actor=None, refund=False)
        assert_refused(client.get("certificates/filter"), 401, "token_revoked")
    assert len(handed) == 1


@pytest.mark.parametrize(
    "path",
    [
        b"certificates/filter/../../system/version",
        b"certificates/filter/%2e%2e/%2e%2e/system/version",
        b"certificates/filter/..%2f..%2fsystem/version",
        b"certificates//filter",
        b"certificates/filter/./../../system",
        b"certificates/%66ilter/..%5c..%5csystem",
        b"certificates/filterX",
        b"../proxy/system/version",
    ],
)
def test_no_path_reaches_what_a_scope_closes(edge, issue, upstream, path):
    issued = issue(active_for=RUNNING, scope="certificates_only")
    with edge.raw() as peer:
        peer.sendall(request_bytes(path.decode(), issued.secret, extra=b"Connection: close\r\n"))
        status = int(peer.recv(65536).split(b" ")[1])
    assert status in (400, 403)
    assert upstream.requests == []


# --- who is a carrier


@pytest.mark.parametrize(
    "proof", ["0123456789abcdef", "wrong", SECRET[:-1], f"{SECRET}x", f"x {SECRET}", SECRET.upper()]
)
def test_who_cannot_prove_to_be_a_carrier_is_told_nothing(live, handed, issue, proof):
    headers = {"X-Zenzefi-Edge": f"{proof} 0123456789abcdef", "X-Zenzefi-Edge-Failed": "504 0123456789abcdef"}
    with live.client(issue(active_for=RUNNING).secret) as client:
        answer = client.get("certificates/filter", headers=headers)
    assert answer.status_code == 200
    assert "x-accel-redirect" not in answer.headers
    assert handed == []


@pytest.mark.parametrize(
    "lines",
    [
        (b"x-accel-redirect: @a\r\nx-forged: 1\r\n", 1),
        (b"x-accel-redirect: @a\r\n\r\nforged\r\n", 2),
        (b"x-accel-redirect: @a\rb\r\n", 1),
        (b"x-accel-redirect: @a\x00\r\n", 1),
        (b"x-accel-redirect: @a", 1),
    ],
)
def test_what_is_no_line_is_not_sent_to_the_carrier(live, issue, monkeypatch, lines):
    """The last look at what is handed over, should anything odd ever get as far."""
    monkeypatch.setattr(Edge, "handover", lambda self, target, **_: lines)
    key = live.gateway.upstream.targets[0].carrier_key
    with live.client(issue(active_for=RUNNING).secret) as client:
        answer = client.get("certificates/filter", headers={"X-Zenzefi-Edge": f"{SECRET} {key}"})
    assert_refused(answer, 500, "internal_error")
    assert not {"x-accel-redirect", "x-forged"} & set(answer.headers)


def test_a_client_cannot_speak_for_the_carrier(edge, live, handed, issue, upstream):
    """nginx's own headers take the place of the client's, also of those that say it failed."""
    keys = [target.carrier_key for target in live.gateway.upstream.targets]
    forged = {
        "X-Zenzefi-Edge": f"{SECRET} {keys[0]}",
        "X-Zenzefi-Edge-Failed": f"504 {keys[0]}",
        "X-Zenzefi-Edge-Connection": "Accept",
        "X-Carry-Uri": "/elsewhere",
        "X-User-Id": "somebody-else",
    }
    issued = issue(active_for=RUNNING)
    with edge.client(issued.secret) as client:
        answer = client.get("certificates/filter", headers=forged)
    assert answer.status_code == 200
    assert len(handed) == 1
    seen = upstream.requests[0]
    assert seen.target == b"/certificates/filter"
    told = [(name.lower(), value) for name, value in seen.headers]
    assert [value for name, value in told if name == b"x-user-id"] == [str(issued.token.owner_id).encode()]
    assert not [name for name, _ in told if name.startswith(b"x-zenzefi")]


def test_without_a_secret_there_is_no_edge_mode(settings, upstream, transactional_db, issue):
    settings.EDGE_SECRET = ""
    with LiveGateway().running() as live:
        seen = watch(live)
        for proof in ("", "0123456789abcdef", SECRET):
            with live.client(issue(active_for=RUNNING).secret) as client:
                answer = client.get("certificates/filter", headers={"X-Zenzefi-Edge": proof})
            assert answer.status_code == 200
        assert seen == []


# --- metering


def test_what_was_carried_is_metered_to_the_byte(edge, handed, issue):
    issued = issue(active_for=RUNNING)
    sizes = [0, 1, 1000, 70_000, 1_000_000]
    with edge.client(issued.secret) as client:
        for size in sizes:
            assert len(client.get(f"bytes/{size}").content) == size
        assert client.head("bytes/5000").headers["content-length"] == "5000"
        answer = client.get("bytes/3000", headers={"Accept-Encoding": "gzip"})
        assert len(answer.content) == 3000
        body = client.get("certificates/filter").content
    assert len(handed) == 8
    session = metered(issued, requests=8)
    assert session.bytes_out == sum(sizes) + 3000 + len(body)
    assert session.bytes_in == 0
    assert session.requests == 8
    assert session.client_address == "127.0.0.1"
    assert session.device_id == DEVICE
    assert session.user_agent.startswith("python-httpx/")


def test_a_client_that_leaves_is_charged_what_passed(edge, handed, issue):
    issued = issue(active_for=RUNNING)
    with edge.raw() as peer:
        peer.sendall(request_bytes("bytes/50000000", issued.secret))
        received = 0
        while received < 200_000:
            received += len(peer.recv(65536))
    session = metered(issued, requests=1)
    # What nginx had given to the kernel may not have been read.
    assert 190_000 < session.bytes_out < 20_000_000
    assert len(handed) == 1


def test_thousands_of_requests_are_all_in_the_log(edge, handed, issue):
    issued = issue(active_for=RUNNING, superuser=True)
    expected = 0
    lock = threading.Lock()

    def client(number: int) -> None:
        nonlocal expected
        mine = 0
        with edge.client(issued.secret) as session:
            for turn in range(250):
                size = (number * 250 + turn) * 7919 % 3000
                mine += len(session.get(f"bytes/{size}").content)
        with lock:
            expected += mine

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    session = metered(issued, requests=2000)
    assert len(handed) == 2000
    assert session.requests == 2000
    assert session.bytes_out == expected


def test_a_quota_gets_back_what_no_server_answered(settings, transactional_db, tmp_path, issue, allow):
    """The carrier finds the server dead, and so does the gateway then: one request, given back once."""
    settings.ZENZEFI_TARGET_URLS = [f"http://127.0.0.1:{unused_port()}"]
    with LiveGateway().running() as live, edge_log(live), quiet(tmp_path, live) as edge:
        seen = watch(live)
        issued = issue(active_for=RUNNING)
        allow(issued, requests_per_day=3)
        with edge.client(issued.secret) as client:
            for _ in range(5):
                answer = client.get("x")
                assert answer.status_code in (502, 503), answer.text
                assert answer.headers["x-zenzefi-error"] in ("upstream_unreachable", "upstream_unavailable")
        assert seen
        with live.client(issued.secret) as client:
            assert client.get("status").json()["usage"]["requests"] == 0
            wait_until(lambda: admitted(issued) == 0, what="what is given back")
    # Whatever was under way.
    assert admitted(issued) == 0


# --- servers that fail and change


@pytest.fixture
def two(settings: Any, transactional_db: None) -> Iterator[tuple[RecordingUpstream, RecordingUpstream]]:
    with RecordingUpstream() as one, RecordingUpstream() as other:
        settings.ZENZEFI_TARGET_URLS = [one.url, other.url]
        yield one, other


def test_a_dead_server_is_noticed_and_another_asked(two, tmp_path, issue, allow):
    one, _ = two
    with LiveGateway().running() as live, edge_log(live), quiet(tmp_path, live) as edge:
        seen = watch(live)
        issued = issue(active_for=RUNNING)
        allow(issued, requests_per_minute=100_000)
        with edge.client(issued.secret) as client:
            assert client.get("certificates/filter").status_code == 200
            one.stop()
            for number in range(60):
                answer = client.get("certificates/filter")
                assert answer.status_code == 200, answer.text
                # Nothing is counted twice, whoever had to send it again.
                assert answer.headers["ratelimit"].startswith(f'"proxy";r={99_998 - number};')
            circuit = live.gateway.upstream.targets[0].circuit
            wait_until(
                lambda: client.get("certificates/filter").status_code == 200 and not circuit.closed,
                what="an open circuit",
            )
            one.start()
            wait_until(
                lambda: client.get("certificates/filter").status_code == 200 and circuit.closed,
                what="a closed circuit",
            )
        assert len(seen) > 10


def test_a_server_that_hangs_is_a_timeout(settings, transactional_db, tmp_path, issue, allow):
    settings.GATEWAY = {**settings.GATEWAY, "first_byte_timeout": 0.5, "idle_timeout": 0.5}
    with RawUpstream([ReadHead(), Wait(30)]) as server:
        settings.ZENZEFI_TARGET_URLS = [server.url]
        with LiveGateway().running() as live, edge_log(live), quiet(tmp_path, live) as edge:
            seen = watch(live)
            issued = issue(active_for=RUNNING)
            allow(issued, requests_per_day=10)
            with edge.client(issued.secret) as client:
                assert_refused(client.get("x"), 504, "upstream_timeout")
                wait_until(lambda: admitted(issued) == 0, what="what is given back")
                # The gateway looks for itself before it hands anything over again.
                assert_refused(client.get("x"), 504, "upstream_timeout")
            assert len(seen) == 1
            assert len(server.received) == 2


def test_a_server_the_carrier_does_not_know_is_the_gateways(edge, live, handed, upstream, issue):
    issued = issue(active_for=RUNNING)
    with edge.client(issued.secret) as client:
        assert client.get("certificates/filter").status_code == 200
        assert len(handed) == 1
        with RecordingUpstream() as moved:
            row = UpstreamTarget.objects.create(name="first", url=moved.url, probe_path="")
            live.run(live.gateway._load_targets())
            assert client.get("certificates/filter").status_code == 200
            assert len(moved.requests) == 1
            assert len(handed) == 1
            edge.write_servers()
            edge.reload()

            def carried() -> bool:
                assert client.get("certificates/filter").status_code == 200
                return len(handed) > 1

            wait_until(carried, what="the new configuration")
            # The address changes: the old name leads nowhere any more.
            before = len(handed)
            UpstreamTarget.objects.filter(pk=row.pk).update(url=upstream.url)
            live.run(live.gateway._load_targets())
            upstream.clear()
            assert client.get("certificates/filter").status_code == 200
            assert len(upstream.requests) == 1
            assert len(handed) == before


@pytest.mark.parametrize("fields", [{"carried_at_edge": False}, {"counts_gateway_errors": True}])
def test_a_server_may_be_the_gateways_alone(edge, live, handed, upstream, issue, fields):
    UpstreamTarget.objects.create(name="only", url=upstream.url, probe_path="", **fields)
    live.run(live.gateway._load_targets())
    edge.write_servers()
    edge.reload()
    assert relayed(edge, handed, issue(active_for=RUNNING)).status_code == 200
    assert len(upstream.requests) == 1


def test_a_drained_server_is_given_nothing_more(edge, live, upstream, issue):
    with RecordingUpstream() as other:
        rows = [
            UpstreamTarget.objects.create(name=name, url=server.url, probe_path="")
            for name, server in (("first", upstream), ("second", other))
        ]
        live.run(live.gateway._load_targets())
        edge.write_servers()
        edge.reload()
        seen = watch(live)
        with edge.client(issue(active_for=RUNNING).secret) as client:

            def both() -> bool:
                assert client.get("certificates/filter").status_code == 200
                return {"first", "second"} <= set(seen)

            wait_until(both, what="both servers at work")
            upstream_services.change_target_state(
                target_id=rows[0].pk, state=UpstreamTarget.State.DRAINING, actor=UserFactory(), reason="a test"
            )
            live.run(live.gateway._load_targets())
            seen.clear()
            for _ in range(10):
                assert client.get("certificates/filter").status_code == 200
            assert set(seen) == {"second"}


def test_a_server_with_its_own_authority_is_verified(settings, transactional_db, tmp_path, tls_server, issue):  # noqa: F811
    chain = tls_server.chain.read_text()
    good = UpstreamTarget.objects.create(
        name="good", url=f"https://127.0.0.1:{tls_server.server_port}", probe_path="", ca_certificates=chain
    )
    with LiveGateway().running() as live, edge_log(live):
        with quiet(tmp_path / "nginx", live) as edge:
            seen = watch(live)
            with edge.client(issue(active_for=RUNNING).secret) as client:
                answer = client.get("hello")
            assert (answer.status_code, answer.text) == (200, "hello")
            assert seen == ["good"]
            files = sorted(path.name for path in edge.configuration.glob("*.pem"))
            assert files == [f"{live.gateway.upstream.targets[0].carrier_key}-authority.pem"]
        (tmp_path / "other").mkdir()
        stranger, _ = certificate(tmp_path / "other")
        UpstreamTarget.objects.filter(pk=good.pk).update(ca_certificates=stranger.read_text())
        live.run(live.gateway._load_targets())
        with quiet(tmp_path / "nginx2", live) as edge:
            seen = watch(live)
            with edge.client(issue(active_for=RUNNING).secret) as client:
                assert_refused(client.get("hello"), 502, "upstream_unreachable")
            assert seen == ["good"]
    assert tls_server.seen == ["/hello"]


# --- neighbours


def test_without_redis_requests_go_on_and_nothing_is_lost(settings, upstream, transactional_db, tmp_path, issue):
    with own_redis() as redis_server:
        settings.REDIS_URL = redis_server.url
        with LiveGateway().running() as live, edge_log(live), quiet(tmp_path, live) as edge:
            issued = issue(active_for=RUNNING)
            with edge.client(issued.secret) as client:
                assert client.get("bytes/100").status_code == 200
                # This Redis forgets.
                metered(issued, requests=1)
                redis_server.stop()
                for _ in range(5):
                    assert client.get("bytes/100").status_code == 200
                redis_server.start()
                wait_until(lambda: live.gateway.link.up, what="the link")
            session = metered(issued, requests=6)
            assert session.bytes_out == 600


def test_the_receiver_notices_a_redis_that_falls_silent(settings, upstream, transactional_db, tmp_path, issue):
    settings.REDIS_TIMEOUT = 0.5
    with own_redis() as redis_server:
        settings.REDIS_URL = redis_server.url
        with LiveGateway().running() as live, edge_log(live) as receiving, quiet(tmp_path, live) as edge:
            issued = issue(active_for=RUNNING)
            with edge.client(issued.secret) as client:
                assert client.get("bytes/100").status_code == 200
                redis_server.freeze()
                for _ in range(5):
                    assert client.get("bytes/100").status_code == 200
            # While a batch is on its way to it, too.
            wait_until(lambda: not receiving._link.up, what="the receiver's notice")
            redis_server.thaw()
            session = metered(issued, requests=6, seconds=15)
            assert session.bytes_out == 600


def test_the_receiver_hands_over_what_it_has_when_it_stops(live, settings, tmp_path, issue):
    """As a process of its own, told to stop right after the last request."""
    issued = issue(active_for=RUNNING)
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "zenzefi.settings.test",
        "EDGE_SECRET": SECRET,
        "EDGE_LOG": settings.EDGE_LOG,
        "REDIS_TIMEOUT": "20",
        "REDIS_URL": settings.REDIS_URL,
        "DATABASE_URL": settings.DATABASE_URL,
    }
    code = (
        "import django; django.setup(); from django.conf import settings; "
        f"settings.REDIS_PREFIX = {settings.REDIS_PREFIX!r}; "
        "from django.core.management import call_command; call_command('edge_meter')"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as receiver:
        try:
            assert receiver.stdout is not None
            assert receiver.stdout.readline() == f"Receiving on {settings.EDGE_LOG}\n"
            with quiet(tmp_path, live) as edge, edge.client(issued.secret) as client:
                for _ in range(3):
                    assert client.get("bytes/100").status_code == 200
            receiver.send_signal(signal.SIGTERM)
            assert receiver.wait(60) == 0
        finally:
            receiver.kill()
    services.flush_meter_stream()
    session = Session.objects.get(token=issued.token)
    assert (session.requests, session.bytes_out) == (3, 300)


def test_what_is_given_back_last_is_not_lost(settings, issue):
    """Told to stop while Redis owes an answer, behind which the rest is waiting."""
    issued = issue()
    unanswered = line(token=str(issued.token.pk), user=str(issued.token.owner_id), ours="203.0.113.9 1", first_byte="-")
    with own_redis() as redis_server:
        settings.REDIS_URL = redis_server.url

        async def take_and_stop() -> None:
            log = EdgeLog()
            await log.start()
            redis_server.freeze()
            log._link.tell(b"PING")
            await asyncio.sleep(0)
            log.take(unanswered)
            asyncio.get_running_loop().call_later(0.3, redis_server.thaw)
            await log.stop()

        asyncio.run(take_and_stop())
        redis_server.thaw()
        assert admitted(issued) == -1


def test_the_log_over_a_unix_socket(live, settings, tmp_path, issue):
    settings.EDGE_LOG = f"unix:{tmp_path}/log.sock"
    issued = issue(active_for=RUNNING)
    with edge_log(live), quiet(tmp_path / "nginx", live) as edge:
        with edge.client(issued.secret) as client:
            assert client.get("bytes/100").status_code == 200
        assert metered(issued, requests=1).bytes_out == 100
    assert not (tmp_path / "log.sock").exists()


def test_the_control_plane_is_there_as_well(edge, issue):
    with httpx.Client(base_url=edge.url, timeout=30, trust_env=False) as client:
        assert client.get("/health/live").status_code == 200
        prices = client.get("/api/v1/tokens/prices")
        assert prices.status_code == 200
        assert json.loads(prices.text)
        # Behind a carrier nobody is a local caller.
        assert client.get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"}).status_code == 404
