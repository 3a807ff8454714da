"""A token's clock starts when its first request has reached the upstream, once, whatever races."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import httpx

from notifications.models import OutboxEvent
from proxy import keys, services
from tests.proxy.live import DEVICE, LiveGateway
from tests.proxy.test_refusals import assert_refused
from tests.upstream import unused_port
from tokens.models import AccessToken
from tokens.services import revoke_token
from zenzefi.lib import redis as redis_client


def expiry(answer):
    return datetime.fromisoformat(answer.json()["expires_at"])


def test_the_moment_is_one_and_the_same_everywhere(live, issue):
    issued = issue(hours=12)
    before = datetime.now(UTC)
    with live.client(issued.secret) as client:
        assert client.get("json").status_code == 200
        status = client.get("status")
        token = issued.reload()
        cached = redis_client.client().hgetall(keys.credential(token.digest))
        redis_client.client().delete(keys.credential(token.digest))
        refilled = client.get("status")

    assert before - timedelta(seconds=1) < token.activated_at < datetime.now(UTC) + timedelta(seconds=1)
    assert token.expires_at - token.activated_at == timedelta(hours=12)
    assert expiry(status) == expiry(refilled) == token.expires_at
    assert int(cached[b"e"]) == round(token.expires_at.timestamp() * 1000)
    assert status.json()["status"] == "active"
    assert OutboxEvent.objects.filter(event="token.activated").count() == 1


def test_the_second_request_changes_nothing(live, issue):
    issued = issue()
    with live.client(issued.secret) as client:
        client.get("json")
        first = issued.reload().activated_at
        client.get("json")
        assert issued.reload().activated_at == first


def test_many_first_requests_at_once_start_it_once(live, issue):
    with LiveGateway().running() as other:
        issued = issue()

        async def all_at_once():
            limits = httpx.Limits(max_connections=50)
            headers = {"X-Access-Token": issued.secret, "X-Device-ID": DEVICE}
            async with httpx.AsyncClient(trust_env=False, timeout=60, limits=limits, headers=headers) as client:
                urls = [f"{server.proxy}/json" for server in (live, other)] * 20
                answers = await asyncio.gather(*(client.get(url) for url in urls))
                statuses = await asyncio.gather(*(client.get(f"{s.proxy}/status") for s in (live, other)))
            return [answer.status_code for answer in answers], {expiry(status) for status in statuses}

        codes, expiries = asyncio.run(all_at_once())

    assert set(codes) == {200}
    assert expiries == {issued.reload().expires_at}
    assert OutboxEvent.objects.filter(event="token.activated").count() == 1
    assert not redis_client.client().exists(keys.pending_activations())


def test_a_dead_upstream_does_not_start_it(settings, live, issue):
    settings.ZENZEFI_TARGET_URLS = [f"http://127.0.0.1:{unused_port()}"]
    live.stop()
    live.start()
    issued = issue()
    with live.client(issued.secret) as client:
        assert_refused(client.get("json"), 502, "upstream_unreachable")
    assert issued.reload().activated_at is None


def test_a_silent_upstream_does_not_start_it(settings, live, issue):
    settings.GATEWAY = {**settings.GATEWAY, "first_byte_timeout": 0.3}
    live.stop()
    live.start()
    issued = issue()
    with live.client(issued.secret) as client:
        assert_refused(client.get("hang"), 504, "upstream_timeout")
    assert issued.reload().activated_at is None


def test_an_upstream_that_breaks_off_does_not_start_it(live, issue):
    issued = issue()
    with live.client(issued.secret) as client:
        assert_refused(client.post("reset"), 502, "upstream_unreachable")
    assert issued.reload().activated_at is None


def test_a_limit_and_a_conflict_do_not_start_it(settings, live, issue):
    policy = settings.RATE_LIMITS["proxy"]
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "proxy": type(policy)(1, 60)}
    settings.ZENZEFI_TARGET_URLS = [f"http://127.0.0.1:{unused_port()}"]
    live.stop()
    live.start()
    issued = issue()
    with live.client(issued.secret) as client, live.client(issued.secret, device="another-device") as other:
        assert client.get("json").status_code == 502
        assert_refused(client.get("json"), 429, "rate_limited")
        assert_refused(other.get("json"), 409, "device_conflict")
    assert issued.reload().activated_at is None


def test_the_upstreams_own_error_does_start_it(live, issue):
    issued = issue()
    with live.client(issued.secret) as client:
        assert client.get("status/503").status_code == 503
    assert issued.reload().activated_at is not None


def test_status_never_starts_it(live, issue):
    issued = issue()
    with live.client(issued.secret, device=None) as client:
        for _ in range(3):
            assert client.get("status").json()["status"] == "ready"
    assert issued.reload().activated_at is None


def test_an_activation_wins_against_a_fill_that_read_before_it(live, issue):
    """A reader that saw the token unused must not store it as unused after it was activated."""
    issued = issue()
    gateway = live.gateway

    async def race():
        digest = issued.token.digest
        generation = b"0"
        decision = await gateway.validator.decide(digest, DEVICE.encode(), b"0", b",")
        assert await gateway.validator.activate(digest, decision)
        # The fill as it was prepared from PostgreSQL before the activation.
        from proxy.validation import FILL

        names = (
            keys.credential(digest),
            keys.generation(digest),
            keys.pending_activations(),
        )
        row = (str(issued.token.pk), str(issued.token.owner_id), "full", 86_400_000, b"", b"", 1, 0, b"", b"", 0)
        stored = await gateway.link.run(FILL, names, (generation, 60_000, b"c", *row))
        return stored, decision, await gateway.validator.decide(digest, DEVICE.encode(), b"0", b",")

    stored, decision, after = live.run(race())
    assert stored == 0
    assert after.activated == decision.activated > 0


def test_a_token_revoked_during_its_first_request_stays_unused(live, issue):
    """A refund for an unused token races its first use: the answer must not get out."""
    issued = issue()
    # The commit is not told to the gateway: only PostgreSQL knows.
    with live.client(issued.secret) as client:
        client.get("status")
        AccessToken.objects.filter(pk=issued.token.pk).update(revoked_at=datetime.now(UTC))
        answer = client.get("json")

    assert_refused(answer, 401, "token_revoked")
    assert issued.reload().activated_at is None


def test_a_revoked_token_is_not_activated_by_a_waiting_answer(issue, answer_during):
    issued = issue()
    answer = answer_during(issued, lambda: revoke_token(token_id=issued.token.pk, actor=None, refund=False))

    assert_refused(answer, 401, "token_revoked")
    assert issued.reload().activated_at is None


def test_what_postgresql_could_not_be_told_is_written_later(live, issue):
    """The pending hash is what remains of an activation whose worker could not reach PostgreSQL."""
    issued = issue()
    activated = datetime(2026, 11, 1, 12, 0, 0, 123_000, UTC)
    redis_client.client().hset(
        keys.pending_activations(),
        str(issued.token.pk),
        f"{round(activated.timestamp() * 1000)} {issued.token.digest}",
    )
    with live.client(issued.secret, device=None) as client:
        # A cache filled meanwhile shows it as activated.
        assert client.get("status").status_code == 401

    assert services.store_pending_activations(older_than=timedelta(seconds=5)) == 1

    assert issued.reload().activated_at == activated
    assert not redis_client.client().exists(keys.pending_activations())
    assert services.store_pending_activations(older_than=timedelta(seconds=5)) == 0


def test_a_pending_activation_of_a_revoked_token_is_dropped(live, issue):
    issued = issue(revoked_at=datetime.now(UTC))
    redis_client.client().hset(keys.pending_activations(), str(issued.token.pk), f"1000 {issued.token.digest}")

    assert services.store_pending_activations(older_than=timedelta(seconds=5)) == 0

    assert issued.reload().activated_at is None
    assert not redis_client.client().exists(keys.pending_activations())


def test_a_fresh_pending_activation_is_left_to_its_worker(live, issue):
    issued = issue()
    now = round(datetime.now(UTC).timestamp() * 1000)
    redis_client.client().hset(keys.pending_activations(), str(issued.token.pk), f"{now} {issued.token.digest}")

    assert services.store_pending_activations(older_than=timedelta(minutes=1)) == 0
    assert issued.reload().activated_at is None
