"""Bodies stream both ways: as they come, within bounds, and with an honest end."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import time

import httpx
import psutil
import pytest

from proxy import services
from tests.proxy.live import read_all, read_response, request_bytes
from tests.proxy.test_refusals import assert_refused
from tests.upstream import (
    RawUpstream,
    ReadHead,
    ReadUntilClosed,
    RecordingUpstream,
    Reset,
    Send,
    Wait,
    unused_port,
    wait_until,
)


def restart(live, settings, *targets, **gateway):
    settings.GATEWAY = {**settings.GATEWAY, **gateway}
    if targets:
        settings.ZENZEFI_TARGET_URLS = list(targets)
    live.stop()
    live.start()


def test_pieces_arrive_as_they_are_sent(live, upstream, issue):
    with live.client(issue().secret) as client, client.stream("GET", "events?n=4&interval=1") as stream:
        pieces = [(piece.count(b"data:"), upstream.in_progress) for piece in stream.iter_raw()]

    assert sum(count for count, _ in pieces) == 4
    # Each but the last while the server had yet to send the next.
    assert sum(count for count, at_work in pieces if at_work) >= 3


def test_an_upload_is_passed_on_while_it_comes(live, upstream, issue):
    with live.raw() as peer:
        peer.sendall(request_bytes("echo", issue().secret, method="POST", extra=b"Transfer-Encoding: chunked\r\n"))
        peer.sendall(b"5\r\nfirst\r\n")
        data = b""
        while b"first" not in data:
            data += peer.recv(65536)
        peer.sendall(b"6\r\nsecond\r\n0\r\n\r\n")
        while not data.endswith(b"0\r\n\r\n"):
            data += peer.recv(65536)

    assert b"second" in data


def test_the_body_is_asked_for_only_after_admission(live, upstream, issue):
    issued = issue()
    extra = b"Expect: 100-continue\r\nContent-Length: 5\r\n"
    with live.raw() as peer:
        peer.sendall(request_bytes("echo", "znz_" + "a" * 60, method="POST", extra=extra))
        refused = read_all(peer)
    assert refused.startswith(b"HTTP/1.1 401 ")
    assert b"100 Continue" not in refused
    assert b"connection: close" in refused.lower()
    assert upstream.requests == []

    with live.raw() as peer:
        peer.sendall(request_bytes("echo", issued.secret, method="POST", extra=extra))
        assert peer.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.sendall(b"hello")
        assert read_response(peer)[2] == b"hello"


def test_an_early_answer_ends_an_upload(live, upstream, issue):
    def endless():
        for _ in range(4000):
            yield b"x" * 65536

    with live.client(issue().secret) as client:
        answer = client.post("early", content=endless())
        assert answer.status_code == 413
        assert "x-zenzefi-error" not in answer.headers


def test_a_connection_survives_an_early_answer(live, issue):
    secret = issue().secret
    with live.raw() as peer:
        peer.sendall(
            request_bytes("early", secret, method="POST", extra=b"Content-Length: 1000000\r\n", body=b"x" * 500_000)
        )
        assert read_response(peer)[0] == 413
        peer.sendall(b"x" * 500_000 + request_bytes("json", secret))
        assert read_response(peer)[0] == 200


@pytest.mark.parametrize(
    "script",
    [
        (ReadHead(), Send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf"), Wait(0.1)),
        (ReadHead(), Send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"), Wait(0.1)),
        (ReadHead(), Send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"), Wait(0.1), Reset()),
        (
            ReadHead(),
            Send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
            Wait(0.2),
            Send(b"zz\r\n"),
        ),
        (ReadHead(), Send(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 99\r\n\r\nhalf"), Wait(0.1)),
    ],
)
def test_a_half_answer_does_not_look_whole(live, settings, issue, script):
    with RawUpstream(script) as server:
        restart(live, settings, server.url)
        with live.raw() as peer:
            peer.sendall(request_bytes("x", issue().secret))
            data = read_all(peer)

    assert b"half" in data
    assert not data.endswith(b"0\r\n\r\n")


def test_an_answer_that_ends_with_the_connection_is_whole(live, settings, issue):
    with RawUpstream(b"HTTP/1.0 200 OK\r\n\r\nuntil the end") as server:
        restart(live, settings, server.url)
        with live.client(issue().secret) as client:
            answer = client.get("x")

    assert (answer.content, answer.headers["transfer-encoding"]) == (b"until the end", "chunked")


@pytest.mark.parametrize(
    ("path", "options", "status", "code"),
    [
        ("hang", {"first_byte_timeout": 0.4}, 504, "upstream_timeout"),
        ("slow?seconds=30", {"total_timeout": 0.4}, 504, "total_timeout"),
    ],
)
def test_a_slow_upstream_is_given_up(live, settings, upstream, issue, path, options, status, code):
    restart(live, settings, **options)
    with live.client(issue().secret) as client:
        started = time.monotonic()
        assert_refused(client.get(path), status, code)
        assert time.monotonic() - started < 10
    wait_until(lambda: upstream.in_progress == 0, what="the end of the upstream's work")


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("events?n=2&interval=5", {"idle_timeout": 0.5}),
        # Each piece comes in time, the whole does not.
        ("trickle?n=1000&interval=0.1", {"idle_timeout": 5, "total_timeout": 2}),
    ],
)
def test_a_stream_that_stalls_or_trickles_is_cut(live, settings, upstream, issue, path, options):
    restart(live, settings, **options)
    with live.client(issue().secret) as client, pytest.raises(httpx.RemoteProtocolError):
        client.get(path)
    wait_until(lambda: upstream.in_progress == 0, what="the end of the upstream's work")


def test_events_are_not_bound_by_the_total(live, settings, issue):
    restart(live, settings, total_timeout=1.5)
    with live.client(issue().secret) as client:
        assert client.get("events?n=6&interval=0.5").text.count("data:") == 6


def test_a_body_that_does_not_come_is_given_up(live, settings, upstream, issue):
    restart(live, settings, idle_timeout=1)
    with live.raw() as peer:
        peer.sendall(
            request_bytes("sink", issue().secret, method="POST", extra=b"Content-Length: 10\r\n", body=b"half")
        )
        status, headers, _ = read_response(peer)
    assert (status, headers["x-zenzefi-error"]) == (408, ["request_timeout"])
    wait_until(lambda: upstream.in_progress == 0, what="the end of the upstream's work")


def test_an_upload_may_take_longer_than_the_first_byte(live, settings, issue):
    restart(live, settings, first_byte_timeout=1.5)

    def slowly():
        for _ in range(5):
            time.sleep(0.6)
            yield b"x" * 10

    with live.client(issue().secret) as client:
        assert client.post("sink", content=slowly()).json()["length"] == 50


def test_unreachable_is_502_and_the_next_server_is_tried(live, settings, upstream, issue):
    dead = f"http://127.0.0.1:{unused_port()}"
    restart(live, settings, dead)
    issued = issue()
    with live.client(issued.secret) as client:
        assert_refused(client.post("sink", content=b"x"), 502, "upstream_unreachable")

    restart(live, settings, dead, upstream.url)
    with live.client(issued.secret) as client:
        codes = {client.post("sink", content=b"body").status_code for _ in range(6)}
    assert codes == {200}
    assert {exchange.body_length for exchange in upstream.wait_for(6)} == {4}


def test_servers_take_turns(live, settings, upstream, issue):
    with RecordingUpstream() as second:
        restart(live, settings, upstream.url, second.url)
        with live.client(issue().secret) as client:
            for _ in range(6):
                client.get("json")
        assert (len(upstream.requests), len(second.requests)) == (3, 3)


GONE_STALE = (ReadHead(), Send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), ReadHead(), Reset())


@pytest.mark.parametrize(("method", "status", "connections"), [("GET", 200, 2), ("PUT", 200, 2), ("POST", 502, 1)])
def test_only_what_may_be_repeated_is_repeated(live, settings, issue, method, status, connections):
    """The kept connection breaks under the second request: a GET goes again on a new one, a POST never."""
    again = (ReadHead(), Send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), ReadUntilClosed())
    with RawUpstream(GONE_STALE, again) as server:
        restart(live, settings, server.url)
        with live.client(issue().secret) as client:
            assert client.get("first").status_code == 200
            assert client.request(method, "second").status_code == status
        assert len(server.received) == connections


def test_a_put_with_a_body_is_not_repeated(live, settings, issue):
    with RawUpstream(GONE_STALE, GONE_STALE) as server:
        restart(live, settings, server.url)
        with live.client(issue().secret) as client:
            assert client.get("first").status_code == 200
            assert client.put("second", content=b"body").status_code == 502
        assert len(server.received) == 1


def test_a_connection_that_is_not_made_in_time(live, settings, issue):
    """A listener whose queue is full lets nobody in and refuses nobody."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        restart(live, settings, f"http://127.0.0.1:{address[1]}", connect_timeout=0.4)
        issued = issue()
        started = time.monotonic()
        with live.client(issued.secret) as client:
            assert_refused(client.get("x"), 504, "connect_timeout")
        assert time.monotonic() - started < 10
        assert issued.reload().activated_at is None


