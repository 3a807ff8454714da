"""Headers that name another method than the request's: refused where rules for methods would be got round by them."""

from __future__ import annotations

import pytest
from websockets.exceptions import InvalidStatus

from proxy.answers import ANSWERS
from proxy.models import ScopeRule
from tests.proxy.live import read_response, request_bytes
from tests.proxy.test_refusals import assert_refused, assert_untouched
from tests.proxy.test_websocket import open_socket
from tests.upstream import wait_until
from tokens.models import Scope

NAMES = [
    "X-HTTP-Method-Override",
    "x-http-method-override",
    "X-HTTP-METHOD-OVERRIDE",
    "X_HTTP_METHOD_OVERRIDE",
    "X-Http_Method-Override",
    "X-HTTP-Method",
    "x_http_method",
    "X-Method-Override",
    "X_Method_Override",
]


@pytest.fixture
def reader(live, upstream, issue):
    """A token whose scope opens one path to GET and POST, when the gateway knows the rules."""
    scope = Scope.objects.create(slug="reader")
    for method in ("GET", "POST"):
        ScopeRule.objects.create(scope=scope, pattern="inspect", method=method)
    ScopeRule.objects.create(scope=scope, pattern="ws", method="GET")
    with live.client(issue(scope="reader").secret) as client:
        wait_until(lambda: client.get("inspect").status_code == 200, what="the rules")
    upstream.clear()
    return issue(scope="reader")


@pytest.mark.parametrize("name", NAMES)
def test_under_a_restricted_scope_it_goes_no_further(live, upstream, reader, name):
    with live.raw() as peer:
        for method, value in (("GET", "DELETE"), ("POST", "PUT"), ("POST", "delete"), ("GET", "HEAD")):
            extra = f"{name}: {value}\r\nContent-Length: 0\r\n".encode()
            peer.sendall(request_bytes("inspect", reader.secret, method=method, extra=extra))
            status, headers, _ = read_response(peer)
            assert (status, headers["x-zenzefi-error"]) == (400, ["method_overridden"]), (method, value)
    assert upstream.requests == []
    assert reader.reload().activated_at is None


@pytest.mark.parametrize(
    "value",
    ["DELETE, GET", "GET, DELETE", "GET DELETE", "GET;x", "G\xcbT", '"GET"', "\tDELETE\t", "%47ET"],
)
def test_what_is_not_plainly_the_same_is_another(live, upstream, reader, value):
    with live.raw() as peer:
        extra = f"X-HTTP-Method-Override: {value}\r\n".encode("latin-1")
        peer.sendall(request_bytes("inspect", reader.secret, extra=extra))
        status, headers, _ = read_response(peer)
    assert (status, headers["x-zenzefi-error"]) == (400, ["method_overridden"])
    assert upstream.requests == []


def test_any_of_several_counts(live, upstream, reader):
    with live.raw() as peer:
        extra = b"X-HTTP-Method: GET\r\nX-Method-Override: GET\r\nX-HTTP-Method: DELETE\r\n"
        peer.sendall(request_bytes("inspect", reader.secret, extra=extra))
        assert read_response(peer)[0] == 400
    assert upstream.requests == []


@pytest.mark.parametrize("value", ["GET", "get", " Get ", ""])
def test_the_same_method_passes(live, upstream, reader, value):
    with live.raw() as peer:
        extra = f"X_HTTP_Method_Override: {value}\r\n".encode()
        peer.sendall(request_bytes("inspect", reader.secret, extra=extra))
        assert read_response(peer)[0] == 200
    [seen] = upstream.requests
    assert [v for name, v in seen.headers if name.lower() == b"x_http_method_override"] == [value.strip().encode()]


@pytest.mark.parametrize("name", NAMES)
def test_under_full_it_passes_as_it_is(live, upstream, issue, name):
    with live.raw() as peer:
        extra = f"{name}: DELETE\r\nContent-Length: 0\r\n".encode()
        peer.sendall(request_bytes("inspect", issue().secret, method="POST", extra=extra))
        assert read_response(peer)[0] == 200
    [seen] = upstream.requests
    assert [v for key, v in seen.headers if key.lower() == name.lower().encode()] == [b"DELETE"]


def test_a_handshake_is_refused_alike(live, upstream, reader, issue):
    with pytest.raises(InvalidStatus) as refused:
        open_socket(live, reader.secret, headers={"X-HTTP-Method-Override": "DELETE"})
    response = refused.value.response
    assert (response.status_code, response.headers["x-zenzefi-error"]) == (400, "method_overridden")
    assert upstream.requests == []

    with open_socket(live, issue().secret, headers={"X-HTTP-Method-Override": "DELETE"}) as peer:
        peer.send("through")
        assert peer.recv(20) == "through"


def test_other_refusals_come_in_their_order(live, upstream, reader, issue):
    """Credentials and device before it; an ambiguous path keeps its own code."""
    extra = {"X-HTTP-Method-Override": "DELETE"}
    with live.client("znz_" + "a" * 60) as client:
        assert_refused(client.get("inspect", headers=extra), 401, "token_invalid")
    with live.client(reader.secret, device=None) as client:
        assert_refused(client.get("inspect", headers=extra), 403, "device_missing")
    with live.client(reader.secret) as client:
        assert_refused(client.get("a%2fb", headers=extra), 400, "path_ambiguous")
        assert_refused(client.get("elsewhere", headers=extra), 400, "method_overridden")
        assert_refused(client.get("elsewhere"), 403, "scope_forbidden")
    assert_untouched(upstream, issue())


def test_it_says_so_in_both_languages(live, reader):
    with live.client(reader.secret) as client:
        texts = {
            client.get("inspect", headers={"X-HTTP-Method": "PUT", "Accept-Language": language}).json()["detail"]
            for language in ("en", "ru")
        }
    assert texts == {
        ANSWERS["method_overridden"].text,
        "Заголовок указывает другой метод, а этот токен доступа ограничен путями.",
    }
