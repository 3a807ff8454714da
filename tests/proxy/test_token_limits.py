"""Limits of a token: rate, requests at once, bytes a second; its own, its tier's, the platform's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from accounts.models import Tier
from notifications.models import OutboxEvent
from proxy import keys, validation
from proxy.administration import set_tier_limits, set_token_limits
from proxy.exceptions import UnknownLimit
from proxy.models import TokenLimits
from tests.proxy.live import LiveGateway, request_bytes
from tests.proxy.load import hammer
from tests.proxy.test_refusals import assert_refused
from tests.proxy.test_websocket import open_socket
from tests.upstream import RecordingUpstream, wait_until
from zenzefi.lib import redis as redis_client

Allow = Callable[..., None]

#: Of a rate: what at least passes. A busy machine adds to the time that it takes, and takes nothing off it.
SLOWEST = 0.4


# --- rate


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Every decision of the script: outcome and moment on Redis's clock, ms."""
    seen: list[tuple[int, int]] = []
    run = validation.RedisLink.run

    async def watched(self: Any, script: Any, *arguments: Any) -> Any:
        reply = await run(self, script, *arguments)
        if script is validation.DECIDE and len(reply) > 2:
            seen.append((reply[0], reply[2]))
        return reply

    monkeypatch.setattr(validation.RedisLink, "run", watched)
    return seen


@pytest.mark.parametrize("gateways", [1, 2])
def test_exactly_as_many_pass_in_any_window(settings, upstream, transactional_db, issue, decided, gateways):
    """64 connections, a limit of 100: never more in any window, and nobody is refused while there is room."""
    policy = settings.RATE_LIMITS["proxy"]
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "proxy": type(policy)(100, 1)}
    servers = [LiveGateway().start() for _ in range(gateways)]
    try:
        codes = hammer(servers, issue().secret, connections=64, seconds=3.4)
    finally:
        for server in servers:
            server.stop()

    decided.sort(key=lambda one: one[1])
    admitted = [moment for outcome, moment in decided if outcome == 0]
    refused = [moment for outcome, moment in decided if outcome == validation.Outcome.RATE_LIMITED]
    assert set(codes) == {200, 429}
    assert codes[200] == len(admitted) == len(upstream.requests) >= 200
    assert all(later - earlier >= 1000 for earlier, later in zip(admitted, admitted[100:], strict=False))
    assert len(refused) == codes[429]
    for moment in refused:
        assert sum(moment - 1000 < earlier <= moment for earlier in admitted) == 100


def test_a_token_has_its_own_rate(live, upstream, issue, allow):
    issued, other = issue(), issue()
    allow(issued, requests_per_minute=3)
    with live.client(issued.secret) as client, live.client(other.secret) as unbound:
        answers = [client.get("json") for _ in range(3)]
        refused = client.get("json")
        assert unbound.get("json").headers["ratelimit-policy"] == '"proxy";q=1000;w=60'

    assert [answer.headers["ratelimit"].partition(";t=")[0] for answer in answers] == [
        f'"proxy";r={left}' for left in (2, 1, 0)
    ]
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"proxy";q=3;w=60'}
    assert_refused(refused, 429, "rate_limited")
    assert refused.headers["ratelimit-policy"] == '"proxy";q=3;w=60'
    body = refused.json()
    assert (body["rule"], body["limit"]) == ("rate", 3)
    assert 50 < body["retry_after"] == int(refused.headers["retry-after"]) <= 60
    assert body["reset_at"].endswith("Z")
    assert len(upstream.requests) == 4


def test_a_tier_gives_its_tokens_a_rate_until_they_have_their_own(live, issue, allow):
    tier = Tier.objects.create(slug="quick", name="Quick", monthly_price="5.00", proxy_requests_per_minute=2)
    issued = issue()
    issued.token.owner.tier = tier
    issued.token.owner.save()

    def policy():
        return client.get("json").headers["ratelimit-policy"]

    with live.client(issued.secret) as client:
        assert policy() == '"proxy";q=2;w=60'
        tier.proxy_requests_per_minute = 7
        tier.save()
        assert policy() == '"proxy";q=7;w=60'
        allow(issued, requests_per_minute=9)
        assert policy() == '"proxy";q=9;w=60'
        allow(issued, requests_per_minute=None)
        assert policy() == '"proxy";q=7;w=60'


