"""Hygiene: what reaches the upstream, what comes back, and what never passes either way."""

from __future__ import annotations

import ipaddress
import json

import pytest

from accounts import access_tokens
from accounts.models import SignInSession
from proxy.headers import Rewriter
from tests.proxy.live import DEVICE, read_response, request_bytes
from tests.upstream import RawUpstream
from zenzefi.lib import clock


def send(live, issued, target="inspect", **options):
    with live.raw() as peer:
        peer.sendall(request_bytes(target, issued.secret, **options))
        return read_response(peer)


def received(upstream):
    """Return the headers of the only request that reached the upstream, names in lower case."""
    [exchange] = upstream.requests
    headers: dict[str, list[str]] = {}
    for name, value in exchange.headers:
        headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return headers


def test_our_credentials_stay_here_and_our_identity_goes_along(live, upstream, issue):
    issued = issue()
    send(live, issued)

    headers = received(upstream)
    assert "x-access-token" not in headers
    assert "x-device-id" not in headers
    assert issued.secret not in json.dumps(headers)
    assert DEVICE not in json.dumps(headers)
    assert headers["x-user-id"] == [str(issued.token.owner_id)]
    assert headers["x-token-id"] == [str(issued.token.pk)]
    assert headers["host"] == [upstream.url.removeprefix("http://")]
    assert headers["x-forwarded-for"] == ["127.0.0.1"]
    assert headers["x-forwarded-proto"] == ["http"]
    assert headers["x-forwarded-host"] == ["gateway.test"]
    assert headers["forwarded"] == ['for=127.0.0.1;host="gateway.test";proto=http']
    assert headers["via"] == ["1.1 zenzefi-proxy"]
    assert len(headers["x-request-id"]) == 1


@pytest.mark.parametrize(
    "name",
    [
        "X-User-Id",
        "x_user_id",
        "X_USER-ID",
        "X-Token-Id",
        "X_Token_Id",
        "X-Forwarded-For",
        "X_Forwarded_For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "X-Forwarded-User",
        "Forwarded",
        "X-Real-IP",
        "X_Real_Ip",
        "X-Access_Token",
        "X_Device_Id",
    ],
)
def test_a_client_cannot_say_who_it_is(live, upstream, issue, name):
    send(live, issue(), extra=f"{name}: forged-value\r\n".encode())

    headers = received(upstream)
    assert "forged-value" not in json.dumps(headers)
    assert all(len(headers[ours]) == 1 for ours in ("x-user-id", "x-token-id", "x-forwarded-for", "forwarded"))


def test_a_trusted_proxy_is_believed(live, upstream, settings, issue):
    settings.TRUSTED_PROXIES = [ipaddress.ip_network("127.0.0.0/8")]
    live.stop()
    live.start()
    issued = issue()
    extra = (
        b"X-Forwarded-For: 198.51.100.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.example\r\n"
        b"Forwarded: for=198.51.100.7\r\nX-User-Id: forged-value\r\nVia: 1.1 edge\r\n"
    )
    send(live, issued, extra=extra)

    headers = received(upstream)
    assert headers["x-forwarded-for"] == ["198.51.100.7, 127.0.0.1"]
    assert headers["x-forwarded-proto"] == ["https"]
    assert headers["x-forwarded-host"] == ["shop.example"]
    assert headers["forwarded"] == ['for=198.51.100.7, for=127.0.0.1;host="gateway.test";proto=http']
    assert headers["via"] == ["1.1 edge, 1.1 zenzefi-proxy"]
    assert headers["x-user-id"] == [str(issued.token.owner_id)]


@pytest.mark.parametrize("nonsense", ["not-an-ip", "1.2.3.4.5", "", "127.0.0.1, evil\x20x"])
def test_a_forged_forwarding_header_does_not_switch_the_device_rule_off(live, upstream, issue, nonsense):
    issued = issue()
    extra = f"X-Forwarded-For: {nonsense}\r\n".encode()
    assert send(live, issued, "json", extra=extra)[0] == 200
    assert send(live, issued, "json", extra=extra, device="another-device")[0] == 409


