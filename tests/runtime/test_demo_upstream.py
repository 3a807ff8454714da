"""The demo upstream and the recording servers: what the gateway's tests lean on has to be right itself."""

import asyncio
import gzip
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import httpx
import psutil
import pytest

from tests.upstream import (
    RawUpstream,
    ReadBytes,
    ReadHead,
    ReadUntilClosed,
    RecordingUpstream,
    Reset,
    Send,
    Wait,
    unused_port,
    wait_until,
)
from zenzefi.runtime.demo_upstream import GZIP_DECODED, SMALL_JSON, pattern, pattern_sha256

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def upstream() -> Iterator[RecordingUpstream]:
    with RecordingUpstream() as server:
        yield server


@pytest.fixture
def client(upstream: RecordingUpstream) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=upstream.url, timeout=30, trust_env=False) as session:
        yield session


def exchange_raw(upstream: RecordingUpstream, request: bytes) -> bytes:
    """Sends these bytes on a fresh connection and returns all that comes until the server closes."""
    with socket.create_connection((upstream.host, upstream.port), timeout=30) as peer:
        peer.sendall(request)
        answer = bytearray()
        while data := peer.recv(65_536):
            answer += data
        return bytes(answer)


def sent_bytes(length: int, start: int = 0) -> bytes:
    return b"".join(bytes(piece) for piece in pattern(start, start + length))


# Targets and headers


