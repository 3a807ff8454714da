"""Fills PostgreSQL with tokens, many at once, as sales of bundles would have left them, and times the gateway's lookup.

Runs in a process of its own beside the gateway whose data directory it fills. The first bundle is bought through the
service; every further one is a copy of its rows with an owner, a payment and secrets of its own, so that the copies are
whatever the service leaves today and the database's constraints and triggers see each of them. Only the digest of a
token is stored: those that nobody is going to use get one that no secret has.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from tests.bench.gateway import FOREIGN_VARIABLES
from tests.bench.latency import percentile
from tests.bench.processes import REPOSITORY, BenchError

#: Tokens of one owner, all of one bundle.
BUNDLE = 10
HOURS = 720
BUNDLE_NAME = "Growth"
LOOKUPS = 200
#: Seconds for a million rows on a slow disk.
FILL_WITHIN = 600
#: Wide enough that nobody reaches them; all of them are looked at on every request.
ALL_LIMITS = {
    "requests_per_minute": 1_000_000,
    "seats": 2,
    "concurrent_requests": 10_000,
    "bandwidth": 10**12,
    "requests_per_day": 10**9,
    "requests_per_month": 10**9,
    "bytes_per_day": 10**14,
    "bytes_per_month": 10**14,
}
ALL_NETWORKS = ("127.0.0.0/8", "10.0.0.0/8")


@dataclass(frozen=True, slots=True)
class Lookup:
    """What one credential costs PostgreSQL: seconds of its own for all statements, and of the whole call."""

    tokens: int
    statements: int
    sql_p50: float
    sql_p99: float
    call_p50: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Known(NamedTuple):
    """A token that can be used."""

    token_id: str
    owner_id: str
    secret: str


@dataclass(frozen=True, slots=True)
class Filled:
    """The new tokens that can be used, those with limits last, and the lookup among all tokens."""

    known: list[Known]
    lookup: Lookup
    seconds: float


def fill(var_dir: Path, *, total: int, known: int, limited: int = 0) -> Filled:
    """Bring the tokens up to ``total`` in a child, with secrets for the first ``known`` of the new ones, of which the
    last ``limited`` get every limit. Raises :class:`BenchError`.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
    began = time.perf_counter()
    command = [sys.executable, "-m", "tests.bench.growth_rows"]
    command += [f"--total={total}", f"--known={known}", f"--limited={limited}"]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**inherited, "VAR_DIR": str(var_dir), "LOG_LEVEL": "WARNING"},
        capture_output=True,
        text=True,
        timeout=FILL_WITHIN,
    )
    if done.returncode:
        raise BenchError(f"the tokens could not be written:\n{done.stderr[-2000:]}")
    answer = json.loads(done.stdout)
    return Filled([Known(*one) for one in answer["known"]], Lookup(**answer["lookup"]), time.perf_counter() - began)


# --- in the child