def test_hop_by_hop_headers_end_here(live, upstream, issue):
    extra = (
        b"Connection: keep-alive, X-Secret-Hop\r\nX-Secret-Hop: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\n"
        b"Trailer: X-T\r\nProxy-Authorization: Basic abc\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: abc\r\nX-Kept: yes\r\n"
    )
    send(live, issue(), extra=extra)

    headers = received(upstream)
    ended = "connection keep-alive te trailer proxy-authorization proxy-connection upgrade http2-settings x-secret-hop"
    for name in ended.split():
        assert name not in headers
    assert headers["x-kept"] == ["yes"]


def test_a_client_cannot_strip_our_identity_through_connection(live, upstream, issue):
    issued = issue()
    send(live, issued, extra=b"Connection: X-User-Id, X-Token-Id, X-Forwarded-For, Host, Via\r\n")

    headers = received(upstream)
    assert headers["x-user-id"] == [str(issued.token.owner_id)]
    assert {"x-token-id", "x-forwarded-for", "host", "via"} <= set(headers)


def test_nothing_is_added_that_the_client_did_not_send(live, upstream, issue):
    send(live, issue())

    assert set(received(upstream)) == {
        "host",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "forwarded",
        "via",
        "x-request-id",
        "traceparent",
        "x-user-id",
        "x-token-id",
    }


def test_repeated_headers_pass_in_order_with_their_bytes(live, upstream, issue):
    send(
        live,
        issue(),
        extra=b"X-Many: one\r\nAccept: a\r\nX-Many: two\r\nX-Latin: caf\xe9\r\nCookie: a=1\r\nCookie: b=2\r\n",
    )

    [exchange] = upstream.requests
    assert exchange.header("x-many") == [b"one", b"two"]
    assert exchange.header("x-latin") == [b"caf\xe9"]
    assert exchange.header("cookie") == [b"a=1", b"b=2"]


def test_cookies_of_the_control_plane_stay_here(live, upstream, issue):
    send(live, issue(), extra=b"Cookie: a=1; sessionid=secret; b=2; csrftoken=secret\r\nCookie: sessionid=secret\r\n")

    assert received(upstream)["cookie"] == ["a=1; b=2"]


def test_foreign_authorization_passes_and_ours_does_not(live, upstream, issue):
    issued = issue()
    session = SignInSession.objects.create(user=issued.token.owner, last_used_at=clock.now(), expires_at=clock.now())
    ours = access_tokens.issue(session)
    foreign = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"
    for value in ("Basic dXNlcjpwYXNz", f"Bearer {foreign}", "Bearer opaque", f"Bearer {ours}", "Api-Key abc"):
        send(live, issued, extra=f"Authorization: {value}\r\n".encode())

    passed = [exchange.header("authorization") for exchange in upstream.requests]
    assert passed == [[b"Basic dXNlcjpwYXNz"], [f"Bearer {foreign}".encode()], [b"Bearer opaque"], [], []]


def test_one_users_cookie_is_never_replayed_to_another(live, upstream, settings, issue):
    # By host name: a client library's cookie jar ignores addresses, so an address would prove nothing.
    settings.ZENZEFI_TARGET_URLS = [upstream.url.replace("127.0.0.1", "localhost")]
    live.stop()
    live.start()
    _, headers, _ = send(live, issue(), "cookies")
    assert len(headers["set-cookie"]) == 2
    send(live, issue(), "cookies")

    assert [exchange.header("cookie") for exchange in upstream.requests] == [[], []]


# --- answers


def test_several_set_cookies_arrive_apart_and_fit_our_address(live, upstream, issue):
    _, headers, _ = send(live, issue(), "cookies")

    assert headers["set-cookie"] == [
        "demo_session=first; Path=/api/v1/proxy; HttpOnly",
        "demo_view=second; Path=/api/v1/proxy/system; SameSite=Lax",
    ]


