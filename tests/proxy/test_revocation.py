"""A revoked token is refused at the next request, and what is open is cut within two seconds."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import httpx
import pytest
from django.conf import settings
from django.db import transaction

from accounts.signals import user_access_changed
from proxy import keys, services, tasks
from proxy.validation import FILL
from tests.proxy.live import LiveGateway
from tests.proxy.test_refusals import assert_refused
from tests.upstream import wait_until
from tokens.models import AccessToken
from tokens.services import revoke_token, rotate_token
from tokens.signals import credentials_changed
from zenzefi.lib import clock
from zenzefi.lib import redis as redis_client

#: Seconds. DESIGN: open streams are cut within two; the rest is for a busy machine.
CUT_WITHIN = 4.0


def revoke(issued):
    revoke_token(token_id=issued.token.pk, actor=None, refund=False)


def test_the_next_request_is_refused_at_every_worker(live, upstream, issue):
    issued = issue()
    with LiveGateway().running() as other, live.client(issued.secret) as here, other.client(issued.secret) as there:
        assert here.get("json").status_code == there.get("json").status_code == 200
        revoke(issued)
        assert_refused(here.get("json"), 401, "token_revoked")
        assert_refused(there.get("json"), 401, "token_revoked")
        assert_refused(here.get("status"), 401, "token_revoked")

    assert len(upstream.requests) == 2


def test_a_revocation_that_is_rolled_back_evicts_nothing(live, issue):
    issued = issue()
    with live.client(issued.secret) as client:
        client.get("json")
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            revoke(issued)
            raise ZeroDivisionError
        assert redis_client.client().exists(keys.credential(issued.token.digest))
        assert client.get("json").status_code == 200


def test_a_fill_under_way_does_not_bring_it_back(live, issue):
    """The reader looked before the revocation and writes after it: the tombstone must stay."""
    issued = issue()
    revoke(issued)
    row = (str(issued.token.pk), str(issued.token.owner_id), "full", 86_400_000, b"", b"", 1, 0, b"", b"", 0)
    names = (
        keys.credential(issued.token.digest),
        keys.generation(issued.token.digest),
        keys.pending_activations(),
    )

    stored = live.run(live.gateway.link.run(FILL, names, (b"0", 60_000, b"c", *row)))

    assert stored == 0
    with live.client(issued.secret) as client:
        assert_refused(client.get("json"), 401, "token_revoked")


def test_without_the_generation_the_fill_would_bring_it_back(live, issue):
    """Negative control: with the generation of after the revocation the same write goes through."""
    issued = issue(active_for=timedelta(hours=1))
    revoke(issued)
    ends = round(issued.token.expires_at.timestamp() * 1000)
    row = (str(issued.token.pk), str(issued.token.owner_id), "full", 86_400_000, 1, ends, 1, 0, b"", b"", 0)
    names = (
        keys.credential(issued.token.digest),
        keys.generation(issued.token.digest),
        keys.pending_activations(),
    )
    generation = redis_client.client().get(keys.generation(issued.token.digest))

    assert live.run(live.gateway.link.run(FILL, names, (generation, 60_000, b"c", *row))) == 1
    with live.client(issued.secret) as client:
        assert client.get("json").status_code == 200


def cut_after(stream, act):
    """Return the seconds between an act and the end of a stream, which must not end as if complete."""
    pieces = stream.iter_raw()
    next(pieces)
    act()
    started = time.monotonic()
    with pytest.raises(httpx.RemoteProtocolError):
        for _ in pieces:
            assert time.monotonic() - started < CUT_WITHIN
    return time.monotonic() - started


STREAM = "events?n=0&interval=0.1"


def test_an_open_stream_is_cut(live, upstream, issue):
    issued = issue()
    with live.client(issued.secret) as client, client.stream("GET", STREAM) as stream:
        assert cut_after(stream, lambda: revoke(issued)) < CUT_WITHIN
    upstream.wait_for(1)


def test_an_open_download_is_cut(live, issue):
    issued = issue()
    with live.client(issued.secret) as client, client.stream("GET", "trickle?n=100000&interval=0.01") as stream:
        assert cut_after(stream, lambda: revoke(issued)) < CUT_WITHIN


def test_a_stream_is_cut_although_the_message_was_lost(live, issue):
    """Publish/subscribe promises nothing; the worker asks about its open streams itself."""
    issued = issue()
    live.run(live.gateway._changes.stop())
    with live.client(issued.secret) as client, client.stream("GET", STREAM) as stream:
        assert cut_after(stream, lambda: revoke(issued)) < CUT_WITHIN


def test_a_stream_is_cut_when_the_token_expires(live, issue):
    issued = issue(active_for=timedelta(seconds=3))

    def wait_for_the_end():
        wait_until(lambda: clock.now() >= issued.token.expires_at, what="the token's end")

    with live.client(issued.secret) as client, client.stream("GET", STREAM) as stream:
        assert cut_after(stream, wait_for_the_end) < CUT_WITHIN
    with live.client(issued.secret) as client:
        assert_refused(client.get("json"), 401, "token_expired")


def test_a_rotated_secret_is_refused_at_once_and_its_stream_cut(live, issue):
    issued = issue()
    with live.client(issued.secret) as client, client.stream("GET", STREAM) as stream:
        replaced = []
        cut = cut_after(
            stream,
            lambda: replaced.append(rotate_token(token_id=issued.token.pk, owner=issued.token.owner)),
        )
        assert cut < CUT_WITHIN
    with live.client(issued.secret) as client, live.client(replaced[0].secret) as new:
        assert_refused(client.get("json"), 401, "token_invalid")
        assert new.get("json").status_code == 200


def test_a_disabled_user_is_shut_out_and_an_enabled_one_comes_back(live, issue):
    issued = issue()
    user = issued.token.owner

    def switch(active):
        user.is_active = active
        user.save()
        user_access_changed.send(sender=type(user), user_id=user.pk)

    with live.client(issued.secret) as client:
        with client.stream("GET", STREAM) as stream:
            assert cut_after(stream, lambda: switch(False)) < CUT_WITHIN
        assert_refused(client.get("json"), 401, "owner_disabled")
        switch(True)
        assert client.get("json").status_code == 200


def test_the_sweep_evicts_what_a_lost_signal_left(live, issue):
    issued = issue()
    disabled = issue()
    with live.client(issued.secret) as client, live.client(disabled.secret) as other:
        assert client.get("json").status_code == other.get("json").status_code == 200
        receivers, credentials_changed.receivers = credentials_changed.receivers, []
        credentials_changed.sender_receivers_cache.clear()
        try:
            revoke(issued)
        finally:
            credentials_changed.receivers = receivers
            credentials_changed.sender_receivers_cache.clear()
        disabled.token.owner.is_active = False
        disabled.token.owner.save()
        assert client.get("json").status_code == other.get("json").status_code == 200

        assert services.evict_recent_changes(since=timedelta(minutes=1)) >= 2

        assert_refused(client.get("json"), 401, "token_revoked")
        assert_refused(other.get("json"), 401, "owner_disabled")


def test_the_sweep_looks_back_as_far_as_the_cache_remembers(live, issue):
    """A Redis that was away for minutes comes back with credentials that were revoked meanwhile."""
    issued = issue()
    with live.client(issued.secret) as client:
        assert client.get("json").status_code == 200
        earlier = clock.now() - timedelta(seconds=settings.GATEWAY["cache_seconds"])
        # Straight in the database: no signal, and long enough ago that a short sweep would not see it.
        AccessToken.objects.filter(pk=issued.token.pk).update(
            created_at=earlier - timedelta(hours=1), revoked_at=earlier, changed_at=earlier
        )
        assert client.get("json").status_code == 200

        assert tasks.re_evict_recent() >= 1

        assert_refused(client.get("json"), 401, "token_revoked")


def test_the_sweep_evicts_once_for_each_change(live, issue):
    """Else every token would be looked up again and again for minutes after a change."""
    issued = issue()
    span = timedelta(minutes=1)
    AccessToken.objects.filter(pk=issued.token.pk).update(label="mine", changed_at=clock.now())
    assert services.evict_recent_changes(since=span) == 1
    assert services.evict_recent_changes(since=span) == 0
    with live.client(issued.secret) as client:
        assert client.get("json").status_code == 200
        asked = live.gateway.validator.answered["postgresql"]
        services.evict_recent_changes(since=span)
        assert client.get("json").status_code == 200
        # The first use was a change as well.
        services.evict_recent_changes(since=span)
        assert client.get("json").status_code == 200
        assert live.gateway.validator.answered["postgresql"] <= asked + 1
        AccessToken.objects.filter(pk=issued.token.pk).update(revoked_at=clock.now(), changed_at=clock.now())
        assert services.evict_recent_changes(since=span) == 1
        assert_refused(client.get("json"), 401, "token_revoked")


def test_the_sweep_leaves_alone_what_has_only_come_into_being(live):
    """PostgreSQL may go away at any moment, and what was in use before goes on only if Redis still knows it."""
    with httpx.Client(base_url=f"{live.url}/api/v1", timeout=30, trust_env=False) as api:
        account = {"email": "ada@example.com", "password": "correct-horse-battery"}
        assert api.post("/auth/register", json={**account, "username": "ada"}).status_code == 201
        api.headers["Authorization"] = f"Bearer {api.post('/auth/login', json=account).json()['access_token']}"
        assert api.post("/currency/mock-purchase", json={"amount": "100.00"}).status_code == 201
        secret = api.post("/tokens/purchase", json={"duration_hours": 1}).json()["token"]
    with live.client(secret) as client:
        assert client.get("json").status_code == 200
        asked = live.gateway.validator.answered["postgresql"]
        assert services.evict_recent_changes(since=timedelta(minutes=1)) == 0
        assert client.get("json").status_code == 200
        assert live.gateway.validator.answered["postgresql"] == asked


def test_a_redis_that_forgot_the_eviction_forgot_that_it_was_done(live, issue):
    issued = issue()
    span = timedelta(minutes=1)
    key = keys.credential(issued.token.digest)
    redis_server = redis_client.client()
    with live.client(issued.secret) as client:
        assert client.get("json").status_code == 200
        services.evict_recent_changes(since=span)
        assert client.get("json").status_code == 200
        known: Any = redis_server.hgetall(key)
        AccessToken.objects.filter(pk=issued.token.pk).update(revoked_at=clock.now(), changed_at=clock.now())
        before = set(redis_server.keys(f"{keys.prefix()}*"))
        assert services.evict_recent_changes(since=span) == 1
        # As a snapshot from before had it.
        redis_server.delete(key, *(set(redis_server.keys(f"{keys.prefix()}*")) - before))
        redis_server.hset(key, mapping=known)
        assert client.get("json").status_code == 200
        assert services.evict_recent_changes(since=span) == 1
        assert_refused(client.get("json"), 401, "token_revoked")


def test_a_change_of_scope_acts_at_once(live, issue):
    issued = issue()
    with live.client(issued.secret) as client:
        assert client.get("system/version").status_code == 200
        issued.token.scope_id = "certificates_only"
        issued.token.save()
        credentials_changed.send(
            sender=type(issued.token), digests=[issued.token.digest], token_ids=[issued.token.pk], revoked=False
        )
        assert_refused(client.get("system/version"), 403, "scope_forbidden")
