"""Neighbours that stop, freeze and come back while the gateway serves."""

from __future__ import annotations

import logging
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import pytest
import redis

from proxy import keys, services
from proxy.administration import switch_gateway
from tests.proxy.live import DEVICE, LiveGateway, request_bytes
from tests.proxy.moments import stay_in_one_day
from tests.proxy.processes import web_servers
from tests.proxy.servers import own_redis
from tests.proxy.steady import Traffic, p99
from tests.proxy.test_refusals import assert_refused
from tests.threads import run_at_once
from tests.upstream import wait_until
from tokens import secrets
from tokens.services import revoke_token
from zenzefi.lib import redis as redis_client

logger = logging.getLogger(__name__)

#: Seconds within which service returns by itself.
BACK_WITHIN = 10.0
#: Seconds that whoever needs PostgreSQL waits for it while it is away. Enough for a busy machine while it is there.
DATABASE_TIMEOUT = 4
#: Seconds of counts that a killed worker may take along. They leave once a second; the rest is for a busy machine.
LOST_WITHIN = 2.0


@pytest.fixture
def own(settings):
    with own_redis() as server:
        settings.REDIS_URL = server.url
        yield server


@pytest.fixture
def served(own, upstream, transactional_db):
    """A gateway with a Redis of its own."""
    with LiveGateway().running() as server:
        yield server


def down(server):
    wait_until(lambda: not server.gateway.link.up, what="the gateway's notice that Redis is away")


def up(server):
    wait_until(lambda: server.gateway.link.up, seconds=BACK_WITHIN, what="the link to Redis")


def test_without_redis_postgresql_answers(served, own, issue):
    issued, unknown, revoked = issue(), secrets.generate(), issue(revoked_at="2026-01-01T00:00:00Z")
    restricted = issue(scope="certificates_only")
    with served.client(issued.secret) as client:
        assert client.get("json").status_code == 200
        own.stop()
        down(served)
        assert client.get("json").status_code == 200
        assert client.get("status").json()["status"] == "active"
        assert_refused(client.get("json", headers={"X-Device-ID": "another-device"}), 409, "device_conflict")
        assert_refused(client.get("json", headers={"X-Access-Token": unknown}), 401, "token_invalid")
        assert_refused(client.get("json", headers={"X-Access-Token": revoked.secret}), 401, "token_revoked")
        assert_refused(client.get("json", headers={"X-Device-ID": "short"}), 400, "device_malformed")
        other = {"X-Access-Token": restricted.secret}
        assert_refused(client.get("json", headers=other), 403, "scope_forbidden")
        assert_refused(client.get("certificates/%2e%2e/json", headers=other), 400, "path_ambiguous")
        assert client.get("certificates/filter", headers=other).status_code == 200

        own.start()
        up(served)
        assert client.get("json").status_code == 200
    assert served.gateway.validator.answered["fallback"] >= 8


def test_a_first_use_without_redis_is_recorded_once(served, own, issue):
    issued = issue()
    own.stop()
    down(served)
    with served.client(issued.secret) as client:
        client.get("json")
        first = issued.reload().activated_at
        client.get("json")
        assert client.get("status").json()["is_activated"] is True

    assert first is not None
    assert issued.reload().activated_at == first


def test_the_device_rule_holds_between_workers_without_redis(served, own, upstream, issue):
    issued = issue()
    with LiveGateway().running() as other:
        own.stop()
        down(served)
        down(other)
        with served.client(issued.secret) as here, other.client(issued.secret, device="another-device") as there:
            assert here.get("json").status_code == 200
            assert_refused(there.get("json"), 409, "device_conflict")


def test_the_limit_holds_without_redis(own, upstream, settings, transactional_db, issue):
    policy = settings.RATE_LIMITS["proxy"]
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "proxy": type(policy)(3, 60)}
    with LiveGateway().running() as served:
        own.stop()
        down(served)
        with served.client(issue().secret) as client:
            codes = [client.get("json").status_code for _ in range(5)]
            assert codes == [200, 200, 200, 429, 429]
        with served.client(issue(superuser=True).secret) as client:
            assert {client.get("json").status_code for _ in range(5)} == {200}


