"""The access log: one JSON object a line, with what operators need and nothing that opens a door."""

from __future__ import annotations

import contextlib
import json
import logging
from datetime import UTC, datetime

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from proxy.models import UpstreamTarget
from tests.proxy.live import DEVICE, read_response, request_bytes
from tests.proxy.test_websocket import open_socket
from tests.upstream import RawUpstream, unused_port, wait_until
from tokens import secrets
from tokens.services import revoke_token
from zenzefi.lib import clock

FIELDS = {
    *("time", "kind", "method", "outcome", "status", "code", "request_id", "trace_id", "token_id", "user_id", "scope"),
    *("address", "target", "bytes_in", "bytes_out", "auth_ms", "upstream_ms", "total_ms"),
}
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Written(logging.Handler):
    """Keeps lines as the configured handler writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        [configured] = [one for one in logging.getLogger("proxy.access").handlers if one.name == "access"]
        assert configured.formatter is not None
        self.setFormatter(configured.formatter)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def wait_for(self, count: int) -> list[dict]:
        """Return the lines, read, once there are this many; the last is written when the client has its answer."""
        wait_until(lambda: len(self.lines) >= count, what=f"{count} lines")
        assert len(self.lines) == count, self.lines
        assert not any("\n" in line for line in self.lines)
        found = [json.loads(line) for line in self.lines]
        assert all(set(line) == FIELDS for line in found)
        return found


@pytest.fixture
def written():
    handler = Written()
    logger = logging.getLogger("proxy.access")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
def restart(live, settings):
    """Starts the gateway anew with an access log, before other servers if any are given."""

    def again(*urls: str, **options):
        settings.GATEWAY = {**settings.GATEWAY, "access_log": True, **options}
        if urls:
            settings.ZENZEFI_TARGET_URLS = list(urls)
        live.stop()
        live.start()
        return live

    return again


def test_a_relayed_request(restart, upstream, issue, written):
    live, issued = restart(), issue()
    before = clock.now()
    with live.client(issued.secret) as client:
        answer = client.post("sink?digest=0", content=b"x" * 500, headers={"traceparent": TRACEPARENT})

    [line] = written.wait_for(1)
    assert line.pop("time").endswith("Z")
    durations = [line.pop(name) for name in ("auth_ms", "upstream_ms", "total_ms")]
    assert all(isinstance(one, float) and one > 0 for one in durations)
    assert durations[0] + durations[1] < durations[2]
    assert line == {
        "kind": "http",
        "method": "POST",
        "outcome": "2xx",
        "status": answer.status_code,
        "code": None,
        "request_id": answer.headers["x-request-id"],
        "trace_id": TRACE,
        "token_id": str(issued.token.pk),
        "user_id": str(issued.token.owner_id),
        "scope": "full",
        "address": "127.0.0.1",
        "target": "env-1",
        "bytes_in": 500,
        "bytes_out": len(answer.content),
    }
    moment = datetime.fromisoformat(json.loads(written.lines[0])["time"])
    assert moment.tzinfo == UTC
    assert before.timestamp() - 1 < moment.timestamp() < clock.now().timestamp() + 1


def test_the_trace_in_the_log_is_the_one_that_the_server_saw(restart, upstream, issue, written):
    live = restart()
    with live.client(issue().secret) as client:
        client.get("inspect", headers={"X-Request-ID": "chosen-by-the-caller"})
        client.get("inspect")

    chosen, made = written.wait_for(2)
    seen = [exchange.header("traceparent")[0].split(b"-")[1].decode() for exchange in upstream.requests]
    assert [chosen["trace_id"], made["trace_id"]] == seen
    # Where both ids are ours they are one.
    assert made["trace_id"] == made["request_id"]
    assert chosen["request_id"] == "chosen-by-the-caller"


def test_every_status_is_the_real_one(restart, issue, written):
    live = restart()
    with live.client(issue().secret) as client:
        for status in (201, 304, 404, 503):
            client.get(f"status/{status}")
        client.get("status")

    lines = written.wait_for(5)
    assert [(line["outcome"], line["status"]) for line in lines] == [
        *(("2xx", 201), ("3xx", 304), ("4xx", 404), ("5xx", 503), ("status", 200)),
    ]
    assert not any(line["code"] for line in lines)


def test_refusals_name_the_token_as_far_as_it_is_known(restart, issue, written):
    live, good, restricted = restart(), issue(), issue(scope="certificates_only")
    gone = issue(revoked_at="2026-01-01T00:00:00Z")
    with live.client(None) as client:
        client.get("json", headers={"traceparent": TRACEPARENT})
        client.get("json", headers={"X-Access-Token": secrets.generate()})
        client.get("json", headers={"X-Access-Token": gone.secret})
        client.get("json", headers={"X-Access-Token": restricted.secret})
        client.get("json", headers={"X-Access-Token": good.secret, "X-Device-ID": "short"})
        client.request("TRACE", "json")

    lines = written.wait_for(6)
    told = [(line["code"], line["status"], line["token_id"], line["user_id"]) for line in lines]
    assert told == [
        ("token_missing", 401, None, None),
        ("token_invalid", 401, None, None),
        ("token_revoked", 401, None, None),
        ("scope_forbidden", 403, str(restricted.token.pk), str(restricted.token.owner_id)),
        ("device_malformed", 400, str(good.token.pk), str(good.token.owner_id)),
        ("method_not_allowed", 405, None, None),
    ]
    assert [line["outcome"] for line in lines] == [line["code"] for line in lines]
    assert [line["trace_id"] for line in lines] == [TRACE, None, None, None, None, None]
    assert [line["address"] for line in lines] == ["127.0.0.1"] * 5 + [None]
    assert [line["auth_ms"] is not None for line in lines] == [True] * 5 + [False]
    assert all(line["total_ms"] >= 0 and line["upstream_ms"] is line["target"] is None for line in lines)


def test_a_malformed_request_has_a_line_with_the_id_of_its_answer(restart, issue, written):
    live = restart()
    with live.raw() as peer:
        peer.sendall(request_bytes("json", issue().secret, extra=b"Host: twice\r\n"))
        status, headers, _ = read_response(peer)

    [line] = written.wait_for(1)
    assert (status, line["status"], line["code"]) == (400, 400, "bad_request")
    assert headers["x-request-id"] == [line["request_id"]]
    assert line["auth_ms"] is None


def test_a_websocket(restart, upstream, issue, written):
    live, issued = restart(), issue()
    with open_socket(live, issued.secret, headers={"traceparent": TRACEPARENT}) as peer:
        peer.send("x" * 100)
        assert peer.recv(20) == "x" * 100
        assert written.lines == []

    [line] = written.wait_for(1)
    assert (line["kind"], line["method"], line["outcome"], line["status"]) == ("websocket", "GET", "1xx", 101)
    assert (line["bytes_in"], line["bytes_out"], line["trace_id"]) == (100, 100, TRACE)
    assert (line["token_id"], line["user_id"]) == (str(issued.token.pk), str(issued.token.owner_id))
    assert (line["scope"], line["target"], line["code"]) == ("full", "env-1", None)
    assert line["auth_ms"] > 0 and line["upstream_ms"] > 0


def test_refused_and_cut_websockets(restart, upstream, issue, written):
    live, issued = restart(), issue()
    with pytest.raises(InvalidStatus):
        open_socket(live, issued.secret, device="short")
    with pytest.raises(InvalidStatus):
        open_socket(live, issued.secret, path="json")
    with open_socket(live, issued.secret) as peer:
        peer.send("x")
        peer.recv(20)
        revoke_token(token_id=issued.token.pk, actor=None, refund=False)
        wait_until(lambda: len(live.gateway.registry) == 0, what="the end of the exchange")

    refused, by_upstream, cut = written.wait_for(3)
    assert (refused["kind"], refused["code"], refused["status"]) == ("websocket", "device_malformed", 400)
    assert refused["token_id"] == str(issued.token.pk)
    assert (by_upstream["code"], by_upstream["status"], by_upstream["target"]) == ("upstream_refused", 502, "env-1")
    assert (cut["outcome"], cut["code"], cut["status"]) == ("token_revoked", None, 101)


def test_failures_name_the_server(restart, settings, issue, written):
    with RawUpstream(b"nonsense\r\n\r\n") as server:
        UpstreamTarget.objects.create(name="zen-1", url=server.url, probe_path="")
        live = restart()
        with live.client(issue().secret) as client:
            assert client.get("x").headers["x-zenzefi-error"] == "upstream_invalid"
    UpstreamTarget.objects.update(url=f"http://127.0.0.1:{unused_port()}")
    live = restart()
    with live.client(issue().secret) as client:
        assert client.get("x").headers["x-zenzefi-error"] == "upstream_unreachable"

    invalid, unreachable = written.wait_for(2)
    for line, code in ((invalid, "upstream_invalid"), (unreachable, "upstream_unreachable")):
        assert (line["outcome"], line["code"], line["status"]) == (code, code, 502)
        assert (line["target"], line["upstream_ms"]) == ("zen-1", None)


def test_a_client_that_leaves_was_answered_nothing(restart, upstream, issue, written):
    live = restart()
    with live.raw() as peer:
        peer.sendall(request_bytes("hang", issue().secret))
        wait_until(lambda: upstream.in_progress == 1, what="the request")

    [line] = written.wait_for(1)
    assert (line["outcome"], line["status"], line["code"]) == ("client_gone", None, None)


def test_without_the_variable_there_is_no_line(live, issue, written):
    with live.client(issue().secret) as client:
        client.get("json")
        client.get("json", headers={"X-Device-ID": ""})
    wait_until(lambda: len(live.gateway.registry) == 0, what="the end of the exchange")
    assert written.lines == []


def everything(caplog, written) -> str:
    """Return all that was logged, tracebacks included, without the redaction of the usual formatter."""
    plain = logging.Formatter("%(name)s %(message)s")
    # The tests' own clients write down what they send.
    records = [one for one in caplog.records if not one.name.startswith(("httpx", "httpcore", "websockets.client"))]
    return "\n".join([*(plain.format(record) for record in records), *written.lines])


SECRETS = "path-secret query-secret header-secret cookie-secret"


def trouble(live, issued) -> list[str]:
    """Ask for things that go wrong, over HTTP and WebSocket; return the codes of the answers."""
    found = []
    said = {"Cookie": "a=cookie-secret", "X-Said": "header-secret", "Authorization": "Basic header-secret"}
    with (
        live.client(issued.secret) as client,
        client.stream("GET", "path-secret?password=query-secret", headers=said) as answer,
    ):
        found.append(answer.headers.get("x-zenzefi-error"))
        # It may be cut short.
        with contextlib.suppress(httpx.RemoteProtocolError):
            answer.read()
    try:
        with open_socket(live, issued.secret, path="path-secret?password=query-secret", headers=said):
            found.append(None)
    except InvalidStatus as refused:
        found.append(refused.response.headers["x-zenzefi-error"])
        assert refused.response.headers["x-request-id"]
    return found


@pytest.mark.parametrize(
    ("answer", "codes"),
    [
        (b"nonsense\r\n\r\n", ["upstream_invalid", "upstream_invalid"]),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: odd\r\n\r\n", ["upstream_invalid", "upstream_refused"]),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", [None, "upstream_refused"]),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", ["upstream_invalid", "upstream_refused"]),
        (b"", ["upstream_unreachable", "upstream_unreachable"]),
    ],
)
def test_no_failure_writes_down_a_secret(restart, issue, written, caplog, answer, codes):
    issued = issue()
    with RawUpstream(answer) as server, caplog.at_level(logging.DEBUG):
        live = restart(server.url)
        assert trouble(live, issued) == codes
        written.wait_for(2)
        circuits = [target.circuit.error for target in live.gateway.upstream.targets]

    text = everything(caplog, written) + "\n".join(circuits)
    for secret in (issued.secret, DEVICE, *SECRETS.split()):
        assert secret not in text


def test_no_exception_writes_down_a_secret(restart, issue, written, caplog):
    issued = issue()
    live = restart()
    with caplog.at_level(logging.DEBUG):
        # As if we had made a mistake: after the server's answer, and before the decision.
        live.gateway.limit_headers = None
        assert trouble(live, issued) == ["internal_error", "upstream_refused"]
        with pytest.raises(InvalidStatus) as refused:
            open_socket(live, issued.secret, path="ws?password=query-secret")
        assert refused.value.response.headers["x-zenzefi-error"] == "internal_error"
        live.gateway._table = object()
        assert trouble(live, issued) == ["internal_error", "internal_error"]

    lines = written.wait_for(5)
    assert [line["code"] for line in lines] == [
        *("internal_error", "upstream_refused", "internal_error", "internal_error", "internal_error")
    ]
    text = everything(caplog, written)
    assert text.count("Traceback") == 4
    for secret in (issued.secret, DEVICE, *SECRETS.split()):
        assert secret not in text


def test_a_token_where_it_does_not_belong_is_removed(restart, issue, written):
    issued = issue()
    live = restart()
    with live.client(issued.secret) as client:
        client.get("json", headers={"X-Request-ID": issued.secret})

    [line] = written.wait_for(1)
    assert line["request_id"] == "[redacted]"
    assert issued.secret not in written.lines[0]
