"""Proxies that ask for the decision and carry by themselves: what they are told, what is started and counted for it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import websockets.sync.client
import yaml
from websockets.exceptions import InvalidStatus

from accounts.services import set_user_active
from notifications.models import OutboxEvent
from proxy import administration, forward_auth, keys
from proxy.models import ScopeRule, Session
from tests.proxy.live import DEVICE, LiveGateway, read_response
from tests.proxy.servers import own_redis
from tests.proxy.test_metering import handed_over
from tests.proxy.test_observability import flush_figures, value
from tests.proxy.test_quotas import admitted
from tests.proxy.test_refusals import OTHER_DEVICE, assert_untouched
from tests.proxy.test_scopes import ATTACKS
from tests.upstream import unused_port, wait_until
from tokens import secrets
from tokens.models import AccessToken, Scope
from tokens.services import revoke_token
from zenzefi.lib import clock
from zenzefi.lib import redis as redis_client

SECRET = "tests-only-edge-secret-0123456789abcdef"
DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
#: A client as the proxies tell of it.
CLIENT = "203.0.113.9"
FORMS = ["envoy", "forward"]
DAY = timedelta(hours=12)


@dataclass
class Told:
    """What a proxy is answered."""

    status: int
    headers: dict[str, list[str]]
    body: bytes

    @property
    def code(self) -> str:
        return self.headers.get("x-zenzefi-error", [""])[0]


@pytest.fixture(autouse=True)
def edge_settings(settings) -> None:
    settings.EDGE_SECRET = SECRET
    # Envoy's own addresses, too: it writes one of them last.
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("127.0.0.0/8")]


def _field(name: str, value: str | bytes) -> bytes:
    return name.encode() + b": " + (value if isinstance(value, bytes) else value.encode("latin-1")) + b"\r\n"


def question(
    form: str,
    target: str | bytes,
    token: str | None,
    *,
    method: str = "GET",
    device: str | None = DEVICE,
    proof: str | None = SECRET,
    extra: bytes = b"",
) -> bytes:
    """Return the request by which a proxy asks, as Envoy's or Traefik's source writes it. ``target`` has the prefix."""
    target = target if isinstance(target, bytes) else target.encode("latin-1")
    credentials = b"".join(
        _field(name, value)
        for name, value in (("x-access-token", token), ("x-device-id", device), ("x-zenzefi-edge", proof))
        if value is not None
    )
    if form == "envoy":
        head = method.encode() + b" /edge/envoy" + target + b" HTTP/1.1\r\nhost: gw.test\r\ncontent-length: 0\r\n"
        told = (
            b"user-agent: desktop/1.2\r\nx-forwarded-proto: https\r\nx-envoy-internal: true\r\n"
            b"x-forwarded-for: 203.0.113.9,127.0.0.1\r\nx-envoy-expected-rq-timeout-ms: 5000\r\n"
        )
        return head + credentials + told + extra + b"\r\n"
    head = b"GET /edge/forward-auth HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: desktop/1.2\r\n"
    told = b"".join(
        _field(name, value)
        for name, value in (
            ("X-Forwarded-For", CLIENT),
            ("X-Forwarded-Host", "gw.test"),
            ("X-Forwarded-Method", method),
            ("X-Forwarded-Port", "443"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Server", "edge"),
            ("X-Forwarded-Uri", target),
            ("Accept-Encoding", "gzip"),
        )
    )
    return head + credentials + told + extra + b"\r\n"


def send(live: LiveGateway, request: bytes) -> Told:
    with live.raw() as peer:
        peer.sendall(request)
        return Told(*read_response(peer))


def ask(live: LiveGateway, form: str, target: str | bytes, token: str | None, **options) -> Told:
    path = target if isinstance(target, bytes) else target.encode("latin-1")
    return send(live, question(form, b"/api/v1/proxy/" + path, token, **options))


def asked_about(live: LiveGateway, *, method: bytes | None = b"GET", uri: bytes | None, token: str, extra=b"") -> Told:
    """Ask with these very headers; ``None``: without."""
    lines = [b"GET /edge/forward-auth HTTP/1.1", b"Host: gw.test", b"X-Zenzefi-Edge: " + SECRET.encode()]
    lines += [b"X-Access-Token: " + token.encode(), b"X-Device-ID: " + DEVICE.encode()]
    if method is not None:
        lines.append(b"X-Forwarded-Method: " + method)
    if uri is not None:
        lines.append(b"X-Forwarded-Uri: " + uri)
    return send(live, b"\r\n".join(lines) + b"\r\n" + extra + b"\r\n")


def requests_in_window(issued) -> int:
    return redis_client.client().llen(f"{keys.prefix()}rate:{issued.token.pk}")


# --- who is told


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS", "PROPFIND"])
def test_an_admitted_request_is_200_with_who_asks(live, upstream, issue, form, method):
    issued = issue(active_for=DAY)

    told = ask(live, form, "json?a=1&a=2", issued.secret, method=method, extra=b"X-Request-ID: given-by-client\r\n")

    assert (told.status, told.body) == (200, b"")
    reset = told.headers.pop("ratelimit")
    assert re.fullmatch(r'"proxy";r=999;t=\d+', reset[0])
    assert told.headers == {
        "content-length": ["0"],
        "cache-control": ["no-store"],
        "x-request-id": ["given-by-client"],
        "x-user-id": [str(issued.token.owner_id)],
        "x-token-id": [str(issued.token.pk)],
        "ratelimit-policy": ['"proxy";q=1000;w=60'],
    }
    assert upstream.requests == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "proof", [None, "", "wrong", SECRET[:-1], SECRET + "x", f"x {SECRET}", SECRET.upper()], ids=str
)
def test_who_does_not_prove_itself_is_told_nothing(live, upstream, issue, form, proof):
    issued = issue()

    told = ask(live, form, "json", issued.secret, proof=proof)

    assert (told.status, told.code) == (404, "not_found")
    assert httpx.Response(404, content=told.body).json()["code"] == "not_found"
    assert "x-user-id" not in told.headers
    assert_untouched(upstream, issued)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("proof", [None, "", SECRET])
def test_without_a_secret_nobody_is_told_anything(upstream, settings, transactional_db, issue, form, proof):
    settings.EDGE_SECRET = ""
    issued = issue()
    with LiveGateway().running() as live:
        told = ask(live, form, "json", issued.secret, proof=proof)
    assert (told.status, told.code) == (404, "not_found")
    assert_untouched(upstream, issued)


@pytest.mark.parametrize(
    "path",
    [
        "/edge/",
        "/edge/envoy",
        "/edge/envoyx/api/v1/proxy/json",
        "/edge/forward-auth/",
        "/edge/forward-aut%68",
        "/%65dge/envoy/api/v1/proxy/json",
        "/edge/../edge/forward-auth",
    ],
)
def test_there_is_nothing_else_to_ask(live, upstream, issue, path):
    issued = issue()
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nX-Zenzefi-Edge: {SECRET}\r\nX-Access-Token: {issued.secret}\r\n"
    said = f"X-Device-ID: {DEVICE}\r\nX-Forwarded-Method: GET\r\nX-Forwarded-Uri: /api/v1/proxy/json\r\n\r\n"

    told = send(live, (head + said).encode())

    assert (told.status, told.code) == (404, "not_found")
    assert_untouched(upstream, issued)


def test_the_platform_and_the_gateway_are_where_they_were(live, issue):
    assert httpx.get(f"{live.url}/health/live", trust_env=False).status_code == 200
    assert httpx.get(f"{live.url}/edge", trust_env=False).status_code == 404
    with live.client(issue(active_for=DAY).secret) as client:
        answer = client.get("json", headers={"X-Zenzefi-Edge": "wrong"})
    assert answer.status_code == 200


# --- what is judged


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "path",
    [
        "certificates/filter/../../system/version",
        "certificates/filter/%2e%2e/%2e%2e/system/version",
        "certificates/filter/..%2f..%2fsystem/version",
        "certificates/filter/%252e%252e/system/version",
        "certificates//filter",
        "/certificates/filter",
        "certificates/filter%00",
    ],
)
def test_a_path_of_two_meanings_is_refused_under_a_restricted_scope(live, upstream, issue, form, path):
    issued = issue(scope="certificates_only")
    told = ask(live, form, path, issued.secret)
    assert (told.status, told.code) == (400, "path_ambiguous")
    assert_untouched(upstream, issued)


#: What stands behind a question mark is no path, and opens nothing that the path before it does not.
WAYS_PAST = [path for path in ATTACKS if not path.startswith(b"certificates/filter?")]


@pytest.mark.parametrize("form", FORMS)
def test_no_known_way_leads_past_a_restricted_scope(live, upstream, issue, form):
    issued = issue(scope="certificates_only")
    assert len(WAYS_PAST) > 60
    for path in WAYS_PAST:
        told = ask(live, form, path, issued.secret)
        # Whoever refuses it: the server, the hygiene, the scope.
        assert told.status in (400, 403), (path, told.status, told.body)
    assert_untouched(upstream, issued)


@pytest.mark.parametrize("form", FORMS)
def test_the_original_method_is_judged(live, issue, form):
    scope = Scope.objects.create(slug="readers")
    ScopeRule.objects.create(scope=scope, pattern="inspect", method="GET")
    wait_until(
        lambda: live.gateway._table is not None and live.gateway._table.is_open("readers", b"inspect", "GET"),
        what="the rule",
    )
    issued = issue(scope="readers", active_for=DAY)
    assert ask(live, form, "inspect?x=1", issued.secret).status == 200
    assert ask(live, form, "inspect", issued.secret, method="HEAD").status == 200
    refused = ask(live, form, "inspect", issued.secret, method="POST")
    assert (refused.status, refused.code) == (403, "scope_forbidden")


@pytest.mark.parametrize(
    "uri",
    [
        None,
        b"",
        b"*",
        b"api/v1/proxy/json",
        b"http://gw.test/api/v1/proxy/json",
        b"//gw.test/api/v1/proxy/json",
        b"/api/v1/proxyjson",
        b"/api/v1/prox%79/json",
        b"/API/v1/proxy/json",
        b"/api/v1//proxy/json",
        b"/health",
        b"/x/../api/v1/proxy/json",
        b"/api/v1/proxy/json#fragment",
        b"/api/v1/proxy/js on",
        b"/api/v1/proxy/\xd1\x84",
        b"/api/v1/proxy/json\t",
        b"/api/v1/proxy/json?a=\xff",
        # The gateway's own, which no server has.
        b"/api/v1/proxy/status",
        b"/api/v1/proxy/status/",
    ],
)
def test_what_is_no_path_of_a_server_is_malformed(live, upstream, issue, uri):
    issued = issue()
    told = asked_about(live, uri=uri, token=issued.secret)
    assert (told.status, told.code) == (400, "bad_request"), uri
    assert_untouched(upstream, issued)


@pytest.mark.parametrize("path", ["/health", "/api/v1/prox%79/json", "//api/v1/proxy/json", "/api/v1/proxy/status"])
def test_envoy_may_ask_about_the_proxys_paths_only(live, upstream, issue, path):
    issued = issue()
    told = send(live, question("envoy", path, issued.secret))
    assert (told.status, told.code) == (400, "bad_request")
    assert_untouched(upstream, issued)


@pytest.mark.parametrize(
    ("method", "status", "code"),
    [
        (None, 400, "bad_request"),
        (b"", 400, "bad_request"),
        (b"get", 400, "bad_request"),
        (b"GET POST", 400, "bad_request"),
        (b"GET,POST", 400, "bad_request"),
        (b"TRACE", 405, "method_not_allowed"),
        (b"CONNECT", 405, "method_not_allowed"),
    ],
)
def test_a_method_that_is_not_relayed_is_not_let_through(live, upstream, issue, method, status, code):
    issued = issue()
    told = asked_about(live, method=method, uri=b"/api/v1/proxy/json", token=issued.secret)
    assert (told.status, told.code) == (status, code)
    assert ("allow" in told.headers) == (status == 405)
    assert_untouched(upstream, issued)


@pytest.mark.parametrize(
    "extra",
    [
        b"X-Forwarded-Uri: /api/v1/proxy/inspect\r\n",
        b"X-Forwarded-Method: DELETE\r\n",
        b"Host: another.test\r\n",
        b"X-Note: a\x01b\r\n",
        b"Content-Length: 0\r\nContent-Length: 0\r\n",
    ],
)
def test_what_two_servers_read_differently_is_malformed(live, upstream, issue, extra):
    issued = issue()
    told = asked_about(live, uri=b"/api/v1/proxy/json", token=issued.secret, extra=extra)
    # A part of it the server itself refuses, without our header.
    assert told.status == 400
    assert b'"bad_request"' in told.body
    assert_untouched(upstream, issued)


def test_a_name_with_underscores_says_nothing(live, issue):
    issued = issue(scope="certificates_only", active_for=DAY)
    lie = b"X_Forwarded_Uri: /api/v1/proxy/certificates/filter\r\nX_Forwarded_Method: GET\r\n"
    told = asked_about(live, uri=b"/api/v1/proxy/system/version", token=issued.secret, extra=lie)
    assert (told.status, told.code) == (403, "scope_forbidden")


# --- refusals


def _missing(issue, allow):
    return None, {}


def _unknown(issue, allow):
    return secrets.generate(), {}


def _revoked(issue, allow):
    return issue(revoked_at=clock.now()).secret, {}


def _expired(issue, allow):
    return issue(active_for=-timedelta(minutes=1)).secret, {}


def _held(issue, allow):
    return issue(held_at=clock.now()).secret, {}


def _disabled(issue, allow):
    issued = issue()
    set_user_active(user_id=issued.token.owner_id, active=False, actor=None, reason="a test")
    return issued.secret, {}


def _no_device(issue, allow):
    return issue().secret, {"device": None}


def _bad_device(issue, allow):
    return issue().secret, {"device": "short"}


def _elsewhere(issue, allow):
    issued = issue()
    allow(issued, allowed_ips=["198.51.100.0/24"])
    return issued.secret, {}


def _out_of_scope(issue, allow):
    return issue(scope="certificates_only").secret, {}


def _other_device(issue, allow):
    issued = issue(device_id=OTHER_DEVICE, device_seen_at=clock.now())
    return issued.secret, {}


def _rate(issue, allow):
    issued = issue(active_for=DAY)
    allow(issued, requests_per_minute=1)
    return issued.secret, {"before": 1}


def _quota(issue, allow):
    issued = issue(active_for=DAY)
    allow(issued, requests_per_day=1)
    return issued.secret, {"before": 1}


REFUSALS = [
    (_missing, 401, "token_missing"),
    (_unknown, 401, "token_invalid"),
    (_revoked, 401, "token_revoked"),
    (_expired, 401, "token_expired"),
    (_held, 401, "token_held"),
    (_disabled, 401, "owner_disabled"),
    (_no_device, 403, "device_missing"),
    (_bad_device, 400, "device_malformed"),
    (_elsewhere, 403, "address_forbidden"),
    (_out_of_scope, 403, "scope_forbidden"),
    (_other_device, 409, "device_conflict"),
    (_rate, 429, "rate_limited"),
    (_quota, 429, "quota_exceeded"),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("prepare", "status", "code"), REFUSALS, ids=[code for _, _, code in REFUSALS])
def test_refusals_are_the_gateways_own(live, issue, allow, form, prepare, status, code):
    secret, options = prepare(issue, allow)
    for _ in range(options.pop("before", 0)):
        assert ask(live, form, "json", secret).status == 200
    russian = b"Accept-Language: ru\r\n"

    told = ask(live, form, "json", secret, extra=russian, **options)
    with live.client(secret, device=options.get("device", DEVICE)) as client:
        own = client.get("json", headers={"Accept-Language": "ru", "X-Forwarded-For": CLIENT})

    assert (told.status, told.code) == (own.status_code, own.headers["x-zenzefi-error"]) == (status, code)
    assert set(told.headers) == set(own.headers)
    body = httpx.Response(status, content=told.body).json()
    varying = ("request_id", "reset_at", "retry_after")
    assert {name: value for name, value in body.items() if name not in varying} == {
        name: value for name, value in own.json().items() if name not in varying
    }
    if status == 429:
        assert int(told.headers["retry-after"][0]) >= 1


@pytest.mark.parametrize("form", FORMS)
def test_a_closed_gateway_lets_nobody_through(live, upstream, issue, form):
    issued = issue()
    administration.switch_gateway(closed=True, actor=None, reason="a test")
    told = ask(live, form, "json", issued.secret)
    assert (told.status, told.code, told.headers["retry-after"]) == (503, "gateway_closed", ["30"])
    assert_untouched(upstream, issued)


@pytest.mark.parametrize("form", FORMS)
def test_a_revoked_token_is_refused_at_once(live, issue, form):
    issued = issue()
    assert ask(live, form, "json", issued.secret).status == 200
    revoke_token(token_id=issued.token.pk, actor=None, refund=False)
    told = ask(live, form, "json", issued.secret)
    assert (told.status, told.code) == (401, "token_revoked")


# --- limits


@pytest.mark.parametrize("form", FORMS)
def test_one_decision_counts_one_request(live, upstream, issue, allow, form):
    issued = issue(active_for=DAY)
    allow(issued, requests_per_minute=5, requests_per_day=100)
    with live.client(issued.secret) as client:
        assert client.get("json").status_code == 200
        for left in (3, 2, 1, 0):
            told = ask(live, form, "json", issued.secret)
            assert (told.status, told.headers["ratelimit"][0].split(";")[1]) == (200, f"r={left}")
        assert ask(live, form, "json", issued.secret).code == "rate_limited"
        assert client.get("json").status_code == 429
    assert (requests_in_window(issued), admitted(issued), len(upstream.requests)) == (5, 5, 1)


KEPT_BY_THE_GATEWAY = [
    {"concurrent_requests": 5},
    {"bandwidth": 1_000_000},
    {"bandwidth": 10},
    {"bytes_per_day": 10**9},
    {"bytes_per_month": 10**9},
    {"concurrent_requests": 5, "bandwidth": 7, "requests_per_day": 5, "requests_per_minute": 5},
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("limits", KEPT_BY_THE_GATEWAY, ids=lambda limits: "-".join(map(str, limits)))
def test_limits_that_nobody_would_keep_refuse_and_count_nothing(live, upstream, issue, allow, form, limits):
    issued = issue()
    allow(issued, **limits)
    for device in (DEVICE, OTHER_DEVICE):
        told = ask(live, form, "json", issued.secret, device=device)
        assert (told.status, told.code) == (403, "gateway_only")
    assert_untouched(upstream, issued)
    assert admitted(issued) == 0
    assert not redis_client.client().exists(f"{keys.prefix()}lease:{issued.token.pk}")
    with live.client(issued.secret) as client:
        assert client.get("json").status_code == 200


@pytest.mark.parametrize("form", FORMS)
def test_limits_that_the_decision_keeps_do_not_refuse(live, issue, allow, form):
    issued = issue()
    allow(issued, requests_per_minute=50, seats=2, requests_per_day=50, requests_per_month=50)
    assert ask(live, form, "json", issued.secret).status == 200
    assert ask(live, form, "json", issued.secret, device=OTHER_DEVICE).status == 200
    assert ask(live, form, "json", issued.secret, device="device-three").code == "device_conflict"


def test_a_limit_that_comes_later_refuses_at_once(live, issue, allow):
    issued = issue()
    assert ask(live, "forward", "json", issued.secret).status == 200
    allow(issued, bandwidth=1000)
    assert ask(live, "forward", "json", issued.secret).code == "gateway_only"
    assert requests_in_window(issued) == 1


def test_without_redis_the_same_is_refused(settings, upstream, transactional_db, issue, allow):
    with own_redis() as own:
        settings.REDIS_URL = own.url
        limited, plain, restricted = issue(active_for=DAY), issue(active_for=DAY), issue(scope="certificates_only")
        allow(limited, concurrent_requests=3)
        with LiveGateway().running() as live:
            own.stop()
            wait_until(lambda: not live.gateway.link.up, what="the gateway's notice that Redis is away")
            assert ask(live, "envoy", "json", limited.secret).code == "gateway_only"
            assert ask(live, "envoy", "json", plain.secret).status == 200
            assert ask(live, "envoy", "json", plain.secret, device=OTHER_DEVICE).code == "device_conflict"
            assert ask(live, "envoy", "json", restricted.secret).code == "scope_forbidden"
            with live.client(limited.secret) as client:
                assert client.get("json").status_code == 200


# --- the clock of a token


@pytest.mark.parametrize("form", FORMS)
def test_the_first_admitted_request_starts_the_clock(live, issue, form):
    issued = issue(hours=12)
    assert ask(live, form, "json", issued.secret, device="short").status == 400
    assert issued.reload().activated_at is None
    before = clock.now()

    assert ask(live, form, "json", issued.secret).status == 200

    token = issued.reload()
    assert before - timedelta(seconds=1) < token.activated_at < clock.now() + timedelta(seconds=1)
    assert token.expires_at - token.activated_at == timedelta(hours=12)
    ask(live, form, "json", issued.secret)
    assert issued.reload().activated_at == token.activated_at
    assert OutboxEvent.objects.filter(event="token.activated").count() == 1


@pytest.fixture
def out(settings, live, issue) -> LiveGateway:
    """A gateway whose one server is out for long."""
    settings.GATEWAY = {**settings.GATEWAY, "eject_after": 1, "eject_seconds": 600.0, "eject_max_seconds": 600.0}
    settings.ZENZEFI_TARGET_URLS = [f"http://127.0.0.1:{unused_port()}"]
    live.stop()
    live.start()
    with live.client(issue().secret) as client:
        assert client.get("json").status_code == 502
    return live


@pytest.mark.parametrize("form", FORMS)
def test_while_no_server_works_no_clock_is_started(out, issue, allow, form):
    unused, running = issue(), issue(active_for=DAY)
    allow(unused, requests_per_day=5, requests_per_month=5)

    told = ask(out, form, "json", unused.secret)

    assert (told.status, told.code) == (503, "upstream_unavailable")
    assert 400 < int(told.headers["retry-after"][0]) <= 600
    assert unused.reload().activated_at is None
    wait_until(lambda: admitted(unused) == 0, what="the quota's giving back")
    handed_over(out)
    assert not Session.objects.filter(token=unused.token).exists()
    # What nothing is started for, the proxy may try.
    assert ask(out, form, "json", running.secret).status == 200


def test_without_a_server_for_the_scope_no_clock_is_started(live, settings, issue):
    settings.ZENZEFI_TARGET_URLS = []
    live.stop()
    live.start()
    issued = issue()
    told = ask(live, "forward", "json", issued.secret)
    assert (told.status, told.code) == (503, "upstream_missing")
    assert issued.reload().activated_at is None


def test_a_token_revoked_meanwhile_stays_unused(live, issue, allow):
    issued = issue()
    allow(issued, requests_per_day=5)
    with live.client(issued.secret) as client:
        client.get("status")
    # Only PostgreSQL knows.
    AccessToken.objects.filter(pk=issued.token.pk).update(revoked_at=clock.now())
    told = ask(live, "envoy", "json", issued.secret)
    assert (told.status, told.code) == (401, "token_revoked")
    assert issued.reload().activated_at is None
    wait_until(lambda: admitted(issued) == 0, what="the quota's giving back")


# --- counting


@pytest.mark.parametrize("form", FORMS)
def test_a_request_without_bytes_is_metered(live, issue, form):
    issued = issue()
    for _ in range(3):
        assert ask(live, form, "json", issued.secret).status == 200
    assert ask(live, form, "json", issued.secret, device=OTHER_DEVICE).status == 409
    handed_over(live)

    session = issued.token.sessions.get()
    assert (session.requests, session.bytes_in, session.bytes_out) == (3, 0, 0)
    assert (session.device_id, session.client_address, session.user_agent) == (DEVICE, CLIENT, "desktop/1.2")
    assert issued.reload().device_id == DEVICE


def test_the_address_is_what_trusted_proxies_say(settings, upstream, transactional_db, issue, allow):
    inside, outside = issue(), issue()
    allow(inside, allowed_ips=["203.0.113.0/24"])
    allow(outside, allowed_ips=["127.0.0.1"])
    with LiveGateway().running() as live:
        for form in FORMS:
            assert ask(live, form, "json", inside.secret).status == 200
            assert ask(live, form, "json", outside.secret).code == "address_forbidden"
    settings.TRUSTED_PROXIES = []
    with LiveGateway().running() as live:
        for form in FORMS:
            assert ask(live, form, "json", inside.secret).code == "address_forbidden"
            assert ask(live, form, "json", outside.secret).status == 200


def test_outcomes_are_told_apart(live, issue):
    issued = issue()
    outcomes = ("let_through", "not_found", "device_conflict")

    def counted() -> list[float]:
        live.run(flush_figures(live))
        return [value("zenzefi_proxy_requests_total", outcome=outcome, kind="http") for outcome in outcomes]

    before = counted()
    ask(live, "envoy", "json", issued.secret)
    ask(live, "envoy", "json", issued.secret, proof="wrong")
    ask(live, "forward", "json", issued.secret, device=OTHER_DEVICE)
    assert counted() == [number + 1 for number in before]


# --- what is shipped


def test_envoys_configuration_asks_as_documented():
    text = (DEPLOY / "envoy" / "envoy.yaml").read_text()
    (listener,) = yaml.safe_load(text)["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    asking, router = manager["http_filters"]
    service = asking["typed_config"]["http_service"]

    assert asking["name"] == "envoy.filters.http.ext_authz"
    assert router["name"] == "envoy.filters.http.router"
    assert service["path_prefix"].encode() == forward_auth.ENVOY
    assert service["authorization_request"]["headers_to_add"] == [
        {"key": "x-zenzefi-edge", "value": "%ENVIRONMENT(EDGE_SECRET)%"}
    ]
    sent = {next(iter(one.values())) for one in asking["typed_config"]["allowed_headers"]["patterns"]}
    assert {"x-access-token", "x-device-id", "x-forwarded-", "user-agent"} <= sent
    copied = {one["exact"] for one in service["authorization_response"]["allowed_upstream_headers"]["patterns"]}
    assert copied == {"x-user-id", "x-token-id", "x-request-id"}
    assert asking["typed_config"]["failure_mode_allow"] is False
    assert (manager["normalize_path"], manager["merge_slashes"]) == (False, False)
    routes = manager["route_config"]["virtual_hosts"][0]["routes"]
    (proxied,) = [one for one in routes if one["match"].get("path_separated_prefix") == "/api/v1/proxy"]
    assert "typed_per_filter_config" not in proxied
    assert {"x-access-token", "x-device-id", "x-zenzefi-edge"} <= set(proxied["request_headers_to_remove"])
    rewrite = proxied["route"]["regex_rewrite"]
    for path, below in (("/api/v1/proxy", "/"), ("/api/v1/proxy/a//b", "/a//b"), ("/api/v1/proxy//a", "//a")):
        assert re.sub(rewrite["pattern"]["regex"], rewrite["substitution"], path) == below
    assert all("typed_per_filter_config" in one for one in routes if one is not proxied)


def test_traefiks_configuration_asks_as_documented():
    http = yaml.safe_load((DEPLOY / "traefik" / "dynamic.yaml").read_text())["http"]
    middlewares = http["middlewares"]
    chain = [middlewares[name] for name in http["routers"]["proxied"]["middlewares"]]
    proof, asking, stripping, prefix = chain

    assert proof["headers"]["customRequestHeaders"] == {"X-Zenzefi-Edge": '{{ env "EDGE_SECRET" }}'}
    assert asking["forwardAuth"]["address"].endswith(forward_auth.FORWARD_AUTH.decode())
    assert asking["forwardAuth"]["trustForwardHeader"] is False
    assert asking["forwardAuth"]["authResponseHeaders"] == ["X-User-Id", "X-Token-Id", "X-Request-ID"]
    assert "authRequestHeaders" not in asking["forwardAuth"]
    stripped = stripping["headers"]["customRequestHeaders"]
    assert {"X-Zenzefi-Edge", "X-Access-Token", "X-Device-ID"} <= set(stripped)
    assert set(stripped.values()) == {""}
    assert not set(stripped) & set(asking["forwardAuth"]["authResponseHeaders"])
    assert prefix == {"stripPrefix": {"prefixes": ["/api/v1/proxy"]}}
    used = {router["service"] for router in http["routers"].values()}
    assert used == set(http["services"])


# --- Caddy


class Caddy:
    """Caddy with the shipped configuration; only addresses are the test's own."""

    def __init__(self, directory: Path, *, gateway_port: int, server_port: int) -> None:
        self.directory = directory
        self.port = unused_port()
        text = (DEPLOY / "caddy" / "Caddyfile").read_text()
        for old, new, count in (
            ("admin localhost:2019\n", "admin off\n", 1),
            ("\n:80 {\n", f"\nhttp://:{self.port} {{\n\tbind 127.0.0.1\n", 1),
            ("127.0.0.1:8000", f"127.0.0.1:{gateway_port}", 2),
            ("127.0.0.1:9000", f"127.0.0.1:{server_port}", 1),
        ):
            assert text.count(old) == count, f"the Caddyfile has not {count} times {old!r}"
            text = text.replace(old, new)
        assert SECRET not in text
        (directory / "Caddyfile").write_text(text)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api/v1/proxy"

    @contextlib.contextmanager
    def running(self, secret: str = SECRET) -> Iterator[Caddy]:
        program = shutil.which("caddy")
        assert program is not None
        home = str(self.directory)
        own = {"HOME": home, "XDG_DATA_HOME": home, "XDG_CONFIG_HOME": home, "EDGE_SECRET": secret}
        command = [program, "run", "--config", f"{home}/Caddyfile", "--adapter", "caddyfile"]
        log = self.directory / "output.log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, env={**os.environ, **own}, stderr=output, stdin=subprocess.DEVNULL)

        def accepts() -> bool:
            assert process.poll() is None, log.read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        try:
            wait_until(accepts, seconds=40, what="Caddy")
            yield self
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def client(self, token: str | None, **headers: str) -> httpx.Client:
        own = {"X-Device-ID": DEVICE, "Accept-Encoding": "identity"}
        if token is not None:
            own["X-Access-Token"] = token
        return httpx.Client(base_url=f"{self.url}/", headers=own | headers, timeout=30, trust_env=False)