def test_the_questions_to_postgresql_are_few(own, upstream, settings, transactional_db, issue):
    settings.GATEWAY = {**settings.GATEWAY, "fallback_rate": 2}
    with LiveGateway().running() as served:
        own.stop()
        down(served)

        def ask(_number):
            with served.client(secrets.generate()) as client:
                return client.get("json")

        # At once: one after the other they might be slow enough for two a second.
        answers = run_at_once(12, ask)

    codes = Counter(answer.status_code for answer in answers)
    assert set(codes) == {401, 503}
    assert codes[401] >= 2
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert_refused(refused, 503, "service_unavailable")
    assert int(refused.headers["retry-after"]) >= 1


def test_a_frozen_redis_holds_nobody_up_for_long(served, own, issue):
    issued = issue()
    with served.client(issued.secret) as client:
        client.get("json")
        own.freeze()
        started = time.monotonic()
        codes = [client.get("json").status_code for _ in range(20)]
        taken = time.monotonic() - started
        assert set(codes) == {200}
        # One bounded wait together, not one each.
        assert taken < 10
        own.thaw()
        up(served)
        assert client.get("json").status_code == 200


def test_counts_made_while_redis_was_away_are_not_lost(served, own, issue):
    issued = issue()
    with served.client(issued.secret) as client:
        client.get("bytes/1000")
        own.stop()
        down(served)
        client.get("bytes/1000")
        client.get("bytes/1000")
        time.sleep(1.2)
        own.start()
        up(served)
    wait_until(lambda: len(served.gateway.registry) == 0, what="the end of the exchanges")
    served.run(served.gateway.meter.flush())
    services.flush_meter_stream()

    session = issued.token.sessions.get()
    # What had been handed to Redis before it was killed is gone with its memory; nothing after is.
    assert session.bytes_out in (2000, 3000)
    assert session.requests == session.bytes_out // 1000


def test_counts_go_to_postgresql_when_the_worker_ends_without_redis(own, upstream, transactional_db, issue):
    issued = issue()
    with LiveGateway().running() as served:
        own.stop()
        down(served)
        with served.client(issued.secret) as client:
            client.get("bytes/1000")

    assert issued.token.sessions.get().bytes_out == 1000


def test_the_gateway_starts_without_redis(own, upstream, transactional_db, issue):
    own.stop()
    issued = issue()
    with LiveGateway().running() as served, served.client(issued.secret) as client:
        assert client.get("json").status_code == 200
        own.start()
        up(served)
        assert client.get("json").status_code == 200

        def cached():
            assert client.get("json").status_code == 200
            return redis_client.client().exists(keys.credential(issued.token.digest))

        wait_until(cached, what="the cached credential")


@pytest.fixture
def worker(settings, upstream, transactional_db):
    if not str(settings.DATABASES["default"]["HOST"]).startswith("/"):
        pytest.fail("these tests need PostgreSQL on a Unix socket")
    with web_servers(settings, upstream.url, gated=True, DATABASE_TIMEOUT=str(DATABASE_TIMEOUT)) as [started]:
        yield started


def test_without_postgresql_a_warm_cache_serves_on(worker, issue):
    warm, cold = issue(), issue()
    assert worker.get("json", warm.secret).status_code == 200
    worker.gate.close()

    assert worker.get("json", warm.secret).status_code == 200
    assert worker.get("status", warm.secret).json()["status"] == "active"
    refused = worker.get("json", cold.secret)
    assert_refused(refused, 503, "service_unavailable")

    worker.gate.open()
    wait_until(lambda: worker.get("json", cold.secret).status_code == 200, what="PostgreSQL's return")


def test_a_first_use_without_postgresql_keeps_its_moment(worker, issue):
    issued = issue()
    worker.get("status", issued.secret)
    worker.gate.close()

    assert worker.get("json", issued.secret).status_code == 200
    shown = worker.get("status", issued.secret).json()
    assert shown["is_activated"] is True
    assert issued.reload().activated_at is None

    assert services.store_pending_activations(older_than=timedelta()) == 1
    assert issued.reload().activated_at.isoformat(timespec="microseconds") == shown["activated_at"].replace(
        "Z", "+00:00"
    )
    worker.gate.open()
    assert worker.get("status", issued.secret).json()["activated_at"] == shown["activated_at"]