# --- the client's leaving


def test_a_client_that_leaves_ends_the_upstreams_work(live, upstream, issue):
    secret = issue().secret
    for target in ("hang", "events?n=0&interval=0.1", "bytes/10000000000"):
        peer = live.raw()
        peer.sendall(request_bytes(target, secret))
        wait_until(lambda: upstream.in_progress, what="the request at the upstream")
        peer.close()
        wait_until(lambda: upstream.in_progress == 0, what=f"the end of {target}")
    assert [exchange.outcome for exchange in upstream.requests] == ["abandoned"] * 3
    wait_until(lambda: len(live.gateway.registry) == 0, what="the end of the exchanges")


def test_a_client_that_leaves_during_its_upload_ends_it(live, upstream, issue):
    peer = live.raw()
    peer.sendall(request_bytes("sink", issue().secret, method="POST", extra=b"Content-Length: 1000\r\n", body=b"x"))
    wait_until(lambda: upstream.in_progress, what="the request at the upstream")
    peer.close()
    wait_until(lambda: upstream.in_progress == 0, what="the end of the upload")


def test_a_client_is_charged_what_passed(live, upstream, issue):
    """The upstream would send ten gigabytes; the client takes one megabyte and goes."""
    issued = issue()
    taken = 0
    with live.raw() as peer:
        peer.sendall(request_bytes("bytes/10000000000", issued.secret))
        while taken < 1_000_000:
            taken += len(peer.recv(65536))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: len(live.gateway.registry) == 0, what="the end of the exchange")
    live.run(live.gateway.meter.flush())
    services.flush_meter_stream()

    session = issued.token.sessions.get()
    # Buffers of the kernel and of the server hold what the client never took.
    assert taken - 1000 <= session.bytes_out < taken + 12_000_000
    assert session.requests == 1