@pytest.fixture
def make_caddy(live, upstream, tmp_path) -> Callable[[], Caddy]:
    return lambda: Caddy(tmp_path, gateway_port=live.port, server_port=upstream.port)


@pytest.fixture
def caddy(make_caddy) -> Iterator[Caddy]:
    with make_caddy().running() as running:
        yield running


@pytest.mark.caddy
def test_caddy_carries_with_our_identity_and_without_credentials(caddy, live, upstream, issue):
    issued = issue()
    lies = {
        "X-User-Id": "somebody",
        "X_User_Id": "somebody",
        "X-Token-Id": "another",
        "X-Token_Id": "another",
        "X-Real-IP": "198.51.100.1",
        "X-Forwarded-For": "198.51.100.1",
        "X-Forwarded-Uri": "/api/v1/proxy/certificates/filter",
        "X-Forwarded-Method": "DELETE",
        "Forwarded": "for=198.51.100.1",
        "X-Zenzefi-Edge": SECRET,
        "X-Zenzefi-Edge-Failed": "502 x",
        "RateLimit": "mine",
    }
    with caddy.client(issued.secret, **lies) as client:
        answer = client.post("inspect?a=1&a=%2F", content=b"body", headers={"X-Request-ID": "given-by-client"})

    assert answer.status_code == 200
    assert answer.headers["ratelimit"].startswith('"proxy";r=999')
    assert answer.headers["ratelimit-policy"] == '"proxy";q=1000;w=60'
    assert answer.headers.get_list("x-request-id") == ["given-by-client"]
    (exchange,) = upstream.wait_for(1)
    assert (exchange.method, exchange.target) == ("POST", b"/inspect?a=1&a=%2F")
    sent = [(name.decode().lower(), value.decode()) for name, value in exchange.headers]
    names = [name for name, _ in sent]
    assert len(names) == len(set(names))
    assert {name: value for name, value in sent if name.startswith("x-") or "user" in name} == {
        "user-agent": client.headers["user-agent"],
        "x-user-id": str(issued.token.owner_id),
        "x-token-id": str(issued.token.pk),
        "x-request-id": "given-by-client",
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-host": f"127.0.0.1:{caddy.port}",
        "x-forwarded-proto": "http",
    }
    assert {"accept-encoding": "identity", "host": f"127.0.0.1:{upstream.port}"}.items() <= dict(sent).items()
    assert not {"ratelimit", "forwarded"} & set(names)
    assert issued.reload().activated_at is not None
    assert requests_in_window(issued) == 1


