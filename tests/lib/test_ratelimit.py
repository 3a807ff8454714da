"""The sliding window."""

from __future__ import annotations

import pytest
import redis as redis_package
from django.test import RequestFactory

from tests.redis_server import own_redis, start  # noqa: F401 - a fixture
from tests.threads import run_at_once
from tests.upstream import wait_until
from zenzefi.lib import ratelimit, redis
from zenzefi.lib.errors import RateLimited, ServiceUnavailable
from zenzefi.settings.env import RatePolicy

POLICY = RatePolicy(limit=5, seconds=60)


def check(subject: str = "ada", policy: RatePolicy = POLICY) -> ratelimit.Decision:
    return ratelimit.check("auth", subject, policy)


def age_window(subject: str, seconds: float) -> None:
    """Let every admission of the window lie further back, as if time had passed."""
    client, key = redis.client(), redis.key("rate", "auth", subject)
    for index, moment in enumerate(client.lrange(key, 0, -1)):
        client.lset(key, index, str(int(moment) - int(seconds * 1000)))


def test_exactly_the_limit_passes():
    decisions = [check() for _ in range(8)]

    assert [decision.allowed for decision in decisions] == [True] * 5 + [False] * 3
    assert [decision.remaining for decision in decisions] == [4, 3, 2, 1, 0, 0, 0, 0]


def test_exactly_the_limit_passes_at_any_concurrency():
    policy = RatePolicy(limit=50, seconds=60)

    decisions = run_at_once(16, lambda _: [check(policy=policy).allowed for _ in range(10)])

    assert sum(sum(allowed) for allowed in decisions) == 50


def test_the_window_slides_and_does_not_start_afresh():
    check()
    age_window("ada", 30)
    for _ in range(4):
        check()

    refused = check()
    assert not refused.allowed
    assert 1 <= refused.reset_seconds <= 30
    age_window("ada", 30)
    # Only the oldest has left.
    assert check().allowed
    assert not check().allowed


def test_a_refused_request_does_not_prolong_the_wait():
    for _ in range(5):
        check()
    for _ in range(100):
        check()

    assert redis.client().llen(redis.key("rate", "auth", "ada")) == 5
    age_window("ada", 60)
    assert check().allowed


def test_subjects_and_policies_do_not_mix():
    for _ in range(5):
        check("ada")

    assert check("grace").allowed
    assert ratelimit.check("api", "ada", POLICY).allowed


def test_the_window_forgets_itself():
    policy = RatePolicy(limit=5, seconds=1)
    check(policy=policy)
    key = redis.key("rate", "auth", "ada")

    # Negative: it has gone meanwhile (-2), not that it stays (-1).
    left = redis.client().pttl(key)
    assert left <= 1000 and left != -1
    wait_until(lambda: not redis.client().exists(key), what="the end of the window")


def test_the_fields_of_the_answer():
    allowed = check()
    assert allowed.headers() == {"RateLimit-Policy": '"auth";q=5;w=60', "RateLimit": '"auth";r=4;t=60'}
    for _ in range(4):
        check()

    fields = check().headers()
    assert fields["RateLimit"].startswith('"auth";r=0;t=')
    assert 1 <= int(fields["Retry-After"]) <= 60


def test_enforcing_refuses_with_the_fields(settings):
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "auth": RatePolicy(limit=1, seconds=60)}
    request = RequestFactory().post("/")
    ratelimit.enforce(request, "auth", "ada")
    assert request.rate_limit.remaining == 0  # type: ignore[attr-defined]

    with pytest.raises(RateLimited) as refused:
        ratelimit.enforce(request, "auth", "ada")

    assert set(refused.value.headers) == {"RateLimit-Policy", "RateLimit", "Retry-After"}


def test_each_class_decides_what_happens_without_redis(own_redis):  # noqa: F811
    own_redis.stop()
    request = RequestFactory().post("/")

    with pytest.raises(ServiceUnavailable) as refused:
        ratelimit.enforce(request, "auth", "ada")
    assert refused.value.headers["Retry-After"] == "2"
    ratelimit.enforce(request, "api", "ada", fail_open=True)
    with pytest.raises(redis_package.RedisError):
        check()


def test_a_redis_that_cannot_write_counts_as_away(own_redis):  # noqa: F811
    redis.client().config_set("maxmemory", "1")

    with pytest.raises(ServiceUnavailable):
        ratelimit.enforce(RequestFactory().post("/"), "auth", "ada")


def test_the_first_call_after_a_restart_passes(own_redis):  # noqa: F811
    """Its pooled connection is dead; one retry on a new one is enough."""
    assert check().allowed
    own_redis.stop()
    start(own_redis)

    assert check().allowed