def test_a_lowered_rate_tells_when_there_is_room(live, issue, allow):
    issued = issue()
    window = f"{keys.prefix()}rate:{issued.token.pk}"
    with live.client(issued.secret) as client:
        for _ in range(6):
            client.get("json")
        # As if the first three had come half a minute before the others.
        stored = [int(entry) for entry in redis_client.client().lrange(window, 0, -1)]
        redis_client.client().delete(window)
        redis_client.client().rpush(window, *[(entry - 30_000) % 2**31 for entry in stored[:3]], *stored[3:])
        allow(issued, requests_per_minute=2)
        refused = client.get("json")

    # Room comes when five of six have left, and the fifth came just now.
    assert 45 <= refused.json()["retry_after"] <= 60


def test_moments_of_before_a_deploy_and_after_a_clock_set_back_count(live, issue, allow):
    """Windows written in full milliseconds go on, and a clock that was set back empties none."""
    issued = issue()
    allow(issued, requests_per_minute=3)
    now = int(time.time() * 1000)
    redis_client.client().rpush(f"{keys.prefix()}rate:{issued.token.pk}", now - 30_000, (now + 20_000) % 2**31)
    with live.client(issued.secret) as client:
        assert [client.get("json").status_code for _ in range(2)] == [200, 429]


def test_a_window_takes_six_bytes_a_request(live, issue, allow):
    issued = issue()
    allow(issued, requests_per_minute=20_000)
    window = f"{keys.prefix()}rate:{issued.token.pk}"
    with live.client(issued.secret) as client:
        client.get("json")
    stamp = int(redis_client.client().lrange(window, 0, 0)[0])
    redis_client.client().rpush(window, *[stamp] * 19_998)
    with live.client(issued.secret) as client:
        assert [client.get("json").status_code for _ in range(2)] == [200, 429]

    assert redis_client.client().llen(window) == 20_000
    assert (redis_client.client().memory_usage(window, samples=0) or 0) in range(100_000, 130_000)


# --- requests at once


class CountingUpstream(RecordingUpstream):
    """Notices the most requests that it had at once."""

    most = 0

    def _observe(self, exchange: Any) -> None:
        super()._observe(exchange)
        self.most = max(self.most, self.in_progress)


@pytest.fixture
def counting(settings: Any) -> Iterator[CountingUpstream]:
    with CountingUpstream() as server:
        settings.ZENZEFI_TARGET_URLS = [server.url]
        yield server


def leases(issued):
    return redis_client.client().zcard(keys.leases(issued.token.pk))


def test_never_more_at_once_than_allowed(counting, transactional_db, issue, allow):
    issued = issue()
    allow(issued, concurrent_requests=5)
    with LiveGateway().running() as live, LiveGateway().running() as other:
        codes = hammer([live, other], issued.secret, connections=64, seconds=2.0, path="slow?seconds=0.02")
        wait_until(lambda: leases(issued) == 0, what="the leases' end")
        with live.client(issued.secret) as client:
            assert client.get("json").status_code == 200

    assert counting.most == 5
    assert codes[200] == len(counting.requests) - 1 > 10
    assert set(codes) == {200, 429}


def test_without_the_limit_there_are_more(counting, transactional_db, issue):
    """Negative control: the same load, and no leases are kept."""
    issued = issue()
    with LiveGateway().running() as live:
        hammer([live], issued.secret, connections=64, path="slow?seconds=1")
        assert counting.most > 5
        assert not redis_client.client().exists(keys.leases(issued.token.pk))


def test_the_one_too_many_is_refused_and_counts_nowhere(live, upstream, issue, allow):
    issued = issue()
    allow(issued, concurrent_requests=1, requests_per_day=50)
    with live.client(issued.secret) as client, client.stream("GET", "events?n=0&interval=0.1") as stream:
        pieces = stream.iter_raw()
        next(pieces)
        refused = client.get("json")
        assert_refused(refused, 429, "concurrency_limited")
        assert refused.headers["ratelimit-policy"] == '"concurrency";q=1;qu="concurrent-requests"'
        assert (refused.json()["rule"], refused.json()["limit"], refused.headers["retry-after"]) == (
            "concurrency",
            1,
            "1",
        )
        assert len(upstream.requests) == 1
        assert redis_client.client().llen(f"{keys.prefix()}rate:{issued.token.pk}") == 1


def test_leases_come_back_from_clients_that_leave(live, issue, allow):
    issued = issue()
    allow(issued, concurrent_requests=5)
    for _ in range(10):
        peers = []
        for _ in range(5):
            peer = live.raw()
            peer.sendall(request_bytes("hang", issued.secret))
            peers.append(peer)
        wait_until(lambda: leases(issued) == 5, what="five requests")
        for peer in peers:
            peer.close()
        wait_until(lambda: leases(issued) == 0, what="the leases' end")