@pytest.mark.caddy
@pytest.mark.parametrize(
    "path", ["", "/", "//a//b", "/certificates/%66ilter", "/a/%2e%2e/b%2Fc/../d?x=%20&y=//", "/%D1%84;a=1,2?"]
)
def test_caddy_carries_the_path_as_it_was_judged(caddy, upstream, issue, path):
    issued = issue(active_for=DAY)
    with socket.create_connection(("127.0.0.1", caddy.port), timeout=30) as peer:
        request = f"GET /api/v1/proxy{path} HTTP/1.1\r\nHost: x\r\nX-Access-Token: {issued.secret}\r\n"
        peer.sendall(f"{request}X-Device-ID: {DEVICE}\r\nConnection: close\r\n\r\n".encode())
        peer.recv(65536)
    assert upstream.wait_for(1)[0].target in ((path or "/").encode(), path.removesuffix("?").encode())


@pytest.mark.caddy
def test_a_superusers_answer_has_no_limits_of_anybody(caddy, issue):
    with caddy.client(issue(superuser=True).secret, RateLimit="mine") as client:
        answer = client.get("json")
    assert answer.status_code == 200
    assert "ratelimit" not in answer.headers


@pytest.mark.caddy
def test_refusals_arrive_through_caddy(caddy, live, upstream, issue, allow):
    good, restricted, limited, quick = issue(), issue(scope="certificates_only"), issue(), issue(active_for=DAY)
    allow(limited, concurrent_requests=5)
    allow(quick, requests_per_minute=1)
    cases = [
        (None, "json", 401, "token_missing"),
        (secrets.generate(), "json", 401, "token_invalid"),
        (restricted.secret, "system/version", 403, "scope_forbidden"),
        (restricted.secret, "certificates/filter/%2e%2e/%2e%2e/system/version", 400, "path_ambiguous"),
        (limited.secret, "json", 403, "gateway_only"),
    ]
    for token, path, status, code in cases:
        with caddy.client(token) as client:
            answer = client.get(path)
        assert (answer.status_code, answer.headers["x-zenzefi-error"], answer.json()["code"]) == (status, code, code)
        assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert_untouched(upstream, good, restricted, limited)
    with caddy.client(quick.secret) as client:
        assert client.get("json").status_code == 200
        answer = client.get("json")
        assert (answer.status_code, answer.headers["x-zenzefi-error"]) == (429, "rate_limited")
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["ratelimit"].startswith('"proxy";r=0')
    administration.switch_gateway(closed=True, actor=None, reason="a test")
    with caddy.client(good.secret) as client:
        answer = client.get("json")
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "gateway_closed", "30")


