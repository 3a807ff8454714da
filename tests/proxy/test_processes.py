"""What several gateways know together when they share nothing but Redis and PostgreSQL: real processes, some killed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from proxy import keys, services
from proxy.models import UpstreamTarget
from proxy.targets import from_settings
from tests.factories import SuperuserFactory
from tests.money import staff_client
from tests.proxy.live import request_bytes
from tests.proxy.load import hammer
from tests.proxy.mirror import Mirror, Peer
from tests.proxy.processes import web_servers
from tests.proxy.servers import OwnRedis, own_redis
from tests.proxy.steady import Traffic
from tests.proxy.test_refusals import assert_refused
from tests.proxy.test_upstream_admin import act
from tests.threads import run_at_once
from tests.upstream import RecordingUpstream, wait_until
from tokens.services import revoke_token
from zenzefi.lib import redis as redis_client

logger = logging.getLogger(__name__)


# --- the rate


@contextlib.contextmanager
def watched(server: OwnRedis) -> Iterator[bytearray]:
    """Keep every command that a Redis carries out during the block, those of its scripts included."""
    seen = bytearray()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(server.path)
        peer.sendall(b"MONITOR\r\n")

        def read() -> None:
            with contextlib.suppress(OSError):
                while piece := peer.recv(1 << 20):
                    seen.extend(piece)

        thread = threading.Thread(target=read)
        thread.start()
        wait_until(lambda: seen.startswith(b"+OK"), what="the monitor")
        try:
            yield seen
            # What it carried out before this has come when this has.
            with redis.Redis.from_url(server.url) as client:
                client.echo("the end of the watch")
            wait_until(lambda: b"the end of the watch" in seen, what="the last of the commands")
        finally:
            peer.shutdown(socket.SHUT_RDWR)
            thread.join(10)


LIMIT, WINDOW_MS = 100, 1000


def test_two_processes_let_exactly_as_many_pass_in_any_window(settings, upstream, transactional_db, issue):
    """64 connections to two gateways over more than two windows; the moments are those on Redis's own clock."""
    issued = issue()
    with own_redis() as own:
        settings.REDIS_URL = own.url
        with (
            web_servers(settings, upstream.url, 2, RATE_LIMIT_PROXY=f"{LIMIT}/{WINDOW_MS // 1000}") as pair,
            watched(own) as seen,
        ):
            codes = hammer(pair, issued.secret, connections=64, seconds=3.4)

    # A refused request measures the list of moments; one that is let in adds its own right afterwards.
    window = re.escape(f"rate:{issued.token.pk}".encode())
    looks = re.findall(
        rb'(\d+\.\d+) \[0 [^]]+\] "(?:(EVALSHA)"|(?i:(LLEN|RPUSH))" "[^"]*%b"(?: "(\d+)")?)' % window, bytes(seen)
    )
    admitted: list[int] = []
    refused: list[float] = []
    called = 0.0
    for place, (at, begins, command, stamp) in enumerate(looks):
        if begins:
            called = float(at) * 1000
        elif command == b"RPUSH":
            admitted.append(int(stamp))
        elif looks[place + 1 : place + 2] == [] or looks[place + 1][2] != b"RPUSH":
            # When it was called, so before it looked at the clock.
            refused.append(called)

    assert set(codes) == {200, 429}
    assert codes[200] == len(admitted) == upstream.targets.count(b"/json") >= 2 * LIMIT
    assert codes[429] == len(refused)
    assert all(
        (later - earlier) % 2**31 >= WINDOW_MS for earlier, later in zip(admitted, admitted[LIMIT:], strict=False)
    )
    # And nobody was refused while there was room: the same clock, without its upper bits.
    for at in refused:
        assert sum((int(at) - moment) % 2**31 <= WINDOW_MS or moment == int(at) + 1 for moment in admitted) >= LIMIT
    logger.warning("%d passed, %d were refused by two processes", codes[200], codes[429])


# --- the circuit breaker


class Scripted(Mirror):
    """Answers the nth request for ``/x`` as the nth function says, and later ones at once; others always."""

    def __init__(self, *script: Callable[[Peer], Awaitable[None]]) -> None:
        super().__init__()
        self.script = script
        self.asked = 0
        self.answers["x"] = self._answer

    async def _answer(self, peer: Peer) -> None:
        self.asked += 1
        if self.asked <= len(self.script):
            await self.script[self.asked - 1](peer)
        if not peer.writer.is_closing():
            await peer.send(b"HTTP/1.1 204 No Content\r\n\r\n")


async def breaks(peer: Peer) -> None:
    peer.reset()