def test_redirects_are_relayed_and_stay_on_our_side(live, upstream, issue):
    issued = issue()
    for code in (301, 302, 303, 307, 308):
        status, headers, _ = send(live, issued, f"redirect?code={code}&to={upstream.url}/system/version?x=1")
        assert (status, headers["location"]) == (code, ["/api/v1/proxy/system/version?x=1"])

    assert len(upstream.requests) == 5


REWRITER = Rewriter(["https://zen.example:8443/base", "http://other.example"])


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        (b"https://zen.example:8443/base/a?b#c", b"/api/v1/proxy/a?b#c"),
        (b"https://ZEN.example:8443/base", b"/api/v1/proxy"),
        (b"//zen.example:8443/base/a", b"/api/v1/proxy/a"),
        (b"/base/a/b", b"/api/v1/proxy/a/b"),
        (b"http://other.example:80/base/x", b"/api/v1/proxy/x"),
        (b"https://zen.example:8443/elsewhere", b"https://zen.example:8443/elsewhere"),
        (b"https://zen.example/base/a", b"https://zen.example/base/a"),
        (b"https://evil.example/base/a", b"https://evil.example/base/a"),
        (b"https://zen.example:8443@evil.example/base", b"https://zen.example:8443@evil.example/base"),
        (b"next", b"next"),
        (b"?page=2", b"?page=2"),
        (b"http://[broken", b"http://[broken"),
    ],
)
def test_locations_are_rewritten_when_they_point_at_the_upstream(location, expected):
    assert REWRITER.location(location) == expected


@pytest.mark.parametrize(
    ("cookie", "expected"),
    [
        (b"a=1", b"a=1"),
        (b"a=1; Path=/base/x; Domain=zen.example", b"a=1; Path=/api/v1/proxy/x"),
        (b"a=1; path=/base/", b"a=1; Path=/api/v1/proxy"),
        (b"a=1; Domain=.example; Secure", b"a=1; Secure"),
        (b"a=1; Domain=elsewhere.test; Secure", b"a=1; Domain=elsewhere.test; Secure"),
        (b"__Host-a=1; Path=/; Secure", b"__Host-a=1; Path=/; Secure"),
        (
            b"a=1; Path=relative; Expires=Wed, 21 Oct 2026 07:28:00 GMT",
            b"a=1; Path=relative; Expires=Wed, 21 Oct 2026 07:28:00 GMT",
        ),
    ],
)
def test_cookies_are_rewritten_to_fit_our_address(cookie, expected):
    assert REWRITER.cookie(cookie) == expected


def relay_raw(settings, live, issue, answer, **options):
    """Return what the client gets when the upstream sends these bytes."""
    with RawUpstream(answer) as server:
        settings.ZENZEFI_TARGET_URLS = [server.url]
        live.stop()
        live.start()
        return send(live, issue(), "x", **options)


def test_an_encoded_answer_goes_out_chunked_with_its_raw_bytes(live, upstream, issue):
    _, headers, body = send(live, issue(), "gzip")

    assert headers["content-encoding"] == ["gzip"]
    assert headers["transfer-encoding"] == ["chunked"]
    assert "content-length" not in headers
    assert body[:2] == b"\x1f\x8b"