@pytest.mark.caddy
def test_a_raw_way_past_a_scope_ends_at_caddy_or_the_gateway(caddy, upstream, issue):
    issued = issue(scope="certificates_only")
    for path in WAYS_PAST:
        with socket.create_connection(("127.0.0.1", caddy.port), timeout=30) as peer:
            head = b"GET /api/v1/proxy/" + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            peer.sendall(head + f"X-Access-Token: {issued.secret}\r\nX-Device-ID: {DEVICE}\r\n\r\n".encode())
            status = int(peer.recv(65536).split(b" ")[1])
        assert status in (400, 403, 404), (path, status)
    # What no path may have Caddy encodes before it asks, so that these two mean one thing, and then carries just that.
    assert set(upstream.targets) == {b"/certificates/details/x%7Cy", b"/certificates/details/%D1%8F"}


@pytest.mark.caddy
def test_what_the_gateway_answers_itself_passes_by_the_decision(caddy, live, upstream, issue):
    issued = issue()
    with caddy.client(issued.secret) as client:
        assert client.get("status").json()["status"] == "ready"
        assert client.get(f"http://127.0.0.1:{caddy.port}/health/live").status_code == 200
        stranger = client.get(f"http://127.0.0.1:{caddy.port}/edge/envoy/api/v1/proxy/json")
        insider = client.get(
            f"http://127.0.0.1:{caddy.port}/edge/envoy/api/v1/proxy/json", headers={"X-Zenzefi-Edge": SECRET}
        )
    assert stranger.status_code == insider.status_code == 404
    assert_untouched(upstream, issued)