@pytest.mark.parametrize(
    "target",
    [
        b"/a/../b",
        b"/system/./version",
        b"/%2e%2e/system/version",
        b"/certificates%2Ffilter",
        b"//system/version",
        b"/system/version/",
        b"/nothing?a=1&a=2&b=",
        b"/certificates/filterX",
    ],
)
def test_target_is_matched_and_reported_byte_for_byte(upstream: RecordingUpstream, target: bytes) -> None:
    answer = exchange_raw(upstream, b"GET " + target + b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 ")
    assert json.loads(body)["target"] == target.decode()
    assert upstream.targets == [target]


def test_absolute_form_reaches_the_same_route(upstream: RecordingUpstream) -> None:
    answer = exchange_raw(upstream, b"GET http://elsewhere:80/json HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert answer.partition(b"\r\n\r\n")[2] == SMALL_JSON
    assert upstream.targets == [b"http://elsewhere:80/json"]


def test_inspect_reports_headers_in_order_with_their_spelling(upstream: RecordingUpstream) -> None:
    answer = exchange_raw(
        upstream,
        b"PATCH /inspect?x=%2F&x= HTTP/1.1\r\nhOsT: h\r\nX-B: 2\r\nX-A: 1\r\nx-b: 3\r\nX-Latin: \xe9\r\n"
        b"Content-Length: 3\r\nConnection: close\r\n\r\nabc",
    )
    seen = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert seen["method"] == "PATCH"
    assert seen["target"] == "/inspect?x=%2F&x="
    assert seen["headers"] == [
        ["hOsT", "h"],
        ["X-B", "2"],
        ["X-A", "1"],
        ["x-b", "3"],
        ["X-Latin", "\xe9"],
        ["Content-Length", "3"],
        ["Connection", "close"],
    ]
    assert (seen["body_length"], seen["body_sha256"]) == (3, hashlib.sha256(b"abc").hexdigest())
    [recorded] = upstream.wait_for(1)
    assert recorded.header("X-B") == [b"2", b"3"]
    assert (recorded.path, recorded.query) == (b"/inspect", b"x=%2F&x=")
    assert recorded.body_sha256 == seen["body_sha256"]


def test_wrong_method_names_the_right_ones(client: httpx.Client) -> None:
    answer = client.delete("/json")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "GET, HEAD"


# Bodies


def test_small_json_has_250_bytes(client: httpx.Client) -> None:
    answer = client.get("/json")
    assert answer.content == SMALL_JSON
    assert answer.headers["Content-Length"] == "250"
    assert answer.json()["name"] == "demo"


@pytest.mark.parametrize("length", [0, 1, 65_521, 65_536, 262_144, 1_000_003])
def test_generated_bytes_are_the_same_everywhere(client: httpx.Client, length: int) -> None:
    answer = client.get(f"/bytes/{length}")
    assert answer.headers["Content-Length"] == str(length)
    assert hashlib.sha256(answer.content).hexdigest() == pattern_sha256(length)


def test_pattern_shows_a_missing_chunk() -> None:
    whole = sent_bytes(400_000)
    assert whole[65_536:131_072] != whole[:65_536]
    assert sent_bytes(1000, start=123_456) == whole[123_456:124_456]


def test_generated_bytes_chunked_on_request(client: httpx.Client) -> None:
    answer = client.get("/bytes/100000?chunked=1")
    assert "Content-Length" not in answer.headers
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert answer.content == sent_bytes(100_000)


@pytest.mark.parametrize(
    ("wanted", "status", "content_range", "start", "stop"),
    [
        ("bytes=0-0", 206, "bytes 0-0/1000", 0, 1),
        ("bytes=990-", 206, "bytes 990-999/1000", 990, 1000),
        ("bytes=-10", 206, "bytes 990-999/1000", 990, 1000),
        ("bytes=-5000", 206, "bytes 0-999/1000", 0, 1000),
        ("bytes=500-5000", 206, "bytes 500-999/1000", 500, 1000),
        ("bytes=1000-", 416, "bytes */1000", 0, 0),
        ("bytes=-0", 416, "bytes */1000", 0, 0),
        ("bytes=5-4", 200, None, 0, 1000),
        ("bytes=0-1,5-6", 200, None, 0, 1000),
        ("lines=0-1", 200, None, 0, 1000),
        ("bytes=-", 200, None, 0, 1000),
    ],
)
def test_single_ranges(
    client: httpx.Client, wanted: str, status: int, content_range: str | None, start: int, stop: int
) -> None:
    answer = client.get("/bytes/1000", headers={"Range": wanted})
    assert answer.status_code == status
    assert answer.headers.get("Content-Range") == content_range
    assert answer.content == sent_bytes(stop - start, start)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If-None-Match": '"demo-1000"'}, 304),
        ({"If-None-Match": 'W/"demo-1000", "other"'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-Match": '"other"'}, 412),
        ({"If-Match": 'W/"demo-1000"'}, 412),
        ({"If-Match": '"demo-1000"'}, 200),
        ({"If-Modified-Since": "Thu, 01 Jan 2026 00:00:00 GMT"}, 304),
        ({"If-Modified-Since": "Wed, 31 Dec 2025 23:59:59 GMT"}, 200),
        ({"If-Modified-Since": "yesterday"}, 200),
        ({"If-None-Match": '"other"', "If-Modified-Since": "Thu, 01 Jan 2026 00:00:00 GMT"}, 200),
        ({"If-Unmodified-Since": "Wed, 31 Dec 2025 23:59:59 GMT"}, 412),
        ({"Range": "bytes=0-1", "If-Range": '"demo-1000"'}, 206),
        ({"Range": "bytes=0-1", "If-Range": '"other"'}, 200),
    ],
)
def test_conditional_requests(client: httpx.Client, headers: dict[str, str], status: int) -> None:
    answer = client.get("/bytes/1000", headers=headers)
    assert answer.status_code == status
    assert answer.headers["ETag"] == '"demo-1000"'
    if status in (304, 412):
        assert answer.content == b""


def test_gzip_is_labelled_and_sized_as_sent(upstream: RecordingUpstream) -> None:
    answer = exchange_raw(upstream, b"GET /gzip HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Encoding: gzip" in head
    assert f"Content-Length: {len(body)}".encode() in head
    assert gzip.decompress(body) == GZIP_DECODED
    assert len(GZIP_DECODED) == 5000


def test_echo_sends_each_chunk_back_before_the_next_came(upstream: RecordingUpstream) -> None:
    with socket.create_connection((upstream.host, upstream.port), timeout=30) as peer:
        peer.sendall(b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Type: text/x\r\nTransfer-Encoding: chunked\r\n\r\n")
        received = bytearray()
        for word in (b"first", b"other"):
            peer.sendall(b"5\r\n" + word + b"\r\n")
            while word not in received:
                data = peer.recv(4096)
                assert data, "closed before the chunk came back"
                received += data
        peer.sendall(b"0\r\n\r\n")
        while not received.endswith(b"0\r\n\r\n"):
            received += peer.recv(4096)
    assert b"Content-Type: text/x" in received
    assert upstream.wait_for(1)[0].body_length == 10


def test_echo_keeps_length_type_and_encoded_bytes(client: httpx.Client, upstream: RecordingUpstream) -> None:
    body = gzip.compress(b"left alone " * 100)
    answer = client.build_request(
        "PUT", "/echo", content=body, headers={"Content-Encoding": "gzip", "Content-Type": "text/x"}
    )
    with client.stream("PUT", answer.url, content=body, headers=answer.headers) as response:
        assert b"".join(response.iter_raw()) == body
        assert response.headers["Content-Length"] == str(len(body))
        assert response.headers["Content-Type"] == "text/x"
    assert upstream.wait_for(1)[0].body_sha256 == hashlib.sha256(body).hexdigest()


def test_sink_answers_length_and_digest(client: httpx.Client) -> None:
    assert client.post("/sink", content=sent_bytes(3_000_000)).json() == {
        "length": 3_000_000,
        "sha256": pattern_sha256(3_000_000),
    }


def test_body_of_any_route_is_recorded(client: httpx.Client, upstream: RecordingUpstream) -> None:
    client.post("/status/201", content=b"x" * 100_000)
    client.post("/nowhere", content=b"y" * 7)
    assert [exchange.body_length for exchange in upstream.wait_for(2)] == [100_000, 7]
    upstream.clear()
    assert upstream.requests == []


HEAD_PATHS = [
    "/",
    "/json",
    "/bytes/1234567",
    "/gzip",
    "/events?n=0&interval=60",
    "/trickle?n=3&interval=60",
    "/echo",
    "/cookies",
    "/certificates/export/1",
    "/certificates/details/nobody",
    "/nowhere",
]


@pytest.mark.parametrize("path", HEAD_PATHS)
def test_head_sends_the_header_section_of_get_and_nothing_more(upstream: RecordingUpstream, path: str) -> None:
    answer = exchange_raw(upstream, f"HEAD {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    head, separator, body = answer.partition(b"\r\n\r\n")
    assert separator and body == b""
    if path == "/bytes/1234567":
        assert b"Content-Length: 1234567" in head


# Small answers with something special


def test_two_cookies_stay_two_headers(client: httpx.Client) -> None:
    answer = client.get("/cookies", headers={"Cookie": "a=1; b=2"})
    values = answer.headers.get_list("Set-Cookie")
    assert [value.partition("=")[0] for value in values] == ["demo_session", "demo_view"]
    assert answer.json() == {"received": ["a=1; b=2"]}


@pytest.mark.parametrize("code", [200, 204, 304, 404, 418, 503, 599])
def test_status(client: httpx.Client, code: int) -> None:
    answer = client.get(f"/status/{code}")
    assert answer.status_code == code
    assert bool(answer.content) is (code not in (204, 304))


@pytest.mark.parametrize("code", [0, 100, 199, 600, 99999])
def test_impossible_status_is_refused(client: httpx.Client, code: int) -> None:
    assert client.get(f"/status/{code}").status_code == 400


def test_redirect_location_is_as_asked(client: httpx.Client) -> None:
    answer = client.get("/redirect", params={"to": "http://h:1/x?y=1&z=%2F", "code": "307"})
    assert (answer.status_code, answer.headers["Location"]) == (307, "http://h:1/x?y=1&z=%2F")
    assert client.get("/redirect?to=%0d%0aX-Evil:1").status_code == 400


def test_number_and_size_of_headers(client: httpx.Client) -> None:
    answer = client.get("/headers/50?size=100")
    values = [value for name, value in answer.headers.items() if name.startswith("x-demo-")]
    assert len(values) == 50 and {len(value) for value in values} == {100}


@pytest.mark.parametrize("path", ["/events?n=x", "/slow?seconds=-1", "/slow?seconds=nan", "/trickle?n=1e99"])
def test_nonsense_numbers_are_refused(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 400


# Slow, endless, broken


def test_events_arrive_one_by_one(client: httpx.Client) -> None:
    with client.stream("GET", "/events?n=0&interval=0.01") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        lines = response.iter_lines()
        ids = []
        for line in lines:
            if line.startswith("id: "):
                ids.append(int(line[4:]))
            if len(ids) == 5:
                break
    assert ids == [0, 1, 2, 3, 4]


def test_trickle_and_slow_complete(client: httpx.Client) -> None:
    assert client.get("/trickle?n=12&interval=0.001").content == b"012345678901"
    assert client.get("/slow?seconds=0.01").json() == {"slept": 0.01}


@pytest.mark.parametrize("path", ["/hang", "/events?n=0&interval=0.01", "/trickle?n=9&interval=60"])
def test_handler_ends_when_its_client_leaves(upstream: RecordingUpstream, path: str) -> None:
    with socket.create_connection((upstream.host, upstream.port), timeout=30) as peer:
        peer.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        wait_until(lambda: upstream.in_progress == 1, what="the request")
    wait_until(lambda: upstream.in_progress == 0, what="the end of the handler")
    assert upstream.requests[0].outcome == "abandoned"
    wait_until(lambda: upstream.open_connections == 0, what="the end of the connection")


def test_upload_that_breaks_off_is_abandoned(upstream: RecordingUpstream) -> None:
    with socket.create_connection((upstream.host, upstream.port), timeout=30) as peer:
        peer.sendall(b"POST /sink HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nabc")
        wait_until(lambda: upstream.requests and upstream.requests[0].body_length == 3, what="the first bytes")
    assert upstream.wait_for(1)[0].outcome == "abandoned"


@pytest.mark.parametrize(("path", "before"), [("/reset", 0), ("/reset?after=10&length=1000", 10)])
def test_reset_cuts_the_connection(upstream: RecordingUpstream, path: str, before: int) -> None:
    received = bytearray()
    with socket.create_connection((upstream.host, upstream.port), timeout=30) as peer:
        peer.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        with pytest.raises(ConnectionResetError):
            while data := peer.recv(4096):
                received += data
    assert len(received.partition(b"\r\n\r\n")[2]) == before


def test_early_refusal_does_not_wait_for_the_body(upstream: RecordingUpstream) -> None:
    with socket.create_connection((upstream.host, upstream.port), timeout=30) as peer:
        peer.sendall(b"POST /early HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n")
        assert peer.recv(4096).startswith(b"HTTP/1.1 413 ")


# WebSocket


def test_websocket_echo_subprotocol_and_close_code(upstream: RecordingUpstream) -> None:
    async def talk() -> None:
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f"{upstream.url}/ws?hello=1", protocols=("none", "json")) as peer:
                hello = await peer.receive_json(timeout=30)
                assert peer.protocol == hello["protocol"] == "json"
                assert ["Upgrade", "websocket"] in hello["headers"]
                await peer.send_str("text é")
                assert await peer.receive_str(timeout=30) == "text é"
                await peer.send_bytes(sent_bytes(1_000_000))
                assert await peer.receive_bytes(timeout=30) == sent_bytes(1_000_000)
            async with session.ws_connect(f"{upstream.url}/ws?close=4001") as peer:
                message = await peer.receive(timeout=30)
                assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 4001)

    asyncio.run(talk())
    assert [exchange.method for exchange in upstream.wait_for(2)] == ["GET", "GET"]


def test_plain_get_on_the_websocket_route_is_told_to_upgrade(client: httpx.Client) -> None:
    assert client.get("/ws").status_code == 426


# Certificates


def test_certificate_filter_and_details(client: httpx.Client) -> None:
    everything = client.get("/certificates/filter").json()
    assert everything["total"] == 60
    page = client.get("/certificates/filter?query=unit-00&limit=2&offset=1").json()
    assert (page["total"], [item["id"] for item in page["items"]]) == (9, ["2", "3"])
    posted = client.post("/certificates/filter", json={"query": "UNIT-00"}).json()
    assert posted["total"] == 9
    first = everything["items"][0]
    assert client.get(f"/certificates/details/{first['id']}").json() == first
    assert client.get("/certificates/details/61").status_code == 404


def test_two_servers_hold_the_same_certificates(client: httpx.Client) -> None:
    with RecordingUpstream() as other:
        theirs = httpx.get(f"{other.url}/certificates/filter", timeout=30, trust_env=False).json()
    assert client.get("/certificates/filter").json() == theirs


def test_exported_certificate_can_be_imported(client: httpx.Client) -> None:
    exported = client.get("/certificates/export/7")
    assert exported.headers["Content-Disposition"] == 'attachment; filename="certificate-7.pem"'
    assert exported.content.startswith(b"-----BEGIN CERTIFICATE-----\n")
    assert client.get("/certificates/export/all").content.count(b"BEGIN") == 60
    assert client.get("/certificates/export/7,999").status_code == 404

    added = client.post("/certificates/import/shop%20floor", content=exported.content * 2)
    assert added.status_code == 201
    ids = [item["id"] for item in added.json()["imported"]]
    assert ids == ["61", "62"]
    assert client.get("/certificates/details/62").json()["subject"].startswith("CN=shop-floor-062")
    assert client.post("/certificates/import", content=b"nothing of the kind").status_code == 400
    assert client.get("/certificates/filter").json()["total"] == 62


def test_removed_certificate_is_gone_until_restored(client: httpx.Client) -> None:
    assert client.post("/certificates/remove", json={"ids": ["3", "4", "x"]}).json() == {
        "removed": ["3", "4"],
        "unknown": ["x"],
    }
    assert client.get("/certificates/details/3").status_code == 404
    assert client.post("/certificates/remove", json={}).status_code == 400
    assert client.post("/certificates/remove", content=b"{").status_code == 400
    assert client.post("/certificates/restore", json={"ids": ["3"]}).json() == {"restored": ["3"]}
    assert client.post("/certificates/restore").json() == {"restored": ["4"]}
    assert client.get("/certificates/filter").json()["total"] == 60


def test_certificates_active_for_testing(client: httpx.Client) -> None:
    base = "/certificates/activeForTesting"
    assert client.get(base).json()["total"] == 0
    assert client.post(f"{base}/activate/5").json()["active_for_testing"] is True
    assert [item["id"] for item in client.get(base).json()["items"]] == ["5"]
    assert client.get(f"{base}/options/5").json()["replaceable"] is True
    assert client.get(f"{base}/usecases/5").json()["use_cases"]
    assert client.get(f"{base}/enhanced").json()["total"] == 10
    assert client.post(f"{base}/deactivate/5").json()["active_for_testing"] is False
    assert client.get(base).json()["total"] == 0
    assert client.post(f"{base}/activate/999").status_code == 404


def test_update_runs_to_its_end_or_is_canceled(client: httpx.Client) -> None:
    assert client.post("/certificates/update/cancel").status_code == 409
    assert client.post("/certificates/update/full").status_code == 202
    assert client.post("/certificates/update/full").status_code == 409
    states = [client.get("/certificates/update/metrics").json() for _ in range(10)]
    assert states[0] == {"state": "running", "checked": 6, "total": 60}
    assert states[-1] == {"state": "done", "checked": 60, "total": 60}
    assert client.post("/certificates/update").status_code == 202
    assert client.post("/certificates/update/cancel").json() == {"state": "canceled"}


def test_integrity_log_exists_after_a_report(client: httpx.Client) -> None:
    assert client.get("/certificates/checkSystemIntegrityLogExistance").json() == {"exists": False}
    assert client.get("/certificates/checkSystemIntegrityLog").status_code == 404
    assert client.get("/certificates/checkSystemIntegrityReport").json()["checked"] == 60
    assert client.get("/certificates/checkSystemIntegrityLogExistance").json() == {"exists": True}
    assert client.get("/certificates/checkSystemIntegrityLog").text.count("\n") == 60


def test_columns_keep_their_settings(client: httpx.Client) -> None:
    order = client.get("/configurations/certificatesColumnOrder").json()
    assert client.put("/configurations/certificatesColumnOrder", json=order[::-1]).json() == order[::-1]
    assert client.get("/configurations/certificatesColumnOrder").json() == order[::-1]
    assert client.put("/configurations/certificatesColumnOrder", json=order[1:]).status_code == 400
    shown = client.put("/configurations/certificatesColumnVisibility", json={"issuer": False}).json()
    assert shown["issuer"] is False and shown["id"] is True
    assert client.put("/configurations/certificatesColumnVisibility", json={"x": True}).status_code == 400


# The recording and the scripted server


def test_upstream_comes_back_on_its_port() -> None:
    upstream = RecordingUpstream()
    # Not one that the system may meanwhile give to another's connection.
    upstream.port = unused_port()
    with upstream:
        url = upstream.url
        assert httpx.get(f"{url}/json", timeout=30, trust_env=False).status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/json", trust_env=False)
    with upstream:
        assert upstream.url == url
        assert httpx.get(f"{url}/json", timeout=30, trust_env=False).status_code == 200
    assert len(upstream.requests) == 2


def test_stop_cuts_open_streams() -> None:
    with RecordingUpstream() as upstream:
        peer = socket.create_connection((upstream.host, upstream.port), timeout=30)
        peer.sendall(b"GET /events?n=0&interval=60 HTTP/1.1\r\nHost: h\r\n\r\n")
        assert peer.recv(4096)
    with peer:
        while peer.recv(4096):
            pass


def test_start_on_a_taken_port_fails() -> None:
    upstream = RecordingUpstream()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        upstream.port = listener.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            upstream.start()


def test_scripted_server_follows_a_script_per_connection() -> None:
    first = (ReadHead(), ReadBytes(3), Send(b"HTTP/1.1 200 OK\r\n"), Wait(0.01), Send(b"\r\n"))
    with RawUpstream(first, b"whatever", (ReadHead(), Reset()), (ReadUntilClosed(),)) as upstream:

        def connect() -> socket.socket:
            return socket.create_connection((upstream.host, upstream.port), timeout=30)

        with connect() as peer:
            peer.sendall(b"POST / HTTP/1.1\r\n\r\nab")
            peer.sendall(b"c")
            answer = b""
            while data := peer.recv(100):
                answer += data
            assert answer == b"HTTP/1.1 200 OK\r\n\r\n"
        with connect() as peer:
            peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert peer.recv(100) == b"whatever"
        with connect() as peer:
            peer.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with pytest.raises(ConnectionResetError):
                peer.recv(100)
        for _ in range(2):
            with connect() as peer:
                peer.sendall(b"tail")
        wait_until(lambda: len(upstream.received) == 5 and upstream.received[4] == b"tail")
        assert upstream.received[0] == b"POST / HTTP/1.1\r\n\r\nabc"


def test_scripted_server_stops_with_a_connection_open() -> None:
    with (
        RawUpstream((ReadUntilClosed(),)) as upstream,
        socket.create_connection((upstream.host, upstream.port), timeout=30) as peer,
    ):
        wait_until(lambda: len(upstream.received) == 1)
        upstream.stop()
        assert peer.recv(1) == b""


# The process


@pytest.fixture
def process() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = unused_port()
    command = [sys.executable, "-m", "zenzefi.runtime.demo_upstream", "--port", str(port)]
    child = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert child.poll() is None
            try:
                return httpx.get(f"{url}/json", timeout=30, trust_env=False).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(answers, seconds=60, what="the process to serve")
        yield child, url
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate()


def test_process_stops_at_sigterm_quietly_with_requests_open(
    process: tuple[subprocess.Popen[bytes], str],
) -> None:
    child, url = process
    address = ("127.0.0.1", httpx.URL(url).port or 0)
    with socket.create_connection(address) as hanging, socket.create_connection(address) as streaming:
        hanging.sendall(b"GET /hang HTTP/1.1\r\nHost: h\r\n\r\n")
        streaming.sendall(b"GET /events?n=0&interval=0.01 HTTP/1.1\r\nHost: h\r\n\r\n")
        assert streaming.recv(100)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/reset", timeout=30, trust_env=False)
        with socket.create_connection(address) as malformed:
            malformed.sendall(b"nonsense\r\n\r\n")
            assert malformed.recv(100).startswith(b"HTTP/1.0 400")
        child.send_signal(signal.SIGTERM)
        output, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert output == b""


def test_process_says_when_its_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        child = subprocess.run(
            [sys.executable, "-m", "zenzefi.runtime.demo_upstream", "--port", port],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert child.returncode == 1
    assert child.stderr.startswith("demo upstream: ") and child.stderr.count("\n") == 1


@pytest.mark.slow
def test_process_memory_stays_level_over_a_large_transfer(
    process: tuple[subprocess.Popen[bytes], str],
) -> None:
    child, url = process
    size = 256 * 2**20
    memory = psutil.Process(child.pid)
    with httpx.Client(timeout=60, trust_env=False) as client:
        client.get(f"{url}/bytes/1000000")
        client.post(f"{url}/sink?digest=0", content=b"x" * 1_000_000)
        before = memory.memory_info().rss
        peak = before
        received = 0
        with client.stream("GET", f"{url}/bytes/{size}") as response:
            for number, piece in enumerate(response.iter_raw(1 << 20)):
                received += len(piece)
                if number % 16 == 0:
                    peak = max(peak, memory.memory_info().rss)
        assert received == size

        def pieces() -> Iterator[bytes]:
            nonlocal peak
            block = bytes(1 << 20)
            for number in range(size >> 20):
                if number % 16 == 0:
                    peak = max(peak, memory.memory_info().rss)
                yield block

        assert client.post(f"{url}/sink?digest=0", content=pieces()).json()["length"] == size
    assert peak - before < 20 * 2**20


def test_process_serves_a_unix_socket(tmp_path: Path) -> None:
    # A socket path may have at most 107 bytes; the working directory keeps it short.
    child = subprocess.Popen(
        [sys.executable, "-m", "zenzefi.runtime.demo_upstream", "--uds", "s"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    try:
        wait_until((tmp_path / "s").exists, seconds=60, what="the socket")
        transport = httpx.HTTPTransport(uds=os.path.relpath(tmp_path / "s"))
        with httpx.Client(transport=transport, timeout=30) as client:

            def answers() -> bool:
                # There is a moment between the socket's file and its listening.
                try:
                    return client.get("http://demo/json").content == SMALL_JSON
                except httpx.ConnectError:
                    return False

            wait_until(answers, what="the process to serve")
    finally:
        child.terminate()
        assert child.wait(60) == 0