@pytest.mark.slow
def test_aborted_requests_leave_nothing_behind(live, upstream, issue):
    secret = issue().secret
    process = psutil.Process(os.getpid())

    def abort_many(count):
        for number in range(count):
            with live.raw() as peer:
                target = ("bytes/50000000", "hang", "events?n=0", "slow?seconds=5")[number % 4]
                peer.sendall(request_bytes(target, secret, device=f"device-{0:04d}"))
                if number % 8 < 4 and number % 2 == 0:
                    peer.recv(10)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        wait_until(lambda: len(live.gateway.registry) == 0, seconds=20, what="the end of the exchanges")
        wait_until(lambda: upstream.in_progress == 0, seconds=20, what="the end of the upstream's work")

    abort_many(50)
    before = process.num_fds()
    abort_many(400)
    wait_until(lambda: process.num_fds() <= before + 10, what="closed connections")


def resident(process):
    return process.memory_info().rss / 2**20


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["down", "up", "down to a slow client"])
def test_large_bodies_are_not_kept_in_memory(live, upstream, issue, direction):
    """Client, gateway and upstream share this process, so its growth bounds the gateway's own."""
    size = 300_000_000
    process = psutil.Process(os.getpid())
    issued = issue()

    def transfer(amount):
        if direction == "up":

            def pieces():
                block = b"x" * 65536
                for _ in range(amount // len(block)):
                    yield block

            with live.client(issued.secret) as client:
                client.post("sink?digest=0", content=pieces())
            return
        with live.raw() as peer:
            peer.sendall(request_bytes(f"bytes/{amount}", issued.secret))
            got = 0
            if "slow" in direction:
                time.sleep(1.5)
                return
            while got < amount:
                got += len(peer.recv(1 << 18))

    transfer(20_000_000)
    before = resident(process)
    transfer(size)
    assert resident(process) - before < 40


def test_a_stalled_client_holds_the_upstream_back(live, upstream, issue):
    with live.raw() as peer:
        peer.sendall(request_bytes("bytes/1000000000", issue().secret))
        peer.recv(1000)
        [exchange] = list(live.gateway.registry)

        def stands():
            before = exchange.bytes_out
            time.sleep(0.5)
            return before and exchange.bytes_out == before

        wait_until(stands, what="an end of what fits in between")
        assert not exchange.ended
        assert exchange.bytes_out < 20_000_000


def test_bytes_are_the_same_after_all(live, issue):
    """A body of every shape of chunk comes back as it went."""
    body = os.urandom(3_000_000)

    def pieces():
        view, size = body, 1
        while view:
            yield view[:size]
            view, size = view[size:], size * 3 % 70_001 + 1

    with live.client(issue().secret) as client:
        answer = client.post("echo", content=pieces())
    assert hashlib.sha256(answer.content).digest() == hashlib.sha256(body).digest()
