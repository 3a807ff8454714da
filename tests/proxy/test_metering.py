"""What passed is counted once, whatever is lost, repeated or late."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from django.contrib.auth import get_user_model
from django.db import connection

from accounts.services import set_user_active
from proxy import keys, services, tasks
from proxy.administration import set_tier_limits
from proxy.models import MeterBatch, Session
from proxy.validation import FLUSH
from tests.proxy.live import DEVICE
from tests.threads import run_at_once
from tests.upstream import wait_until
from tokens.services import release_device, revoke_token
from zenzefi.lib import redis as redis_client


def handed_over(live):
    """Move everything counted so far to PostgreSQL."""
    wait_until(lambda: len(live.gateway.registry) == 0, what="the end of the exchanges")
    live.run(live.gateway.meter.flush())
    tasks.flush_metering()


def milliseconds(moment):
    return round(moment.timestamp() * 1000)


def row(issued, *, requests=1, bytes_in=10, bytes_out=20, at=None, device=DEVICE, address="127.0.0.1"):
    moment = milliseconds(at or datetime.now(UTC))
    owner = str(issued.token.owner_id)
    return [str(issued.token.pk), owner, device, address, "agent/1", requests, bytes_in, bytes_out, moment, moment]


def test_a_session_has_what_passed(live, issue):
    issued = issue()
    with live.client(issued.secret) as client:
        client.headers["User-Agent"] = "desktop/1.2"
        client.post("sink?digest=0", content=b"x" * 1000)
        client.get("bytes/5000")
        client.get("bytes/5000", headers={"X-Device-ID": "short"})
    handed_over(live)

    session = issued.token.sessions.get()
    assert (session.requests, session.bytes_in) == (2, 1000)
    assert 5000 < session.bytes_out < 5200
    assert (session.device_id, session.client_address, session.user_agent) == (DEVICE, "127.0.0.1", "desktop/1.2")
    assert session.user_id == issued.token.owner_id
    assert session.started_at <= session.last_activity_at
    token = issued.reload()
    assert token.device_id == DEVICE
    assert abs(token.device_seen_at - session.last_activity_at) < timedelta(seconds=1)


def test_a_running_stream_is_counted_while_it_runs(live, issue):
    issued = issue()
    with live.client(issued.secret) as client, client.stream("GET", "events?n=0&interval=0.05") as stream:
        # Held: httpx hangs up when the iterator goes.
        pieces = stream.iter_raw()
        next(pieces)

        def counted():
            tasks.flush_metering()
            session = issued.token.sessions.first()
            return session is not None and session.bytes_out > 500

        wait_until(counted, what="the stream's progress")
        assert issued.token.sessions.get().requests == 1
    handed_over(live)
    assert issued.token.sessions.get().requests == 1


def test_a_batch_counts_once_however_often_it_comes(issue):
    issued = issue()
    batch = (uuid.uuid4(), [row(issued)])

    assert services.apply_batches([batch]) == 1
    assert services.apply_batches([batch]) == 0
    assert services.apply_batches([batch, (uuid.uuid4(), [row(issued)])]) == 1

    session = issued.token.sessions.get()
    assert (session.requests, session.bytes_in, session.bytes_out) == (2, 20, 40)


@pytest.mark.django_db(transaction=True)
def test_a_batch_counts_once_whoever_applies_it(issue):
    first, second = issue(), issue()
    batches = [(uuid.uuid4(), [row(first), row(second)]) for _ in range(5)]

    results = run_at_once(8, lambda number: services.apply_batches(batches if number % 2 else batches[::-1]))

    assert sum(results) == 5
    for issued in (first, second):
        assert issued.token.sessions.get().requests == 5


def test_a_batch_sent_twice_to_redis_is_there_once(live, issue):
    issued = issue()
    identity = str(uuid.uuid4())
    data = json.dumps([row(issued)])
    arguments = (identity, data, keys.prefix(), 60, str(issued.token.pk), 1, 10, 20)
    names = (keys.meter_stream(), keys.batch_marker(identity))

    assert [live.run(live.gateway.link.run(FLUSH, names, arguments)) for _ in range(2)] == [1, 0]

    assert redis_client.client().xlen(keys.meter_stream()) == 1
    assert redis_client.client().hget(keys.usage(issued.token.pk), "requests") == b"1"


def test_what_was_applied_but_not_deleted_is_not_applied_again(issue):
    """The worker died between its commit and the deletion of the entries."""
    issued = issue()
    client = redis_client.client()
    fields: dict[Any, Any] = {"id": str(uuid.uuid4()), "rows": json.dumps([row(issued)])}
    client.xadd(keys.meter_stream(), fields)
    services.flush_meter_stream()
    client.xadd(keys.meter_stream(), fields)

    assert services.flush_meter_stream() == 1
    assert issued.token.sessions.get().requests == 1
    assert client.xlen(keys.meter_stream()) == 0


def test_many_rows_are_one_statement(issue, django_assert_max_num_queries):
    issued = issue()
    batches = [(uuid.uuid4(), [row(issued, device=f"device-{n:04d}") for n in range(200)]) for _ in range(3)]

    with django_assert_max_num_queries(16):
        services.apply_batches(batches)

    assert issued.token.sessions.count() == 200
    assert set(issued.token.sessions.values_list("requests", flat=True)) == {3}


def test_rows_of_a_token_that_is_gone_belong_to_nobody(issue):
    issued = issue()
    missing = row(issued)
    missing[0] = str(uuid.uuid4())

    services.apply_batches([(uuid.uuid4(), [missing, row(issued)])])

    assert Session.objects.count() == 1


def test_a_session_that_was_idle_is_closed_and_a_new_one_begins(issue, settings):
    issued = issue()
    now = datetime.now(UTC)
    idle = timedelta(seconds=settings.SESSION_IDLE_SECONDS)
    services.apply_batches([(uuid.uuid4(), [row(issued, at=now - idle - timedelta(seconds=5))])])
    services.apply_batches([(uuid.uuid4(), [row(issued, at=now)])])

    old, new = issued.token.sessions.order_by("started_at")
    assert (old.ended_reason, old.ended_at) == ("idle", old.last_activity_at)
    assert (new.ended_at, new.requests) == (None, 1)


def test_late_rows_do_not_turn_the_clock_back(issue):
    issued = issue()
    now = datetime.now(UTC)
    services.apply_batches([(uuid.uuid4(), [row(issued, at=now)])])
    services.apply_batches([(uuid.uuid4(), [row(issued, at=now - timedelta(seconds=30))])])

    session = issued.token.sessions.get()
    assert milliseconds(session.last_activity_at) == milliseconds(now)
    assert milliseconds(session.started_at) == milliseconds(now - timedelta(seconds=30))


def test_sessions_end_with_idling_expiry_and_revocation(issue, settings):
    now = datetime.now(UTC)
    idle = issue()
    expired = issue(active_for=timedelta(seconds=-1))
    revoked = issue(revoked_at=now)
    running = issue()
    long_ago = now - timedelta(seconds=settings.SESSION_IDLE_SECONDS + 10)
    services.apply_batches([(uuid.uuid4(), [row(idle, at=long_ago), row(expired), row(revoked), row(running)])])

    assert tasks.close_sessions() == 3
    assert tasks.close_sessions() == 0

    reasons = {one.token.sessions.get().ended_reason for one in (idle,)}
    assert reasons == {"idle"}
    assert expired.token.sessions.get().ended_reason == "expired"
    assert revoked.token.sessions.get().ended_reason == "revoked"
    assert running.token.sessions.get().ended_at is None


def test_releasing_the_device_ends_its_session_at_once(issue):
    issued, other = issue(), issue()
    services.apply_batches([(uuid.uuid4(), [row(issued), row(other)])])

    release_device(token_id=issued.token.pk, owner=issued.token.owner)

    assert issued.token.sessions.get().ended_reason == "device_released"
    assert other.token.sessions.get().ended_at is None


def test_old_batch_ids_are_forgotten(issue):
    services.apply_batches([(uuid.uuid4(), [row(issue())])])
    MeterBatch.objects.create(id=uuid.uuid4(), applied_at=datetime.now(UTC) - timedelta(days=3))

    assert tasks.forget_batches() == 1
    assert MeterBatch.objects.count() == 1


def test_tasks_survive_a_redis_that_is_away(settings, issue):
    settings.REDIS_URL = "unix:///nowhere/redis.sock"
    assert (tasks.flush_metering(), tasks.store_activations(), tasks.re_evict_recent()) == (0, 0, 0)


def test_the_database_allows_one_open_session_a_pair(issue):
    issued = issue()
    services.apply_batches([(uuid.uuid4(), [row(issued)])])
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_indexes WHERE indexname = 'proxy_session_one_open'")
        assert cursor.fetchone() == (1,)


# --- why sessions end


def reasons(issued):
    """Return why each session ended, in the order of their beginnings; empty for an open one."""
    return list(issued.token.sessions.order_by("started_at").values_list("ended_reason", flat=True))


def apply(*rows):
    services.apply_batches([(uuid.uuid4(), list(rows))])


def test_revocation_ends_sessions_at_once_and_late_counts_stay_with_them(live, issue):
    """Without a task that closes them; what was under way is counted, and opens no session of a token that is out."""
    issued, other = issue(), issue()
    with live.client(issued.secret) as client, live.client(other.secret) as neighbour:
        client.get("bytes/1000")
        neighbour.get("json")
        handed_over(live)
        assert reasons(issued) == [""]
        # Counted after the revocation, by a worker that has not handed it over yet.
        client.get("bytes/1000")
        wait_until(lambda: len(live.gateway.registry) == 0, what="the end of the exchange")
        revoke_token(token_id=issued.token.pk, actor=None, refund=False)
        assert reasons(issued) == ["revoked"]
        handed_over(live)

    session = issued.token.sessions.get()
    assert (session.requests, session.bytes_out) == (2, 2000)
    assert session.last_activity_at <= session.ended_at
    assert reasons(other) == [""]


def test_a_stream_that_is_cut_belongs_to_the_session_that_ended(live, issue):
    issued = issue()
    with live.client(issued.secret) as client, client.stream("GET", "events?n=0&interval=0.05") as stream:
        pieces = stream.iter_raw()
        next(pieces)
        live.run(live.gateway.meter.flush())
        wait_until(lambda: tasks.flush_metering() and issued.token.sessions.exists(), what="the session")
        revoke_token(token_id=issued.token.pk, actor=None, refund=False)
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in pieces:
                pass
    handed_over(live)

    assert reasons(issued) == ["revoked"]
    assert issued.token.sessions.get().requests == 1


def test_disabling_the_owner_ends_their_sessions_at_once(issue):
    issued, other = issue(), issue()
    second = issue(owner=issued.token.owner)
    apply(row(issued), row(second), row(other))

    set_user_active(user_id=issued.token.owner_id, active=False, actor=None, reason="a test")

    assert (reasons(issued), reasons(second), reasons(other)) == (["owner_disabled"], ["owner_disabled"], [""])
    set_user_active(user_id=issued.token.owner_id, active=True, actor=None, reason="a test")
    apply(row(issued, at=datetime.now(UTC) + timedelta(seconds=3)))
    assert reasons(issued) == ["owner_disabled", ""]


def test_the_sweep_ends_what_no_signal_told_of(issue):
    issued = issue()
    apply(row(issued))
    get_user_model().objects.filter(pk=issued.token.owner_id).update(is_active=False)

    assert tasks.close_sessions() == 1
    assert reasons(issued) == ["owner_disabled"]


def test_another_device_ends_the_session_of_the_one_before(issue):
    issued = issue()
    now = datetime.now(UTC)
    apply(row(issued, at=now - timedelta(minutes=6)))
    apply(row(issued, at=now, device="another-device"))

    old, new = issued.token.sessions.order_by("started_at")
    assert (old.ended_reason, milliseconds(old.ended_at)) == ("device_changed", milliseconds(now))
    assert (new.device_id, new.ended_at) == ("another-device", None)
    # Counts of the first that come late are its own.
    apply(row(issued, at=now - timedelta(minutes=5)), row(issued, at=now, device="another-device"))
    assert reasons(issued) == ["device_changed", ""]
    assert list(issued.token.sessions.order_by("started_at").values_list("requests", flat=True)) == [2, 2]
    # It comes back for good.
    apply(row(issued, at=now + timedelta(minutes=6)))
    assert reasons(issued) == ["device_changed", "device_changed", ""]


def test_both_devices_in_one_batch_end_the_earlier_one(issue):
    issued = issue()
    now = datetime.now(UTC)
    apply(row(issued, at=now - timedelta(seconds=2)), row(issued, at=now, device="another-device"))

    assert reasons(issued) == ["device_changed", ""]


@pytest.mark.parametrize("whose", ["token", "tier"])
def test_devices_with_seats_end_nobodys_session(issue, allow, whose):
    issued = issue()
    if whose == "token":
        allow(issued, seats=2)
    else:
        set_tier_limits(tier="free", limits={"seats": 2}, actor=None, reason="a test")
    now = datetime.now(UTC)
    apply(row(issued, at=now - timedelta(seconds=2)))
    apply(row(issued, at=now, device="another-device"))

    assert reasons(issued) == ["", ""]


def test_counts_of_before_a_release_do_not_bring_the_device_back(issue):
    issued = issue()
    now = datetime.now(UTC)
    apply(row(issued, at=now - timedelta(seconds=9)))
    release_device(token_id=issued.token.pk, owner=issued.token.owner)
    apply(row(issued, at=now))
    assert reasons(issued) == ["device_released"]
    assert issued.token.sessions.get().requests == 2

    apply(row(issued, at=datetime.now(UTC) + timedelta(seconds=1)))
    assert reasons(issued) == ["device_released", ""]