def grow(*, total: int, known: int, limited: int = 0) -> list[Known]:
    """As :func:`fill` in a process that has Django; returns the known tokens."""
    tokens = _bundled()
    usable = [] if tokens.exists() else _first_bundle()
    missing = total - tokens.count()
    if missing > 0:
        usable += _copy_bundles(-(-missing // BUNDLE), known - len(usable))
    _limit(usable[len(usable) - limited :])
    return usable


def _bundled() -> Any:
    """The tokens that count: not the one that proves that the gateway works."""
    from django.apps import apps

    return apps.get_model("tokens.AccessToken").objects.filter(purchase_source__startswith="bundle:")


def _first_bundle() -> list[Known]:
    """Sell the bundle that all others are copies of; returns its tokens."""
    from django.contrib.auth import get_user_model

    from bundles.services import create_bundle, purchase_bundle
    from tests.factories import StaffFactory, UserFactory
    from wallet.services import top_up_mock

    bundle = create_bundle(
        actor=StaffFactory(password="!"),
        name=BUNDLE_NAME,
        token_count=BUNDLE,
        duration_hours=HOURS,
        discount_percent=Decimal(5),
    )
    buyer = UserFactory(password="!")
    top_up_mock(user=buyer, amount=bundle.total_price)
    bought = purchase_bundle(buyer=buyer, bundle_id=bundle.id)
    known = [Known(str(one.token.id), str(buyer.pk), one.secret) for one in bought.tokens]
    # No sweep takes it, or its copies, for news.
    get_user_model().objects.filter(pk=buyer.pk).update(created_at=_yesterday(), updated_at=_yesterday())
    _bundled().update(created_at=_yesterday(), changed_at=_yesterday())
    return known


def _yesterday() -> datetime:
    from zenzefi.lib import clock

    return clock.now() - timedelta(days=1)


def _copy_bundles(count: int, known: int) -> list[Known]:
    """Sell so many more at once; returns the first ``known`` tokens, if there are as many."""
    from django.db import connection, transaction

    from tokens import secrets

    issued = [secrets.generate() for _ in range(min(max(0, known), count * BUNDLE))]
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute(
            """
            CREATE TEMP TABLE first ON COMMIT DROP AS
              SELECT purchase.id AS purchase_id, buyer_id, account.id AS account_id
                FROM bundles_bundlepurchase AS purchase JOIN wallet_account AS account ON account.user_id = buyer_id
               WHERE bundle_name = %s ORDER BY purchase.created_at LIMIT 1
            """,
            [BUNDLE_NAME],
        )
        cursor.execute(
            """
            CREATE TEMP TABLE sale ON COMMIT DROP AS
              SELECT n, gen_random_uuid() AS buyer_id, gen_random_uuid() AS account_id,
                     gen_random_uuid() AS purchase_id, replace(gen_random_uuid()::text, '-', '') AS mark
                FROM generate_series(1, %s) AS n
            """,
            [count],
        )
        cursor.execute("CREATE TEMP TABLE known (n bigint PRIMARY KEY, digest text, last_four text) ON COMMIT DROP")
        with cursor.copy("COPY known FROM STDIN") as copy:
            for number, secret in enumerate(issued):
                copy.write_row((number, secrets.digest(secret), secret[-4:]))
        cursor.execute("ANALYZE first, sale, known")
        _copy_rows(
            cursor,
            "accounts_user",
            "sale WHERE row.id = (SELECT buyer_id FROM first)",
            id="sale.buyer_id",
            email="sale.mark || '@example.com'",
            username="sale.mark",
            referral_code="upper(left(sale.mark, length(row.referral_code)))",
        )
        _copy_rows(
            cursor,
            "wallet_account",
            "sale WHERE row.id = (SELECT account_id FROM first)",
            id="sale.account_id",
            user_id="sale.buyer_id",
        )
        _copy_rows(
            cursor,
            "bundles_bundlepurchase",
            "sale WHERE row.id = (SELECT purchase_id FROM first)",
            id="sale.purchase_id",
            buyer_id="sale.buyer_id",
        )
        # What was put in comes first, then what was paid.
        for side in ("credit", "debit"):
            _copy_rows(
                cursor,
                "wallet_transfer",
                f"sale WHERE row.{side}_account_id = (SELECT account_id FROM first)",
                public_id="gen_random_uuid()",
                source="split_part(row.source, ':', 1) || ':' || sale.purchase_id",
                **{f"{side}_account_id": "sale.account_id"},
            )
        # In use for an hour, with weeks to come: nothing of them is due.
        _copy_rows(
            cursor,
            "tokens_accesstoken",
            f"""
            (SELECT id AS first_id, row_number() OVER (ORDER BY id) - 1 AS place FROM tokens_accesstoken
              WHERE purchase_source = (SELECT 'bundle:' || purchase_id FROM first)) AS spot
            CROSS JOIN sale LEFT JOIN known ON known.n = (sale.n - 1) * {BUNDLE} + spot.place
            WHERE row.id = spot.first_id
            """,
            id="gen_random_uuid()",
            owner_id="sale.buyer_id",
            purchase_source="'bundle:' || sale.purchase_id",
            digest="coalesce(known.digest, encode(sha256(uuid_send(gen_random_uuid())), 'hex'))",
            last_four="coalesce(known.last_four, right(sale.mark, 4))",
            activated_at="now() - interval '1 hour'",
            expires_at="now() - interval '1 hour' + row.duration_hours * interval '1 hour'",
            device_id="''",
            device_seen_at="NULL::timestamptz",
            changed_at="now() - interval '1 day'",
        )
        cursor.execute(
            "SELECT token.id::text, owner_id::text FROM known JOIN tokens_accesstoken AS token USING (digest)"
            " ORDER BY known.n"
        )
        return [
            Known(token_id, owner_id, secret)
            for (token_id, owner_id), secret in zip(cursor.fetchall(), issued, strict=True)
        ]


def _copy_rows(cursor: Any, table: str, source: str, /, **columns: str) -> None:
    """Insert copies of rows of a table, itself named ``row`` in ``source``: more tables and the condition.

    ``columns`` are SQL expressions for what differs. An identity column numbers itself.
    """
    cursor.execute(
        "SELECT column_name FROM information_schema.columns"
        " WHERE table_schema = current_schema() AND table_name = %s AND is_identity = 'NO' ORDER BY ordinal_position",
        [table],
    )
    names = [name for (name,) in cursor.fetchall()]
    values = ", ".join(columns.get(name, f'row."{name}"') for name in names)
    quoted = ", ".join(f'"{name}"' for name in names)
    cursor.execute(f"INSERT INTO {table} ({quoted}) SELECT {values} FROM {table} AS row, {source}")


def _limit(usable: Sequence[Known]) -> None:
    from django.apps import apps

    limits = apps.get_model("proxy.TokenLimits")
    ids = [UUID(one.token_id) for one in usable]
    _bundled().filter(pk__in=ids).update(allowed_ips=list(ALL_NETWORKS))
    limits.objects.bulk_create(limits(token_id=token_id, **ALL_LIMITS) for token_id in ids)
    limits.objects.filter(pk__in=ids).update(updated_at=_yesterday())


def settle() -> None:
    """What PostgreSQL would do by and by after so many rows is done before anything is measured."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("VACUUM (ANALYZE) accounts_user, tokens_accesstoken, proxy_tokenlimits, wallet_transfer")
        cursor.execute("CHECKPOINT")


def measure_lookup() -> Lookup:
    """Look up some tokens, drawn from all that were sold in bundles, as the gateway does on a miss."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    from proxy.selectors import admission_by_digest

    tokens = _bundled()
    digests = list(tokens.order_by("?").values_list("digest", flat=True)[:LOOKUPS])
    calls, statements, own = [], 0, []
    for digest in digests:
        began = time.perf_counter()
        assert admission_by_digest(digest) is not None
        calls.append(time.perf_counter() - began)
    with connection.cursor() as cursor:
        for digest in digests:
            with CaptureQueriesContext(connection) as queries:
                admission_by_digest(digest)
            statements = max(statements, len(queries))
            spent = 0.0
            for query in queries.captured_queries:
                cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query['sql']}")
                [[report]] = cursor.fetchone()
                spent += (report["Planning Time"] + report["Execution Time"]) / 1000
            own.append(spent)
    return Lookup(tokens.count(), statements, percentile(own, 50), percentile(own, 99), percentile(calls, 50))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--total", type=int, required=True)
    parser.add_argument("--known", type=int, required=True)
    parser.add_argument("--limited", type=int, required=True)
    options = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "zenzefi.settings.base"

    import django

    django.setup()
    known = grow(total=options.total, known=options.known, limited=options.limited)
    settle()
    json.dump({"known": known, "lookup": measure_lookup().as_json()}, sys.stdout)


if __name__ == "__main__":
    main()