def test_a_websocket_holds_a_lease(live, issue, allow):
    issued = issue()
    allow(issued, concurrent_requests=1)
    with open_socket(live, issued.secret) as peer, live.client(issued.secret) as client:
        peer.send("one")
        peer.recv(20)
        assert leases(issued) == 1
        assert_refused(client.get("json"), 429, "concurrency_limited")
    wait_until(lambda: leases(issued) == 0, what="the lease's end")


def test_an_open_stream_keeps_its_lease_and_gets_a_lost_one_back(settings, live, issue, allow):
    settings.GATEWAY = {**settings.GATEWAY, "lease_seconds": 5}
    live.stop()
    live.start()
    issued = issue()
    allow(issued, concurrent_requests=1)
    with live.client(issued.secret) as client, client.stream("GET", "events?n=0&interval=0.1") as stream:
        pieces = stream.iter_raw()
        started = time.monotonic()
        while time.monotonic() - started < 6:
            next(pieces)
        assert_refused(client.get("json"), 429, "concurrency_limited")
        redis_client.client().delete(keys.leases(issued.token.pk))
        wait_until(lambda: leases(issued) == 1, what="the lease's return")


def test_a_lease_nobody_renews_ends(settings, live, issue, allow):
    """What a killed worker held is free after ``GATEWAY_LEASE_SECONDS``."""
    settings.GATEWAY = {**settings.GATEWAY, "lease_seconds": 0.5}
    issued = issue()
    allow(issued, concurrent_requests=1)
    redis_client.client().zadd(keys.leases(issued.token.pk), {"another worker's": time.time() * 1000 + 3000})
    with live.client(issued.secret) as client:
        assert client.get("json").status_code == 429
        wait_until(lambda: client.get("json").status_code == 200, what="the lease's end")


# --- bytes a second


def test_a_download_is_slowed_down_and_others_are_not(live, issue, allow):
    issued, other = issue(), issue()
    allow(issued, bandwidth=200_000)
    started = time.monotonic()
    with live.client(issued.secret) as client, client.stream("GET", "bytes/500000") as stream:
        pieces = stream.iter_raw()
        size = len(next(pieces))
        # Meanwhile another token gets what it wants.
        with live.client(other.secret) as quick:
            asked = time.monotonic()
            assert len(quick.get("bytes/2000000").content) == 2_000_000
            # At the first one's rate it would take ten seconds.
            assert time.monotonic() - asked < 5
        size += sum(len(piece) for piece in pieces)
    took = time.monotonic() - started

    assert size == 500_000
    assert SLOWEST * 200_000 < size / took < 1.2 * 200_000