@pytest.mark.caddy
def test_with_another_secret_caddy_lets_nobody_through(make_caddy, upstream, issue):
    issued = issue()
    with (
        make_caddy().running(secret="another-secret-of-32-characters-xx") as caddy,
        caddy.client(issued.secret) as client,
    ):
        answer = client.get("json", headers={"X-Zenzefi-Edge": SECRET})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert_untouched(upstream, issued)


@pytest.mark.caddy
def test_a_websocket_passes_through_caddy(caddy, upstream, issue):
    issued = issue()
    url = f"ws://127.0.0.1:{caddy.port}/api/v1/proxy/ws"

    def connect(token: str):
        headers = {"X-Access-Token": token, "X-Device-ID": DEVICE}
        return websockets.sync.client.connect(url, additional_headers=headers, proxy=None, open_timeout=30)

    with connect(issued.secret) as peer:
        peer.send("hello")
        assert peer.recv(20) == "hello"
    with pytest.raises(InvalidStatus) as refused:
        connect(secrets.generate())
    assert refused.value.response.headers["x-zenzefi-error"] == "token_invalid"
    names = {name.decode().lower() for name, _ in upstream.requests[0].headers}
    assert {"x-user-id", "x-token-id"} <= names
    assert not {"x-access-token", "x-device-id", "x-zenzefi-edge"} & names


@pytest.mark.caddy
def test_an_event_stream_passes_through_caddy_as_it_comes(caddy, issue):
    issued = issue()
    with caddy.client(issued.secret) as client, client.stream("GET", "events?n=0&interval=0.05") as stream:
        pieces = stream.iter_raw()
        assert next(pieces)
        assert next(pieces)