def test_a_stopped_worker_hands_its_counts_over(worker, issue):
    issued = issue()
    assert worker.get("bytes/1000", issued.secret).status_code == 200
    worker.stop()
    services.flush_meter_stream()

    session = issued.token.sessions.get()
    assert (session.requests, session.bytes_out) == (1, 1000)


def test_a_stopping_worker_lets_requests_finish_and_cuts_streams(settings, upstream, transactional_db, issue):
    """SIGTERM: what ends within the grace period ends whole, what does not is cut, nobody waits for ever."""
    issued = issue()
    headers = {"X-Access-Token": issued.secret, "X-Device-ID": DEVICE}
    received: list[bytes] = []

    def stream():
        with httpx.stream(
            "GET", f"{stopped.proxy}/events?n=0&interval=0.1", headers=headers, timeout=20, trust_env=False
        ) as answer:
            received.extend(answer.iter_raw())

    with (
        web_servers(settings, upstream.url, GATEWAY_SHUTDOWN_GRACE="4") as [stopped],
        ThreadPoolExecutor(2) as pool,
    ):
        endless = pool.submit(stream)
        wait_until(lambda: received, what="the stream")
        short = pool.submit(stopped.get, "slow?seconds=1", issued.secret)
        wait_until(lambda: upstream.targets.count(b"/slow?seconds=1") == 1, what="the short request")
        started = time.monotonic()
        stopped.stop()
        assert time.monotonic() - started < 20
        assert short.result().status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            endless.result()

    services.flush_meter_stream()
    assert issued.token.sessions.get().requests == 2


def test_a_killed_worker_takes_at_most_a_second_of_counts_along(worker, issue):
    issued = issue()
    assert worker.get("json", issued.secret).status_code == 200
    with Traffic(worker.port, request_bytes("bytes/1000", issued.secret), connections=4) as traffic:
        wait_until(lambda: len(traffic.answers) > 100, what="some traffic")
        time.sleep(LOST_WITHIN + 0.4)
        killed = time.monotonic()
        worker.kill()
    services.flush_meter_stream()

    safe = [answer for answer in traffic.answers if answer.at < killed - LOST_WITHIN]
    session = issued.token.sessions.get()
    assert len(safe) > 50
    assert session.requests >= len(safe) + 1
    assert session.requests <= len(traffic.answers) + 1 + 4
    assert session.bytes_out >= 1000 * len(safe)


def test_a_redis_that_forgets_everything_forgets_no_refusal(served, own, issue, allow):
    """Flushed again and again under load: who was refused for good stays refused, whatever moment it is asked at."""
    stay_in_one_day()
    revoked, held = issue(), issue()
    bounded = issue()
    allow(bounded, requests_per_day=3)
    boss = issue(superuser=True)
    memory = redis.Redis.from_url(own.url)
    with served.client(revoked.secret) as client, served.client(held.secret) as holder:
        assert client.get("json").status_code == holder.get("json").status_code == 200
        with served.client(bounded.secret) as counted:
            assert [counted.get("json").status_code for _ in range(3)] == [200] * 3
        wait_until(lambda: len(served.gateway.registry) == 0, what="the end of the exchanges")
        served.run(served.gateway.meter.flush())
        services.flush_meter_stream()
        revoke_token(token_id=revoked.token.pk, actor=None, refund=False)
        with (
            Traffic(served.port, request_bytes("bytes/100", boss.secret)) as good,
            Traffic(served.port, request_bytes("json", revoked.secret)) as gone,
            Traffic(served.port, request_bytes("json", held.secret, device="another-device")) as other,
            Traffic(served.port, request_bytes("json", bounded.secret)) as over,
        ):
            all_traffic = (good, gone, other, over)
            for _ in range(20):
                time.sleep(0.1)
                memory.flushall()
            wait_until(lambda: min(len(traffic.answers) for traffic in all_traffic) > 100, what="answers to all")
            closing = time.monotonic()
            switch_gateway(closed=True, actor=None, reason="a test")
            # What was on its way at the moment of closing may have been let in before.
            closed = time.monotonic() + 0.1
            memory.flushall()
            time.sleep(0.3)
            memory.flushall()
            flushed = time.monotonic()
            wait_until(lambda: all(traffic.asked_since(flushed) for traffic in all_traffic), what="answers to all")

    for traffic, outcome in (
        (good, "200"),
        (gone, "401 token_revoked"),
        (other, "409 device_conflict"),
        (over, "429 quota_exceeded"),
    ):
        assert not traffic.broken
        assert len(traffic.answers) > 100
        assert {f"{one.status} {one.code}".strip() for one in traffic.answers if one.at < closing} == {outcome}
        assert {one.code for one in traffic.asked_since(closed)} == {"gateway_closed"}
    figures = [one for one in good.answers if one.at < closing]
    logger.warning("flushed 20 times: %d answers, p99 %.1f ms", len(figures), p99(figures) * 1000)


