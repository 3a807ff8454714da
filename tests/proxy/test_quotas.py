"""Quotas of requests and bytes, by UTC day and month: counted, refused, cut, told, and not forgotten."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, date, datetime, timedelta

import httpx
import pytest

from notifications.models import OutboxEvent
from proxy import keys, services
from proxy.administration import set_tier_limits
from proxy.limits import day_number, first_day, month_number, next_period
from proxy.models import QuotaNotice, TokenUsage
from proxy.redis_link import Script
from tests.proxy.live import LiveGateway
from tests.proxy.load import hammer
from tests.proxy.moments import stay_in_one_day
from tests.proxy.test_metering import handed_over, row
from tests.proxy.test_refusals import assert_refused
from tests.proxy.test_revocation import CUT_WITHIN
from tests.proxy.test_websocket import open_socket
from tests.redis_server import forget_keys
from tests.threads import run_at_once
from tests.upstream import wait_until
from zenzefi.lib import clock
from zenzefi.lib import redis as redis_client


@pytest.fixture(autouse=True)
def _one_day():
    stay_in_one_day()


def admitted(issued):
    day = redis_client.client().hget(keys.day_usage(issued.token.pk, day_number(clock.now())), "admitted")
    return int(day or 0)


# --- the calendar


MOMENTS = [
    "1970-01-01T00:00:00",
    "2000-02-29T23:59:59",
    "2000-03-01T00:00:00",
    "2024-02-28T12:00:00",
    "2024-02-29T12:00:00",
    "2024-03-01T00:00:00",
    "2026-01-31T23:59:59",
    "2026-02-28T23:59:59",
    "2026-12-31T23:59:59",
    "2027-01-01T00:00:00",
    "2100-02-28T23:59:59",
    "2100-03-01T00:00:00",
]


def test_redis_and_python_have_the_same_calendar(transactional_db):
    source = Script("flush").source.decode()
    body = source[source.index("-- Sets day and month") : source.index("for i = 5")]
    reckon = redis_client.client().register_script(f"local now = ARGV[1] + 0\n{body}\nreturn {{day, month}}")
    moments = [datetime.fromisoformat(text).replace(tzinfo=UTC) for text in MOMENTS]
    moments += [datetime(2020, 1, 1, tzinfo=UTC) + timedelta(hours=37 * number) for number in range(2000)]
    for moment in moments:
        assert reckon(args=[round(moment.timestamp() * 1000)]) == [day_number(moment), month_number(moment)], moment


@pytest.mark.parametrize(
    ("rule", "moment", "begins", "ends"),
    [
        ("requests_per_day", "2026-11-21T13:00:00+00:00", "2026-11-21", "2026-11-22"),
        ("bytes_per_day", "2026-11-21T00:30:00+03:00", "2026-11-20", "2026-11-21"),
        ("requests_per_month", "2026-12-31T23:59:59+00:00", "2026-12-01", "2027-01-01"),
        ("bytes_per_month", "2024-02-29T10:00:00+00:00", "2024-02-01", "2024-03-01"),
    ],
)
def test_periods(rule, moment, begins, ends):
    at = datetime.fromisoformat(moment)
    assert first_day(rule, at) == datetime.fromisoformat(begins).replace(tzinfo=UTC)
    assert next_period(rule, at) == datetime.fromisoformat(ends).replace(tzinfo=UTC)


# --- requests


def test_requests_are_counted_exactly_over_gateways(live, upstream, issue, allow):
    issued = issue()
    allow(issued, requests_per_day=40)
    with LiveGateway().running() as other:
        codes = hammer([live, other], issued.secret, connections=64)

    assert codes == {200: 40, 429: 24}
    assert len(upstream.requests) == admitted(issued) == 40


@pytest.mark.parametrize("rule", ["requests_per_day", "requests_per_month"])
def test_a_used_up_quota_says_which_and_until_when(live, upstream, issue, allow, rule):
    issued = issue()
    allow(issued, **{rule: 2})
    with live.client(issued.secret) as client:
        assert [client.get("json").status_code for _ in range(2)] == [200, 200]
        refused = client.get("json")
        status = client.get("status").json()

    assert_refused(refused, 429, "quota_exceeded")
    body = refused.json()
    now = clock.now()
    assert (body["rule"], body["limit"]) == (rule, 2)
    assert datetime.fromisoformat(body["reset_at"]) == next_period(rule, now)
    assert int(refused.headers["retry-after"]) == body["retry_after"]
    assert abs(body["retry_after"] - (next_period(rule, now) - now).total_seconds()) < 30
    window = ";w=86400" if rule == "requests_per_day" else ""
    assert refused.headers["ratelimit-policy"] == f'"{rule}";q=2{window}'
    assert refused.headers["ratelimit"] == f'"{rule}";r=0;t={body["retry_after"]}'
    assert len(upstream.requests) == 2
    # The window has room: a refusal does not count there.
    assert redis_client.client().llen(f"{keys.prefix()}rate:{issued.token.pk}") == 2
    assert status["limits"][rule] == 2


def test_a_request_that_no_server_answered_is_given_back(live, upstream, issue, allow):
    issued = issue()
    allow(issued, requests_per_day=5, requests_per_month=5)
    with live.client(issued.secret) as client:
        assert client.get("json").status_code == 200
        upstream.stop()
        assert client.get("json").status_code == 502
        wait_until(lambda: admitted(issued) == 1, what="the request given back")


def test_the_next_day_has_a_quota_of_its_own(live, issue, allow):
    issued = issue()
    allow(issued, requests_per_day=1, requests_per_month=3)
    client = redis_client.client()
    today, month = day_number(clock.now()), month_number(clock.now())
    with live.client(issued.secret) as caller:
        assert [caller.get("json").status_code for _ in range(2)] == [200, 429]
        # Midnight: what is today's becomes yesterday's, the month goes on.
        client.rename(keys.day_usage(issued.token.pk, today), keys.day_usage(issued.token.pk, today - 1))
        assert [caller.get("json").status_code for _ in range(2)] == [200, 429]
        client.rename(keys.day_usage(issued.token.pk, today), keys.day_usage(issued.token.pk, today - 2))
        assert caller.get("json").status_code == 200
        client.delete(keys.day_usage(issued.token.pk, today))
        refused = caller.get("json")
        assert refused.json()["rule"] == "requests_per_month"
        # And the first of the next month.
        client.rename(keys.month_usage(issued.token.pk, month), keys.month_usage(issued.token.pk, month - 1))
        assert caller.get("json").status_code == 200


# --- bytes


@pytest.mark.parametrize("rule", ["bytes_per_day", "bytes_per_month"])
def test_bytes_are_refused_once_they_are_counted(live, upstream, issue, allow, rule):
    issued = issue()
    allow(issued, **{rule: 10_000})
    with live.client(issued.secret) as client:
        client.post("sink", content=b"x" * 6_000)
        assert client.get("json").status_code == 200
        client.get("bytes/6000")
        wait_until(lambda: client.get("json").status_code == 429, what="the quota's end")
        refused = client.get("json")

    assert_refused(refused, 429, "quota_exceeded")
    assert (refused.json()["rule"], refused.json()["limit"]) == (rule, 10_000)
    assert refused.headers["ratelimit-policy"].endswith(';qu="content-bytes"')


def test_an_open_stream_is_cut_at_the_quota(live, issue, allow):
    issued = issue()
    allow(issued, bytes_per_day=2_000)
    received, reached = 0, None
    with live.client(issued.secret) as client, client.stream("GET", "events?n=0&interval=0.02") as stream:
        with pytest.raises(httpx.RemoteProtocolError):
            for piece in stream.iter_raw():
                received += len(piece)
                if reached is None and received >= 2_000:
                    reached = time.monotonic()
                assert reached is None or time.monotonic() - reached < CUT_WITHIN
        assert reached is not None
    with live.client(issued.secret) as client:
        assert_refused(client.get("json"), 429, "quota_exceeded")
        # The token itself is as good as before.
        assert client.get("status").status_code == 200


def test_a_websocket_is_closed_at_the_quota(live, issue, allow):
    issued = issue()
    allow(issued, bytes_per_month=2_000)
    with open_socket(live, issued.secret) as peer:
        peer.send("x" * 3_000)
        peer.recv(20)
        with pytest.raises(Exception, match="quota_exceeded"):
            peer.recv(20)


# --- what is kept


def test_a_redis_that_lost_everything_learns_the_usage_again(live, issue, allow):
    issued = issue()
    allow(issued, requests_per_day=3, bytes_per_month=100_000)
    with live.client(issued.secret) as client:
        assert [client.get("bytes/4000").status_code for _ in range(3)] == [200] * 3
        handed_over(live)
        assert TokenUsage.objects.get().requests == 3
        forget_keys(keys.prefix())

        assert_refused(client.get("json"), 429, "quota_exceeded")
        assert client.get("status").json()["usage"]["this_month"]["bytes_out"] >= 12_000
        # What Redis knows is never counted down or doubled by another look into PostgreSQL.
        allow(issued, requests_per_day=4)
        assert [client.get("json").status_code for _ in range(2)] == [200, 429]
        allow(issued, requests_per_day=5)
        assert [client.get("json").status_code for _ in range(2)] == [200, 429]


def test_usage_is_kept_by_day(issue):
    issued = issue()
    night = datetime(2026, 3, 1, 0, 0, 1, tzinfo=UTC)
    rows = [row(issued, at=night - timedelta(seconds=2)), row(issued, at=night), row(issued, at=night, device="d" * 8)]
    identity = uuid.uuid4()
    for _ in range(2):
        services.apply_batches([(identity, rows)])
    services.apply_batches([(uuid.uuid4(), [row(issued, at=night, requests=5)])])

    assert list(TokenUsage.objects.order_by("day").values_list("day", "requests", "bytes_in", "bytes_out")) == [
        (date(2026, 2, 28), 1, 10, 20),
        (date(2026, 3, 1), 7, 30, 60),
    ]


# --- notices


def notices():
    return [
        (event.event, event.data["rule"], event.data["threshold"])
        for event in OutboxEvent.objects.filter(event__startswith="quota.").order_by("created_at")
    ]


def test_the_owner_is_told_at_80_and_100_per_cent_once(issue, allow):
    issued = issue()
    allow(issued, requests_per_day=10, bytes_per_month=1000)
    for _ in range(7):
        services.apply_batches([(uuid.uuid4(), [row(issued, bytes_in=0, bytes_out=1)])])
    assert notices() == []
    services.apply_batches([(uuid.uuid4(), [row(issued, bytes_in=0, bytes_out=1)])])
    services.apply_batches([(uuid.uuid4(), [row(issued, bytes_in=0, bytes_out=1)])])
    assert notices() == [("quota.warning", "requests_per_day", 80)]
    services.apply_batches([(uuid.uuid4(), [row(issued, bytes_in=0, bytes_out=1)])])
    services.apply_batches([(uuid.uuid4(), [row(issued, bytes_in=0, bytes_out=1)])])
    assert notices()[1:] == [("quota.reached", "requests_per_day", 100)]
    # Both at once: one notice.
    services.apply_batches([(uuid.uuid4(), [row(issued, bytes_in=2000, bytes_out=1)])])
    assert notices()[2:] == [("quota.reached", "bytes_per_month", 100)]

    last = OutboxEvent.objects.filter(event="quota.reached").latest("created_at")
    assert last.user_id == issued.token.owner_id
    assert last.data["token_id"] == str(issued.token.pk)
    assert (last.data["limit"], last.data["used"] > 1000) == (1000, True)


def test_a_new_period_gives_notice_again(issue, allow, monkeypatch):
    issued = issue()
    allow(issued, requests_per_day=1)
    now = clock.now()
    for later in (timedelta(), timedelta(days=1)):
        monkeypatch.setattr("proxy.quotas.clock.now", lambda later=later: now + later)
        services.apply_batches([(uuid.uuid4(), [row(issued, at=now + later)])])

    assert notices() == [("quota.reached", "requests_per_day", 100)] * 2
    assert QuotaNotice.objects.filter(threshold=100).values("period").distinct().count() == 2


def test_a_quota_of_the_tier_gives_notice_and_superusers_have_none(issue):
    set_tier_limits(tier="free", limits={"requests_per_month": 1}, actor=None, reason="a test")
    services.apply_batches([(uuid.uuid4(), [row(issue()), row(issue(superuser=True))])])

    assert notices() == [("quota.reached", "requests_per_month", 100)]


@pytest.mark.django_db(transaction=True)
def test_many_workers_at_once_give_one_notice(issue, allow):
    issued = issue()
    allow(issued, requests_per_day=8)

    results = run_at_once(8, lambda _number: services.apply_batches([(uuid.uuid4(), [row(issued)])]))

    assert results == [1] * 8
    assert TokenUsage.objects.get().requests == 8
    assert sorted(notices()) == [("quota.reached", "requests_per_day", 100), ("quota.warning", "requests_per_day", 80)]


def test_without_redis_quotas_are_what_postgresql_knows(upstream, settings, transactional_db, issue, allow):
    issued, other = issue(), issue()
    allow(issued, requests_per_day=1)
    allow(other, bytes_per_month=100)
    services.apply_batches([(uuid.uuid4(), [row(issued), row(other, bytes_in=60, bytes_out=60)])])
    settings.REDIS_URL = "unix:///nowhere/redis.sock?db=0"
    with LiveGateway().running() as live:
        for one, rule in ((issued, "requests_per_day"), (other, "bytes_per_month")):
            with live.client(one.secret) as client:
                refused = client.get("json")
                assert_refused(refused, 429, "quota_exceeded")
                assert refused.json()["rule"] == rule
    assert upstream.requests == []