def test_hop_by_hop_headers_of_an_answer_end_here(live, settings, issue):
    status, headers, body = relay_raw(
        settings,
        live,
        issue,
        b"HTTP/1.1 200 OK\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\nKeep-Alive: timeout=1\r\nProxy-Authenticate: B\r\n"
        b"Trailer: X\r\nX-Zenzefi-Error: forged\r\nX-Request-ID: forged-forged\r\nRateLimit: forged\r\nAlt-Svc: h3\r\n"
        b"Via: 1.1 inner\r\nServer: zen\r\nX-Kept: 1\r\nX-Kept: 2\r\nContent-Length: 2\r\n\r\nok",
    )

    assert (status, body) == (200, b"ok")
    for name in ["x-hop", "keep-alive", "proxy-authenticate", "trailer", "x-zenzefi-error", "alt-svc", "connection"]:
        assert name not in headers
    assert headers["via"] == ["1.1 inner, 1.1 zenzefi-proxy"]
    assert headers["server"] == ["zen"]
    assert headers["x-kept"] == ["1", "2"]
    assert len(headers["x-request-id"]) == 1
    assert "forged" not in json.dumps(headers)
    assert headers["ratelimit"][0].startswith('"proxy";r=')


@pytest.mark.parametrize("path", ["bytes/1000", "gzip"])
def test_head_keeps_the_upstreams_length(live, issue, path):
    issued = issue()
    with live.client(issued.secret) as client:
        head = client.head(path)
        direct = client.get(path)

    assert head.content == b""
    assert int(head.headers["content-length"]) > 0
    if path.startswith("bytes"):
        assert head.headers["content-length"] == direct.headers["content-length"] == "1000"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 500\r\n\r\n",
    ],
)
def test_answers_without_a_body_have_none(live, settings, issue, answer):
    with RawUpstream(answer) as server:
        settings.ZENZEFI_TARGET_URLS = [server.url]
        live.stop()
        live.start()
        issued = issue()
        with live.raw() as peer:
            peer.sendall(request_bytes("x", issued.secret))
            first = peer.recv(65536)
            # What follows on the same connection is the next answer, not a body.
            peer.sendall(request_bytes("status", issued.secret))
            status, _, body = read_response(peer)

    assert first.endswith(b"\r\n\r\n")
    assert b"content-length" not in first.lower()
    assert b"transfer-encoding" not in first.lower()
    assert (status, json.loads(body)["connected"]) == (200, True)


def test_many_and_long_headers_pass(live, issue):
    with live.client(issue().secret) as client:
        answer = client.get("headers/300?size=100")
    assert sum(name.startswith("x-demo-") for name in answer.headers) == 300


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "REPORT", "PURGE"])
def test_every_method_passes(live, upstream, issue, method):
    with live.client(issue().secret) as client:
        answer = client.request(method, "inspect")
    assert answer.json()["method"] == method


def test_a_status_of_the_upstream_passes_as_it_is(live, issue):
    with live.client(issue().secret) as client:
        for status in (201, 206, 400, 401, 404, 418, 429, 500, 503, 599):
            answer = client.get(f"status/{status}")
            assert answer.status_code == status
            assert "x-zenzefi-error" not in answer.headers


@pytest.mark.parametrize(
    ("method", "said", "passed"),
    [
        ("OPTIONS", "1", ["0"]),
        ("OPTIONS", "010", ["9"]),
        ("OPTIONS", "many", ["many"]),
        ("GET", "0", ["0"]),
        ("GET", "5", ["5"]),
    ],
)
def test_max_forwards_counts_for_options_alone(live, upstream, issue, method, said, passed):
    status, _, _ = send(live, issue(), method=method, extra=f"Max-Forwards: {said}\r\n".encode())
    assert status == 200
    assert received(upstream)["max-forwards"] == passed


@pytest.mark.parametrize("said", ["0", "00", " 0 "])
def test_options_without_a_hop_left_ends_here(live, upstream, issue, said):
    """RFC 9110 §7.6.2; it needs no token, as it tells nothing."""
    for token in (issue().secret, None):
        with live.raw() as peer:
            peer.sendall(request_bytes("x", token, method="OPTIONS", extra=f"Max-Forwards: {said}\r\n".encode()))
            status, headers, body = read_response(peer)
        assert (status, body) == (200, b"")
        assert headers["allow"] == ["GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"]
    assert upstream.requests == []