def test_a_redis_that_forgets_its_windows_lets_at_most_one_more_limit_pass(
    own, upstream, settings, transactional_db, issue
):
    policy = settings.RATE_LIMITS["proxy"]
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "proxy": type(policy)(5, 60)}
    issued = issue()
    with LiveGateway().running() as served, served.client(issued.secret) as client:
        for _ in range(2):
            assert [client.get("json").status_code for _ in range(7)] == [200] * 5 + [429] * 2
            redis.Redis.from_url(own.url).flushall()


def spend(seconds, traffic):
    """Let the traffic run on for so long, or as long as twenty answers take, and return the answers of that time."""
    started = time.monotonic()
    time.sleep(seconds)
    wait_until(lambda: len(traffic.since(started)) >= 20, what="some answers")
    return traffic.since(started)


@pytest.mark.slow
def test_traffic_goes_on_while_redis_stops_freezes_and_forgets(served, own, issue):
    issued = issue()
    # Superusers' requests are not counted against a limit; limits have tests of their own.
    boss = issue(superuser=True)
    figures = {}
    with served.client(issued.secret) as client:
        assert client.get("json").status_code == 200
    with Traffic(served.port, request_bytes("bytes/100", boss.secret)) as traffic:
        figures["calm"] = spend(0.6, traffic)
        own.stop()
        figures["stopped"] = spend(1.2, traffic)
        own.start()
        up(served)
        figures["back"] = spend(0.4, traffic)
        own.freeze()
        figures["frozen"] = spend(2.5, traffic)
        own.thaw()
        up(served)
        redis.Redis.from_url(own.url).flushall()
        figures["flushed"] = spend(0.6, traffic)

    assert not traffic.broken
    assert set(traffic.outcomes) == {"200"}
    for name, answers in figures.items():
        logger.warning("%s: %d answers, p99 %.1f ms", name, len(answers), p99(answers) * 1000)
    # A call waits for Redis once, for REDIS_TIMEOUT at most; then the link counts as down and nobody waits.
    assert max(answer.seconds for answer in traffic.answers) < 1 + 4


@pytest.mark.slow
def test_traffic_goes_on_without_postgresql(worker, issue):
    boss = issue(superuser=True)
    assert worker.get("json", boss.secret).status_code == 200
    with Traffic(worker.port, request_bytes("bytes/100", boss.secret)) as traffic:
        calm = spend(0.5, traffic)
        worker.gate.close()
        away = spend(2.0, traffic)
        worker.gate.open()
        back = spend(0.5, traffic)

    assert not traffic.broken
    assert set(traffic.outcomes) == {"200"}
    for name, answers in (("calm", calm), ("away", away), ("back", back)):
        logger.warning("%s: %d answers, p99 %.1f ms", name, len(answers), p99(answers) * 1000)
    # Nobody waits for PostgreSQL.
    assert p99(away) < DATABASE_TIMEOUT / 2
