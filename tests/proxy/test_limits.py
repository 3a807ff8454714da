"""The exact sliding window per token, its headers, and who bypasses it."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from proxy import keys
from tests.proxy.live import LiveGateway
from tests.proxy.test_refusals import assert_refused
from zenzefi.lib import redis as redis_client

#: Seconds. No test lasts as long, so that what is counted in it stays counted.
WINDOW = 60


@pytest.fixture
def window():
    return WINDOW


@pytest.fixture
def limited(settings, upstream, transactional_db, window):
    policy = settings.RATE_LIMITS["proxy"]
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "proxy": type(policy)(5, window)}
    with LiveGateway().running() as server:
        yield server


def test_the_limit_and_its_headers(limited, upstream, issue):
    with limited.client(issue().secret) as client:
        answers = [client.get("json") for _ in range(5)]
        refused = client.get("json")

    assert [answer.headers["ratelimit"].partition(";t=")[0] for answer in answers] == [
        f'"proxy";r={left}' for left in (4, 3, 2, 1, 0)
    ]
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"proxy";q=5;w=60'}
    assert_refused(refused, 429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= WINDOW
    assert refused.headers["ratelimit"].startswith('"proxy";r=0;t=')
    assert refused.headers["ratelimit-policy"] == '"proxy";q=5;w=60'
    assert len(upstream.requests) == 5


@pytest.mark.slow
@pytest.mark.parametrize("window", [6])
def test_the_window_slides(limited, issue):
    with limited.client(issue().secret) as client:
        assert client.get("json").status_code == 200
        time.sleep(3.5)
        assert [client.get("json").status_code for _ in range(5)] == [200, 200, 200, 200, 429]
        time.sleep(2.6)
        # Only the first has left the window: a fixed window would let five through now.
        assert [client.get("json").status_code for _ in range(2)] == [200, 429]


def test_exact_under_concurrency_and_over_workers(limited, upstream, issue):
    issued = issue()
    codes: list[int] = []
    with LiveGateway().running() as other:

        def send(server):
            with server.client(issued.secret) as client:
                for _ in range(4):
                    codes.append(client.get("json").status_code)

        threads = [threading.Thread(target=send, args=(server,)) for server in (limited, other) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert Counter(codes) == {200: 5, 429: 35}
    assert len(upstream.requests) == 5


def test_tokens_have_windows_of_their_own_and_an_address_has_none(limited, issue):
    with limited.client(issue().secret) as first, limited.client(issue().secret) as second:
        assert [first.get("json").status_code for _ in range(6)] == [200] * 5 + [429]
        assert second.get("json", headers={"X-Forwarded-For": "1.2.3.4"}).status_code == 200
        assert first.get("json", headers={"X-Forwarded-For": "1.2.3.4"}).status_code == 429


def test_superusers_bypass_it(limited, issue):
    with limited.client(issue(superuser=True).secret) as client:
        answers = [client.get("json") for _ in range(8)]

    assert {answer.status_code for answer in answers} == {200}
    assert not any("ratelimit" in answer.headers for answer in answers)


def test_refused_and_status_requests_are_not_counted(limited, issue):
    issued = issue(scope="certificates_only")
    with limited.client(issued.secret) as client:
        for _ in range(6):
            client.get("system/version")
            client.get("status")
            client.get("certificates/filter", headers={"X-Device-ID": "short"})
        assert [client.get("certificates/filter").status_code for _ in range(6)] == [200] * 5 + [429]
        window = f"{keys.prefix()}rate:{issued.token.pk}"
        assert redis_client.client().llen(window) == 5
