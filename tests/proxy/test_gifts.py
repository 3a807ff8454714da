"""A token on its way to another owner, seen from the gateway."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import httpx
import pytest
from django.db import transaction

from proxy import keys, services
from proxy.validation import FILL
from tests.api import Api
from tests.factories import UserFactory
from tests.proxy.test_headers import received
from tests.proxy.test_refusals import assert_refused, assert_untouched
from tests.redis_server import own_redis  # noqa: F401 - a fixture
from tests.upstream import wait_until
from tokens.api import gifts as views
from tokens.models import Gift
from tokens.services import cancel_gift, claim_gift, offer_gift, reject_gift
from tokens.signals import credentials_changed
from zenzefi.lib import redis as redis_client
from zenzefi.lib.logging import LineFormatter


@pytest.fixture
def friend(transactional_db):
    return UserFactory()


def give(issued):
    return offer_gift(token_id=issued.token.pk, giver=issued.token.owner)


def test_the_old_secret_is_dead_and_the_new_one_works(live, upstream, issue):
    """Over HTTP from end to end: offered, claimed, used."""
    giver, friend = UserFactory(), UserFactory()
    issued = issue(owner=giver)
    with live.client(issued.secret) as client:
        # Cached as good before it is offered.
        assert client.get("status").json()["status"] == "ready"
        code = Api(giver).post(f"tokens/{issued.token.pk}/gift", status=201)["code"]
        for path in ("json", "status"):
            assert_refused(client.get(path), 401, "token_held")
        assert_untouched(upstream, issued)

        new = Api(friend).post(f"gifts/{code}/claim")["token"]

        assert_refused(client.get("json"), 401, "token_invalid")
        with live.client(new, device="device-of-friend") as other:
            answer = other.get("json")
            status = other.get("status").json()
        assert_refused(client.get("json"), 401, "token_invalid")
    assert answer.status_code == 200
    assert (status["user_id"], status["token_id"], status["status"]) == (
        str(friend.pk),
        str(issued.token.pk),
        "active",
    )
    assert received(upstream)["x-user-id"] == [str(friend.pk)]
    assert issued.reload().activated_at is not None


@pytest.mark.parametrize("back", ["cancelled", "rejected"])
def test_what_comes_back_works_again_at_once(live, issue, friend, back):
    issued = issue()
    with live.client(issued.secret) as client:
        gift = give(issued).gift
        assert_refused(client.get("json"), 401, "token_held")
        if back == "cancelled":
            cancel_gift(gift_id=gift.pk, giver=issued.token.owner)
        else:
            reject_gift(gift_id=gift.pk, actor=friend, reason="r")
        assert client.get("json").status_code == 200


def test_a_device_of_the_giver_does_not_keep_the_friend_out(live, issue, friend):
    issued = issue()
    # As a request leaves it that got no further than the gateway.
    redis_client.client().set(keys.device(issued.token.pk), "device-of-giver", px=60_000)
    claimed = claim_gift(code=give(issued).code, claimer=friend)
    with live.client(claimed.secret, device="device-of-friend") as other:
        assert other.get("json").status_code == 200


def assert_nothing_started(issued):
    assert issued.reload().activated_at is None
    assert not redis_client.client().exists(keys.pending_activations())


@pytest.mark.parametrize("signal", ["told", "lost"])
def test_a_gift_during_the_first_request_leaves_it_unused(live, answer_during, issue, friend, signal):
    issued = issue()
    receivers, cache = credentials_changed.receivers, credentials_changed.sender_receivers_cache
    if signal == "lost":
        credentials_changed.receivers = []
        cache.clear()
    try:
        gifts = []
        answer = answer_during(issued, lambda: gifts.append(give(issued)), is_cut=signal == "told")
        assert answer.status_code == 401
        assert_nothing_started(issued)
        with live.client(issued.secret) as client:
            # Also where the cache still holds it for good: PostgreSQL refuses to start it, each time.
            assert client.get("json").status_code == 401
        assert_nothing_started(issued)
    finally:
        credentials_changed.receivers = receivers
        cache.clear()
    # Nothing that was noted meanwhile starts the friend's clock.
    claimed = claim_gift(code=gifts[0].code, claimer=friend)
    assert services.store_pending_activations(older_than=timedelta(seconds=-60)) == 0
    with live.client(claimed.secret, device="device-of-friend") as other:
        assert other.get("status").json()["status"] == "ready"


def test_a_gift_in_the_middle_of_noting_the_first_use_leaves_nothing_noted(live, issue, monkeypatch):
    issued = issue()
    noted, go_on = threading.Event(), threading.Event()
    activate = services.tokens_services.activate_token

    def late(**arguments):
        noted.set()
        assert go_on.wait(60)
        return activate(**arguments)

    monkeypatch.setattr(services.tokens_services, "activate_token", late)
    with live.client(issued.secret) as client, ThreadPoolExecutor(1) as pool:
        client.get("status")
        waiting = pool.submit(client.get, "json")
        try:
            assert noted.wait(20)
            gift = give(issued).gift
            wait_until(waiting.done, what="the end of the request")
        finally:
            go_on.set()
        assert_refused(waiting.result(), 401, "token_held")
        pending = keys.pending_activations()
        wait_until(lambda: not redis_client.client().exists(pending), what="the end of the note")
    cancel_gift(gift_id=gift.pk, giver=issued.token.owner)
    assert services.store_pending_activations(older_than=timedelta(0)) == 0
    assert issued.reload().activated_at is None


def test_a_gift_claimed_during_the_givers_first_request_is_the_friends(answer_during, issue, friend):
    issued = issue()
    answer = answer_during(issued, lambda: claim_gift(code=give(issued).code, claimer=friend))
    assert answer.status_code == 401
    assert_nothing_started(issued)
    assert issued.token.owner == friend


def test_a_used_token_is_not_given_away(live, issue):
    issued = issue(owner=UserFactory())
    with live.client(issued.secret) as client:
        assert client.get("json").status_code == 200
        Api(issued.token.owner).post(f"tokens/{issued.token.pk}/gift", status=409, code="token_activated")
        assert client.get("json").status_code == 200
    assert not Gift.objects.exists()


def test_without_redis_a_held_token_is_refused_too(own_redis, live, issue):  # noqa: F811
    issued = issue()
    own_redis.stop()
    with live.client(issued.secret) as client:
        give(issued)
        assert_refused(client.get("json"), 401, "token_held")
        assert_refused(client.get("status"), 401, "token_held")
    assert issued.reload().activated_at is None


def test_a_fill_under_way_does_not_make_it_usable(live, issue):
    """The reader saw the token before it was offered and writes after it."""
    issued = issue()
    generation = redis_client.client().get(keys.generation(issued.token.digest)) or b"0"
    give(issued)
    row = (str(issued.token.pk), str(issued.token.owner_id), "full", 86_400_000, b"", b"", 1, 0, b"", b"", 0)
    names = (keys.credential(issued.token.digest), keys.generation(issued.token.digest), keys.pending_activations())
    assert live.run(live.gateway.link.run(FILL, names, (generation, 60_000, b"c", *row))) == 0
    with live.client(issued.secret) as client:
        assert_refused(client.get("json"), 401, "token_held")


def test_no_code_reaches_a_log_or_a_metric(live, issue, friend, caplog, monkeypatch):
    """The code stands in the path: what fails while it is claimed is logged, and without it."""
    issued = issue(owner=UserFactory())
    code = give(issued).code
    bearer = Api().sign_in(friend, password="correct horse battery").access_token
    headers = {"Authorization": f"Bearer {bearer}", "Content-Type": "application/json"}

    def broken(**_: object) -> None:
        raise RuntimeError(f"/api/v1/gifts/{code}/claim")

    with (
        httpx.Client(base_url=live.url, headers=headers, timeout=30, trust_env=False) as client,
        caplog.at_level(logging.DEBUG),
    ):
        monkeypatch.setattr(views.services, "claim_gift", broken)
        for spelling in (code, code.lower().replace("-", ""), code[5:]):
            assert client.post(f"/api/v1/gifts/{spelling}/claim", json={}).status_code == 500
        monkeypatch.undo()
        assert client.post(f"/api/v1/gifts/{code}/claim", json={}).status_code == 200
        metrics = client.get("/metrics").text
    lines = "\n".join(LineFormatter(json=True).format(record) for record in caplog.records)
    assert "/api/v1/gifts/[redacted]/claim" in lines
    assert "gifts" in metrics
    for spelling in (code, code.lower().replace("-", ""), code[5:], code[-9:]):
        assert spelling not in lines
        assert spelling not in metrics


def test_a_gift_that_is_rolled_back_holds_nothing(live, issue):
    issued = issue()
    with live.client(issued.secret) as client:
        client.get("status")
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            give(issued)
            raise ZeroDivisionError
        assert client.get("json").status_code == 200
