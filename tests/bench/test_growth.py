"""Cost as work grows: the rows are those that sales leave, and the figures say what they claim."""

import json
import os
import subprocess
import sys
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.db import IntegrityError

from proxy import keys
from proxy.selectors import admission_by_digest
from tests.bench import growth_rows
from tests.bench.growth import CONNECTIONS, Cold, Footprint, Growth, Tokens, Warm, keys_by_kind, remember
from tests.bench.growth_rows import ALL_LIMITS, ALL_NETWORKS, Known, Lookup
from tests.bench.nginx import Front
from tests.bench.processes import REPOSITORY, BenchError
from tests.bench.report import cold_table, footprint_table, growth_findings, warm_table
from tests.bench.test_bench import cells
from tests.upstream import RecordingUpstream, unused_port
from tokens import secrets
from tokens.selectors import changed_since, check_token
from wallet.reconciliation import reconcile
from zenzefi.lib import clock
from zenzefi.lib import redis as redis_client

AccessToken = apps.get_model("tokens.AccessToken")
LOOKUP = Lookup(tokens=100, statements=3, sql_p50=0.0003, sql_p99=0.0006, call_p50=0.002)


# --- rows


@pytest.mark.django_db(transaction=True)
def test_tokens_made_at_once_are_as_sold() -> None:
    known = growth_rows.grow(total=200, known=30)
    assert AccessToken.objects.count() == 200
    assert len({(one.token_id, one.secret) for one in known}) == 30
    for one in known:
        token = check_token(one.secret)
        assert token is not None and token.is_usable
        assert (str(token.pk), str(token.owner_id), token.last_four) == (one.token_id, one.owner_id, one.secret[-4:])
    assert [outcome for outcome in reconcile() if outcome.drifts] == []
    # Nothing that the sweeps of a running gateway would look after.
    assert changed_since(clock.now() - timedelta(hours=2)) == []
    assert not AccessToken.objects.due_for_renewal().exists()
    assert not AccessToken.objects.newly_expired().exists()


@pytest.mark.django_db(transaction=True)
def test_a_copy_differs_from_what_the_service_left_only_in_what_is_its_own() -> None:
    growth_rows.grow(total=20, known=20)
    own = {"id", "owner_id", "digest", "last_four", "purchase_source", "activated_at", "expires_at", "changed_at"}
    [sold, copied] = [
        [{name: value for name, value in row.items() if name not in own} for row in rows]
        for rows in (
            AccessToken.objects.filter(activated_at=None).order_by("paid").values(),
            AccessToken.objects.exclude(activated_at=None).order_by("paid").values(),
        )
    ]
    assert len(sold) == 10 and sold == copied


@pytest.mark.django_db(transaction=True)
def test_tokens_grow_to_a_number_and_the_last_known_get_every_limit() -> None:
    first = growth_rows.grow(total=10, known=10)
    more = growth_rows.grow(total=60, known=40, limited=15)
    assert AccessToken.objects.count() == 60
    assert [len(first), len(more)] == [10, 40]
    assert growth_rows.grow(total=60, known=10) == []
    for one in (*first, *more[:25]):
        admission = admission_by_digest(secrets.digest(one.secret))
        assert admission is not None and not admission.limits.has_quotas
    for one in more[25:]:
        admission = admission_by_digest(secrets.digest(one.secret))
        assert admission is not None and admission.limits.networks == ALL_NETWORKS
        limits = admission.limits
        assert {
            "requests_per_minute": limits.rate,
            "seats": limits.seats,
            "concurrent_requests": limits.concurrency,
            "bandwidth": limits.bandwidth,
            **{name: getattr(limits, name) for name in ALL_LIMITS if name.endswith(("_day", "_month"))},
        } == ALL_LIMITS