def waits_for(event: threading.Event) -> Callable[[Peer], Awaitable[None]]:
    async def answer(peer: Peer) -> None:
        while not event.is_set():  # noqa: ASYNC110 - it is set in another thread
            await asyncio.sleep(0.01)

    return answer


def until_due(server):
    """Wait until the back-off of a server is over, on Redis's clock."""
    [target] = from_settings()
    assert target.url == server.url
    client: Any = redis_client.client()

    def due():
        seconds, microseconds = client.time()
        until = client.hget(keys.upstream(target.id), "until")
        return until is not None and seconds * 1000 + microseconds / 1000 > int(until)

    wait_until(due, what="the end of the back-off")


@pytest.fixture
def tripped(settings, transactional_db, issue):
    """Two processes, of which the first has tripped over a server; the script says how that goes on."""

    @contextlib.contextmanager
    def trip(*script, rest: int, lease: int):
        with Scripted(breaks, breaks, *script) as server:
            settings.ZENZEFI_TARGET_URLS = [server.url]
            with web_servers(
                settings,
                server.url,
                2,
                GATEWAY_EJECT_AFTER="2",
                GATEWAY_EJECT_SECONDS=str(rest),
                GATEWAY_EJECT_MAX_SECONDS=str(rest),
                GATEWAY_LEASE_SECONDS=str(lease),
            ) as [here, there]:
                secret = issue().secret
                assert [here.ask("POST", "x", secret).status_code for _ in range(2)] == [502, 502]
                yield server, here, there, secret

    return trip


def test_one_process_trips_and_one_trial_of_both_reopens(tripped):
    others_have_asked = threading.Event()
    with tripped(waits_for(others_have_asked), rest=6, lease=60) as found:
        server, here, there, secret = found
        # Time for the news, well before the back-off is over.
        time.sleep(1)
        for _ in range(5):
            assert_refused(there.ask("POST", "x", secret), 503, "upstream_unavailable")
        assert server.asked == 2

        until_due(server)
        codes: list[int] = []

        def ask(number: int) -> None:
            codes.append((here, there)[number % 2].ask("POST", "x", secret).status_code)
            if len(codes) == 7:
                others_have_asked.set()

        def tried() -> bool:
            # The workers reckon from when they heard of it, a moment later.
            codes.clear()
            run_at_once(8, ask)
            return set(codes) != {503}

        wait_until(tried, what="the trial")
        assert Counter(codes) == {204: 1, 503: 7}
        assert server.asked == 3

        ended = time.monotonic()
        waiting = [here, there]

        def recovered():
            waiting[:] = [one for one in waiting if one.ask("POST", "x", secret).status_code != 204]
            return not waiting

        wait_until(recovered, what="recovery at both")
        logger.warning("both saw the recovery %.0f ms after the trial", (time.monotonic() - ended) * 1000)


def test_the_trial_of_a_killed_process_is_taken_over_within_its_lease(tripped):
    """kill -9 while it tries: until the lease ends nobody else does, then one of the others."""
    lease = 5
    with tripped(waits_for(threading.Event()), rest=2, lease=lease) as found, ThreadPoolExecutor(1) as pool:
        server, victim, other, secret = found
        until_due(server)

        def ask():
            # The worker reckons from when it heard of it, a moment later.
            while (answer := victim.ask("POST", "x", secret)).status_code == 503:
                time.sleep(0.05)
            return answer

        trial = pool.submit(ask)
        wait_until(lambda: server.asked == 3, what="the trial")
        tried = time.monotonic()
        victim.kill()
        assert trial.exception() is not None

        refused = 0
        while other.ask("POST", "x", secret).status_code == 503:
            refused += 1
            assert time.monotonic() - tried < lease + 5, "nobody takes the trial over"
            time.sleep(0.05)
        took = time.monotonic() - tried
        assert refused > 5
        # Not at once; the lease may have begun a moment before, and a busy machine may lose sight of Redis for one.
        assert took > 1
        assert server.asked == 4
        assert other.ask("POST", "x", secret).status_code == 204
        logger.warning("taken over %.1f s after the trial began, with a lease of %d s", took, lease)


# --- revocation