def test_two_streams_and_an_upload_share_the_rate(live, upstream, issue, allow):
    issued = issue()
    allow(issued, bandwidth=200_000)
    with live.client(issued.secret) as client:

        def send():
            assert client.post("sink", content=b"x" * 150_000).status_code == 200

        def fetch():
            assert len(client.get("bytes/150000").content) == 150_000

        threads = [threading.Thread(target=target) for target in (send, fetch, fetch)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - started

    assert SLOWEST * 200_000 < 450_000 / took < 1.2 * 200_000
    assert upstream.requests[0].body_length + upstream.requests[1].body_length + upstream.requests[2].body_length == (
        150_000
    )


def test_a_websocket_is_slowed_down_both_ways(live, issue, allow):
    issued = issue()
    allow(issued, bandwidth=100_000)
    with open_socket(live, issued.secret) as peer:
        started = time.monotonic()
        for size in (20_000, 20_000, 20_000, 20_000, 20_000, 20_000):
            peer.send(b"x" * size)
            assert len(peer.recv(10)) == size
        took = time.monotonic() - started

    # The last message of each way need not be paid for before it is there.
    assert SLOWEST * 100_000 < (240_000 - 20_000) / took < 1.2 * 100_000


def test_processes_share_the_rate(live, issue, allow):
    """Two gateways, one token: together they come to the rate once they have heard of each other."""
    issued = issue()
    allow(issued, bandwidth=100_000)
    with LiveGateway().running() as other:
        moved: dict[int, list[tuple[float, int]]] = {0: [], 1: []}
        ends = time.monotonic() + 6.2

        def fetch(number, server):
            with server.client(issued.secret) as client, client.stream("GET", "bytes/9000000") as stream:
                for piece in stream.iter_raw():
                    moved[number].append((time.monotonic(), len(piece)))
                    if time.monotonic() > ends:
                        return

        threads = [threading.Thread(target=fetch, args=one) for one in enumerate((live, other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    late = [size for pieces in moved.values() for moment, size in pieces if ends - 3 < moment <= ends]
    # Without a word of each other it would be twice the rate. What was held up before may come within the time.
    assert SLOWEST * 100_000 < sum(late) / 3 < 1.5 * 100_000


def test_a_client_that_leaves_a_slow_download_ends_it(live, upstream, issue, allow):
    issued = issue()
    allow(issued, bandwidth=5_000)
    with live.client(issued.secret) as client, client.stream("GET", "bytes/5000000") as stream:
        next(stream.iter_raw())
    wait_until(lambda: len(live.gateway.registry) == 0, what="the end of the exchange")
    upstream.wait_for(1)


def test_a_rate_set_while_a_stream_runs_slows_it(live, issue, allow):
    issued = issue()
    with live.client(issued.secret) as client, client.stream("GET", "events?n=0&interval=0.05") as stream:
        pieces = stream.iter_raw()
        next(pieces)
        (exchange,) = live.gateway.registry
        allow(issued, bandwidth=10_000)
        wait_until(lambda: exchange.pace is not None, what="the pace")
        allow(issued, bandwidth=None)
        wait_until(lambda: exchange.pace is None, what="the pace's end")
        assert not exchange.ended


# --- who may change what


def test_a_change_is_recorded_and_an_unknown_limit_refused(transactional_db, issue, allow):
    issued = issue()
    allow(issued, seats=2, bandwidth=1000)
    allow(issued, seats=2, bandwidth=0)
    with pytest.raises(UnknownLimit):
        set_token_limits(token_id=issued.token.pk, limits={"owner": 5}, actor=None, reason="no")
    with pytest.raises(UnknownLimit):
        set_tier_limits(tier="free", limits={"requests_per_minute": 5}, actor=None, reason="no")

    row = TokenLimits.objects.get()
    assert (row.seats, row.bandwidth, row.requests_per_day) == (2, 0, None)
    changes = OutboxEvent.objects.filter(event="token.limits_changed").order_by("created_at")
    assert [event.data["limits"] for event in changes] == [{"seats": 2, "bandwidth": 1000}, {"bandwidth": 0}]
    assert {(event.data["reason"], event.data["token_id"]) for event in changes} == {("a test", str(issued.token.pk))}


def test_a_token_is_freed_of_its_tiers_limit(live, issue, allow):
    issued = issue()
    set_tier_limits(tier="free", limits={"concurrent_requests": 1, "seats": 3}, actor=None, reason="a test")
    with live.client(issued.secret) as client:
        assert client.get("status").json()["limits"]["concurrent_requests"] == 1
        assert client.get("status").json()["limits"]["seats"] == 3
        allow(issued, concurrent_requests=0)
        assert client.get("status").json()["limits"]["concurrent_requests"] is None
        assert client.get("status").json()["limits"]["seats"] == 3


def test_superusers_have_seats_and_networks_only(live, issue, allow):
    issued = issue(superuser=True)
    allow(issued, ["127.0.0.0/8"], requests_per_minute=1, concurrent_requests=1, requests_per_day=1, seats=2)
    with live.client(issued.secret) as client, live.client(issued.secret, device="another-device") as second:
        with client.stream("GET", "events?n=0&interval=0.1") as stream:
            pieces = stream.iter_raw()
            next(pieces)
            assert [one.get("json").status_code for one in (client, second, second)] == [200, 200, 200]
        with live.client(issued.secret, device="third-device") as third:
            assert_refused(third.get("json"), 409, "device_conflict")


def test_without_redis_limits_hold_in_each_process(upstream, settings, transactional_db, issue, allow):
    issued = issue()
    allow(issued, requests_per_minute=5, concurrent_requests=1, seats=2)
    settings.REDIS_URL = "unix:///nowhere/redis.sock?db=0"
    with (
        LiveGateway().running() as live,
        live.client(issued.secret) as first,
        live.client(issued.secret, device="another-device") as second,
        live.client(issued.secret, device="third-device") as third,
    ):
        with first.stream("GET", "events?n=0&interval=0.1") as stream:
            pieces = stream.iter_raw()
            next(pieces)
            refused = second.get("json")
            assert_refused(refused, 429, "concurrency_limited")
        wait_until(lambda: len(live.gateway.registry) == 0, what="the end of the exchange")
        assert [one.get("json").status_code for one in (first, second, third)] == [200, 200, 409]
        codes = [first.get("json") for _ in range(4)]
        assert [one.status_code for one in codes] == [200, 200, 429, 429]
        assert codes[-1].headers["ratelimit-policy"] == '"proxy";q=5;w=60'
