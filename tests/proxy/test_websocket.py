"""WebSockets: the same decision before the handshake, messages and close codes both ways."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from proxy import services
from tests.proxy.live import DEVICE
from tests.proxy.test_refusals import assert_untouched
from tests.proxy.test_revocation import CUT_WITHIN
from tests.upstream import RawUpstream, unused_port, wait_until
from tokens import secrets
from tokens.services import revoke_token


def open_socket(live, token, *, path="ws", device=DEVICE, **options):
    headers = {}
    if token is not None:
        headers["X-Access-Token"] = token
    if device is not None:
        headers["X-Device-ID"] = device
    headers |= options.pop("headers", {})
    url = f"ws://127.0.0.1:{live.port}/api/v1/proxy/{path}"
    return connect(url, additional_headers=headers, proxy=None, open_timeout=20, close_timeout=20, **options)


def test_messages_pass_both_ways(live, upstream, issue):
    issued = issue()
    with open_socket(live, issued.secret) as peer:
        peer.send("text: Привет")
        assert peer.recv(20) == "text: Привет"
        peer.send(bytes(range(256)) * 4000)
        assert peer.recv(20) == bytes(range(256)) * 4000
        peer.send("")
        assert peer.recv(20) == ""

    assert issued.reload().activated_at is not None


def test_the_handshake_carries_our_identity_and_no_credentials(live, upstream, issue):
    issued = issue()
    forged = {"X-User-Id": "forged", "Cookie": "a=1; sessionid=s", "X-Forwarded-For": "1.2.3.4"}
    with open_socket(live, issued.secret, path="ws?hello=1&a=%2e", headers=forged) as peer:
        hello = json.loads(peer.recv(20))

    received: dict[str, list[str]] = {}
    for name, value in hello["headers"]:
        received.setdefault(name.lower(), []).append(value)
    assert "x-access-token" not in received
    assert "x-device-id" not in received
    assert received["x-user-id"] == [str(issued.token.owner_id)]
    assert received["x-token-id"] == [str(issued.token.pk)]
    assert received["x-forwarded-for"] == ["127.0.0.1"]
    assert received["cookie"] == ["a=1"]
    assert received["via"] == ["1.1 zenzefi-proxy"]
    assert received["host"] == [upstream.url.removeprefix("http://")]
    assert received["sec-websocket-version"] == ["13"]
    assert upstream.targets == [b"/ws?hello=1&a=%2e"]


def test_subprotocols_are_agreed_end_to_end(live, issue):
    with open_socket(live, issue().secret, subprotocols=["other", "json", "chat"]) as peer:
        assert peer.subprotocol in ("json", "chat")
    with open_socket(live, issue().secret) as peer:
        assert peer.subprotocol is None


@pytest.mark.parametrize("code", [1000, 1008, 4001])
def test_a_close_of_the_upstream_reaches_the_client(live, issue, code):
    with open_socket(live, issue().secret, path=f"ws?close={code}") as peer, pytest.raises(ConnectionClosed) as closed:
        peer.recv(20)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, "as asked")


def test_a_close_of_the_client_reaches_the_upstream(live, upstream, issue):
    with open_socket(live, issue().secret) as peer:
        peer.close(4000, "bye")
    upstream.wait_for(1)
    wait_until(lambda: len(live.gateway.registry) == 0, what="the end of the exchange")
    assert upstream.requests[0].outcome == "answered"


def test_a_client_that_vanishes_ends_it(live, upstream, issue):
    with open_socket(live, issue().secret) as peer:
        peer.socket.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: len(live.gateway.registry) == 0, what="the end of the exchange")
    wait_until(lambda: upstream.in_progress == 0, what="the end of the upstream's work")


@pytest.mark.parametrize(
    ("token", "device", "path", "status", "code"),
    [
        (None, DEVICE, "ws", 401, "token_missing"),
        ("unknown", DEVICE, "ws", 401, "token_invalid"),
        ("good", None, "ws", 403, "device_missing"),
        ("good", "short", "ws", 400, "device_malformed"),
        ("restricted", DEVICE, "ws", 403, "scope_forbidden"),
        ("restricted", DEVICE, "certificates/%2e%2e/ws", 400, "path_ambiguous"),
    ],
)
def test_a_refusal_is_an_ordinary_answer(live, upstream, issue, token, device, path, status, code):
    good, restricted = issue(), issue(scope="certificates_only")
    secret = {"good": good.secret, "restricted": restricted.secret, "unknown": secrets.generate(), None: None}[token]
    with pytest.raises(InvalidStatus) as refused:
        open_socket(live, secret, device=device, path=path)

    response = refused.value.response
    assert response.status_code == status
    assert response.headers["x-zenzefi-error"] == code
    assert json.loads(response.body)["code"] == code
    assert json.loads(response.body)["request_id"] == response.headers["x-request-id"]
    assert_untouched(upstream, good, restricted)


@pytest.mark.parametrize("sent", ["chosen-by-the-client_1", None, "bad id!", "short"])
def test_every_answer_to_a_handshake_has_one_request_id(live, upstream, issue, sent):
    issued = issue()
    headers = {} if sent is None else {"X-Request-ID": sent}
    found = []
    with open_socket(live, issued.secret, headers=headers) as peer:
        hello = upstream.requests[0].header("x-request-id")
        assert peer.response is not None
        found.append(peer.response.headers.get_all("x-request-id"))
        assert hello == [found[0][0].encode()]
    for options in ({"device": "short"}, {"path": "json"}, {"path": "%2e%2e", "headers": {**headers, "Host": "a b"}}):
        with pytest.raises(InvalidStatus) as refused:
            open_socket(live, issued.secret, **{"headers": headers, **options})
        found.append(refused.value.response.headers.get_all("x-request-id"))

    assert all(len(ids) == 1 and len(ids[0]) >= 8 for ids in found)
    if sent == "chosen-by-the-client_1":
        assert found[:3] == [[sent]] * 3
    else:
        assert [sent] not in found
        assert len({ids[0] for ids in found}) == len(found)


def test_a_refusal_of_the_upstream_is_502(live, issue):
    with pytest.raises(InvalidStatus) as refused:
        open_socket(live, issue().secret, path="json")
    assert refused.value.response.headers["x-zenzefi-error"] == "upstream_refused"


def test_an_unreachable_upstream_is_502_and_starts_nothing(live, settings, issue):
    settings.ZENZEFI_TARGET_URLS = [f"http://127.0.0.1:{unused_port()}"]
    live.stop()
    live.start()
    issued = issue()
    with pytest.raises(InvalidStatus) as refused:
        open_socket(live, issued.secret)
    assert refused.value.response.status_code == 502
    assert issued.reload().activated_at is None


def test_a_connection_that_is_not_made_in_time_is_504(live, settings, issue):
    with contextlib.ExitStack() as stack:
        # A listener whose queue is full lets nobody in and refuses nobody.
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        settings.ZENZEFI_TARGET_URLS = [f"http://127.0.0.1:{listener.getsockname()[1]}"]
        settings.GATEWAY = {**settings.GATEWAY, "connect_timeout": 0.4}
        live.stop()
        live.start()
        issued = issue()
        started = time.monotonic()
        with pytest.raises(InvalidStatus) as refused:
            open_socket(live, issued.secret)
        assert time.monotonic() - started < 10
    response = refused.value.response
    assert (response.status_code, response.headers["x-zenzefi-error"]) == (504, "connect_timeout")
    assert issued.reload().activated_at is None


@pytest.mark.parametrize(
    "answer",
    [b"garbage\r\n\r\n", b"HTTP/1.1 101 Switching Protocols\r\nX-Fill: %b\r\n\r\n" % (b"v" * 300_000)],
    ids=["garbage", "a large head"],
)
def test_an_answer_to_the_handshake_that_is_none_is_502(live, settings, issue, answer):
    with RawUpstream(answer) as server:
        settings.ZENZEFI_TARGET_URLS = [server.url]
        live.stop()
        live.start()
        with pytest.raises(InvalidStatus) as refused:
            open_socket(live, issue().secret)
    response = refused.value.response
    assert (response.status_code, response.headers["x-zenzefi-error"]) == (502, "upstream_invalid")


def test_it_is_cut_when_the_token_is_revoked(live, upstream, issue):
    issued = issue()
    with open_socket(live, issued.secret) as peer:
        peer.send("hello")
        peer.recv(20)
        revoke_token(token_id=issued.token.pk, actor=None, refund=False)
        started = time.monotonic()
        with pytest.raises(ConnectionClosed) as closed:
            peer.recv(20)
        assert time.monotonic() - started < CUT_WITHIN
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "token_revoked")
    wait_until(lambda: upstream.in_progress == 0, what="the end of the upstream's work")


def test_another_device_is_refused(live, issue):
    issued = issue()
    with open_socket(live, issued.secret), pytest.raises(InvalidStatus) as refused:
        open_socket(live, issued.secret, device="another-device")
    assert refused.value.response.status_code == 409


def test_it_is_metered_while_it_is_open(live, issue):
    issued = issue()
    with open_socket(live, issued.secret) as peer:
        peer.send("x" * 1000)
        assert len(peer.recv(20)) == 1000

        def counted():
            services.flush_meter_stream()
            session = issued.token.sessions.first()
            return session is not None and (session.requests, session.bytes_in, session.bytes_out) == (1, 1000, 1000)

        wait_until(counted, what="the counts")


def test_idle_sockets_live_on(live, settings, issue):
    settings.GATEWAY = {**settings.GATEWAY, "idle_timeout": 0.3, "total_timeout": 0.5}
    live.stop()
    live.start()
    with open_socket(live, issue().secret) as peer:
        time.sleep(1.5)
        peer.send("still here")
        assert peer.recv(20) == "still here"


def test_nothing_else_speaks_websocket(live):
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://127.0.0.1:{live.port}/api/v1/users/me", proxy=None)
    assert refused.value.response.status_code == 404