@pytest.mark.parametrize("forgets", [False, True])
def test_a_fill_under_way_in_another_process_does_not_bring_a_token_back(
    settings, upstream, transactional_db, issue, forgets
):
    """One process has read the token from PostgreSQL and not stored it yet when the revocation is committed."""
    issued = issue()
    with own_redis() as own, ThreadPoolExecutor(1) as pool:
        settings.REDIS_URL = own.url
        with web_servers(settings, upstream.url, 2, gated=True, DATABASE_TIMEOUT="10") as [reader, other]:
            assert reader.gate is not None
            hold = reader.gate.hold_answers_to(issued.token.digest.encode())
            asked = pool.submit(reader.get, "json", issued.secret)
            assert hold.answered.wait(30), "the token was not looked up"
            revoke_token(token_id=issued.token.pk, actor=None, refund=False)
            if forgets:
                redis.Redis.from_url(own.url).flushall()
            hold.let_go.set()

            assert_refused(asked.result(), 401, "token_revoked")
            for server in (reader, other):
                assert_refused(server.get("json", issued.secret), 401, "token_revoked")
    # Health looks at "/" when a worker starts.
    assert b"/json" not in upstream.targets


# --- metering


def test_a_killed_worker_takes_at_most_a_second_of_bytes_along(settings, transactional_db, issue):
    """The upstream's own record against PostgreSQL; gunicorn's next worker goes on counting."""
    up, down = 1000, 700
    served: list[float] = []

    async def answer(peer: Peer) -> None:
        assert peer.seen is not None and len(peer.seen.body) == up
        served.append(time.monotonic())
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % down + bytes(down))

    issued = issue(superuser=True)
    with Mirror() as mirror:
        mirror.answers["counted"] = answer
        with web_servers(settings, mirror.url) as [server]:
            request = request_bytes(
                "counted", issued.secret, method="POST", extra=b"Content-Length: %d\r\n" % up, body=bytes(up)
            )
            with Traffic(server.port, request, connections=4) as traffic:
                # Just before a flush, the second after one that was seen, so that as much is lost as can be.
                wait_until(lambda: len(served) > 400, seconds=40, what="some traffic")
                handed_over = redis_client.client().xlen(keys.meter_stream())
                wait_until(lambda: redis_client.client().xlen(keys.meter_stream()) > handed_over, what="a flush")
                time.sleep(1.9)
                [worker] = server.workers()
                worker.kill()
                killed = time.monotonic()
                wait_until(
                    lambda: served[-1] > killed + 0.5 and server.workers() != [worker],
                    seconds=40,
                    what="gunicorn's next worker",
                )
    while services.flush_meter_stream():
        pass

    session = issued.token.sessions.get()
    # A flush takes along what passed of a request whose answer has not begun.
    assert 0 <= session.bytes_in - up * session.requests <= up * traffic.connections
    lost = len(served) - session.requests
    before = [moment for moment in served if moment < killed]
    # What the connections were waiting for when it was killed was under way: one request each.
    counted_to = before[-1 - lost] if lost < len(before) else before[0]
    logger.warning(
        "%d of %d requests are missing, %.2f s before the kill; %d were answered",
        *(lost, len(served), killed - counted_to, len(traffic.answers)),
    )
    assert len(before) > 200
    assert lost >= 0
    assert session.bytes_out <= down * len(served)
    assert session.bytes_out >= down * (session.requests - traffic.connections)
    # Counts leave once a second. The rest is for a busy machine, and too little for one that leaves every two.
    assert killed - counted_to < 1.8


# --- staff


def test_a_drain_from_the_back_office_fails_no_request_of_any_process(settings, transactional_db, issue):
    issued = issue(superuser=True)
    with RecordingUpstream() as one, RecordingUpstream() as two, contextlib.ExitStack() as left:
        drained = UpstreamTarget.objects.create(name="a", url=one.url, probe_path="")
        UpstreamTarget.objects.create(name="b", url=two.url, probe_path="")
        pair = left.enter_context(web_servers(settings, one.url, 2))
        with contextlib.ExitStack() as load:
            loads = [
                load.enter_context(Traffic(server.port, request_bytes(path, issued.secret), connections=4))
                for server in pair
                for path in ("bytes/1000", "slow?seconds=0.05")
            ]
            wait_until(lambda: min(len(one.requests), len(two.requests)) > 50, seconds=40, what="load on both")
            office = staff_client(SuperuserFactory())
            page = act(office, "drain", drained, reason="a test", confirm="1")
            assert page.status_code == 200
            drained.refresh_from_db()
            assert drained.state == UpstreamTarget.State.DRAINING
            # Every process knows within two seconds.
            time.sleep(2)
            wait_until(lambda: one.in_progress == 0, what="the end of what ran")
            at_drain, others = len(one.requests), len(two.requests)
            time.sleep(0.7)
            wait_until(lambda: len(two.requests) > others + 20, what="requests at the other")
            assert len(one.requests) == at_drain
            wait_until(lambda: min(len(each.answers) for each in loads) > 20, what="answers to all")

    for each in loads:
        assert not each.broken
        assert set(each.outcomes) == {"200"}