@pytest.mark.django_db(transaction=True)
def test_the_database_checks_what_is_copied() -> None:
    """A row that no sale could leave is refused, and nothing stays of the others."""
    growth_rows.grow(total=10, known=10)
    real = growth_rows._copy_rows

    def unpaid(cursor: Any, table: str, source: str, /, **columns: str) -> None:
        real(cursor, table, source, **columns, **({"paid": "-1"} if table == "tokens_accesstoken" else {}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growth_rows, "_copy_rows", unpaid)
        with pytest.raises(IntegrityError, match="tokens_token_paid_not_negative"):
            growth_rows.grow(total=20, known=20)
    assert AccessToken.objects.count() == 10
    assert [outcome for outcome in reconcile() if outcome.drifts] == []


@pytest.mark.django_db(transaction=True)
def test_lookup_counts_statements_and_their_time() -> None:
    growth_rows.grow(total=20, known=20)
    found = growth_rows.measure_lookup()
    assert (found.tokens, found.statements) == (20, 3)
    assert 0 < found.sql_p50 <= found.sql_p99
    # Seconds, both of them.
    assert found.sql_p50 / 10 < found.call_p50 < found.sql_p50 * 1000


# --- Redis


def _known(count: int) -> list[Known]:
    # Other tests' keys, in the same Redis, name none of them.
    run = uuid.uuid4().hex
    return [Known(f"token-{run}-{number}", f"owner-{number}", secrets.generate()) for number in range(count)]


def test_keys_are_found_by_token_and_digest() -> None:
    client: Any = redis_client.client()
    [one, other, stranger] = _known(3)
    for name in (keys.credential(secrets.digest(one.secret)), keys.device(one.token_id), keys.device(other.token_id)):
        client.set(name, 1)
    for name in (keys.device(stranger.token_id), keys.meter_stream(), f"{redis_client.key('elsewhere')}"):
        client.set(name, 1)
    assert {kind: len(names) for kind, names in keys_by_kind(client, [one, other]).items()} == {"cred": 1, "dev": 2}


def test_tokens_are_remembered_as_another_one_is() -> None:
    client: Any = redis_client.client()
    [example, *others] = _known(1002)
    name = keys.credential(secrets.digest(example.secret))
    client.hset(name, mapping={"t": example.token_id, "u": example.owner_id, "s": "full", "d": 3600})
    client.pexpire(name, 500_000)
    remember(client, example, others)
    for one in (others[0], others[-1]):
        own = keys.credential(secrets.digest(one.secret))
        assert client.hgetall(own) == {
            b"t": one.token_id.encode(),
            b"u": one.owner_id.encode(),
            b"s": b"full",
            b"d": b"3600",
        }
        assert 0 < client.pttl(own) <= 500_000


# --- loads


@pytest.mark.wrk
def test_walk_uses_each_token_and_no_other(tmp_path: Path) -> None:
    known = [secrets.generate() for _ in range(3000)]
    with RecordingUpstream() as upstream:
        headers = {"X-Access-Token": "none of them", "X-Device-ID": "device-0001"}
        tokens = Tokens(tmp_path, Front("upstream", upstream.url, list, headers), 1)
        walked = list(tokens.walk(known, loads=60))
        requests = upstream.requests
    seen = [dict(exchange.headers)[b"X-Access-Token"].decode() for exchange in requests]
    assert set(seen) == set(known)
    assert {dict(exchange.headers)[b"X-Device-ID"] for exchange in requests} == {b"device-0001"}
    used = [so_far for _, so_far in walked]
    assert used == sorted(used) and used[-1] >= len(known) > ([0, *used][-2])
    # Each load takes the list up where the one before it was cut off: a token comes twice only there.
    # Those of one round through the list and of the next may arrive in any order.
    first = min(walked[0][0].requests, len(known) - CONNECTIONS)
    assert len(set(seen[:first])) == first


@pytest.mark.wrk
def test_walk_gives_up_where_nothing_answers(tmp_path: Path) -> None:
    front = Front("nobody", f"http://127.0.0.1:{unused_port()}", list)
    with pytest.raises(BenchError):
        list(Tokens(tmp_path, front, 1).walk([secrets.generate()], loads=2))


# --- tables


def test_warm_loads_are_compared_with_the_fewest_active_tokens() -> None:
    measured = [
        Warm(10, 10, 8000, 0.001, 0.002, 0),
        Warm(1000, 1000, 3000, 0.003, 0.004, 2),
        Warm(1000, 10, 6000, 0.001, 0.002, 0),
    ]
    assert cells(warm_table(measured))[1:] == [
        ["10", "10", "8000", "1.000", "1.00", "2.00", "0"],
        ["1000", "1000", "3000", "0.500", "3.00", "4.00", "2"],
        ["1000", "10", "6000", "1.000", "1.00", "2.00", "0"],
    ]


def test_misses_without_a_whole_load_have_no_rate() -> None:
    measured = [Cold(LOOKUP, 0, None, None, None, 0), Cold(LOOKUP, 3, 450, 400, 500, 1)]
    assert cells(cold_table(measured))[1:] == [
        ["100", "-", "0", "3", "0.30", "0.60", "2.00"],
        ["100", "450 (400-500)", "1", "3", "0.30", "0.60", "2.00"],
    ]


def test_memory_is_shown_by_kind_of_key() -> None:
    measured = [
        Footprint("plain", 100, 1000.4, {"cred": 200, "dev": 100}, 1000, 6100, 0),
        Footprint("limited", 100, 2000, {"cred": 900, "seat": 130}, 500, 3000, 0),
    ]
    head, *rows = cells(footprint_table(measured))
    assert head[1:5] == ["used_memory", "cred", "dev", "seat"]
    assert rows == [
        ["plain", "1000", "200", "100", "", "1000", "6.1", "0"],
        ["limited", "2000", "900", "", "130", "500", "6.0", "0"],
    ]


@pytest.mark.parametrize("where", ["warm", "cold", "footprints"])
def test_any_error_is_a_miss(where: str) -> None:
    def measured(warm: int, cold: int, footprints: int) -> Growth:
        return Growth(
            [Warm(10, 10, 8000, 0.001, 0.002, warm)],
            [Cold(LOOKUP, 1, 450, 450, 450, cold)],
            [Footprint("plain", 100, 1000, {}, 1000, 6100, footprints)],
        )

    assert [finding.met for finding in growth_findings(measured(0, 0, 0))] == [True]
    counts = {"warm": 0, "cold": 0, "footprints": 0} | {where: 1}
    assert [finding.met for finding in growth_findings(measured(**counts))] == [False]


# --- the whole of it


@pytest.mark.slow
@pytest.mark.nginx
@pytest.mark.wrk
@pytest.mark.timeout(600)
def test_growth_is_measured_on_the_gateway(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--only=growth", "--growth-tokens=10,1000", "--growth-active=10,500", "--growth-seconds=1"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *arguments, "--growth-footprints=50", "--json", str(file)],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=560,
    )
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(file.read_text())
    measured = figures["growth"]
    assert [(one["stored"], one["active"], one["errors"]) for one in measured["warm"]] == [
        (10, 10, 0),
        (1000, 10, 0),
        (1000, 500, 0),
    ]
    assert all(one["requests_per_second"] > 0 and 0 < one["p50"] <= one["p99"] for one in measured["warm"])
    assert [one["lookup"]["tokens"] for one in measured["cold"]] == [10, 1000]
    [plain, limited] = measured["footprints"]
    assert {"cred", "dev", "rate", "use"} <= set(plain["keys"])
    assert {"cred", "seat", "rate", "day", "month", "use"} <= set(limited["keys"])
    assert limited["keys"]["cred"] > plain["keys"]["cred"] > 100
    assert all(6 <= one["window"] / one["window_requests"] < 8 for one in (plain, limited))
    assert [finding["met"] for finding in figures["findings"]] == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
