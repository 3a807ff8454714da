"""What selling costs: tokens per second of one process, and the first page of a long history.

Runs in a process of its own with embedded servers in a directory of its own, as durable as ``make run`` has them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from decimal import Decimal
from itertools import cycle
from pathlib import Path
from typing import Any

from tests.bench.gateway import FOREIGN_VARIABLES
from tests.bench.latency import percentile
from tests.bench.processes import REPOSITORY, BenchError

HISTORY = 100_000
THREADS = (1, 8)
#: Besides the measured seconds: starting the servers, migrating, and writing the history.
OVERHEAD_SECONDS = 180
RICH = Decimal("90000000.00")


@dataclass(frozen=True, slots=True)
class Sales:
    """Purchases by some threads of one process; seconds are of one purchase, from the call to the commit."""

    buyers: str
    threads: int
    purchases: int
    per_second: float
    p50: float
    p99: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class History:
    """The first page of an account's transactions; seconds are PostgreSQL's own of the statement, the median."""

    transfers: int
    page_seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def purchases(directory: Path, *, seconds: float, history: int = HISTORY) -> tuple[list[Sales], History]:
    """Measure in a child, with so many seconds for all sales together. Raises :class:`BenchError`."""
    inherited = {name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES}
    command = [sys.executable, "-m", "tests.bench.purchases", f"--seconds={seconds}", f"--history={history}"]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**inherited, "VAR_DIR": str(directory), "LOG_LEVEL": "WARNING"},
        capture_output=True,
        text=True,
        timeout=seconds + OVERHEAD_SECONDS,
    )
    if done.returncode:
        raise BenchError(f"the purchases failed:\n{done.stderr[-2000:]}")
    answer = json.loads(done.stdout)
    return [Sales(**one) for one in answer["sales"]], History(**answer["history"])


def _sell(name: str, owners: Sequence[Any], *, threads: int, seconds: float) -> Sales:
    from django.db import connections

    from tokens.services import purchase_token

    start = threading.Barrier(threads)

    def buy(mine: Iterable[Any]) -> list[float]:
        took: list[float] = []
        start.wait()
        until = time.perf_counter() + seconds
        try:
            for owner in cycle(mine):
                began = time.perf_counter()
                if began > until:
                    break
                purchase_token(owner=owner, duration_hours=1)
                took.append(time.perf_counter() - began)
        finally:
            connections.close_all()
        return took

    # With one owner all threads have the same one.
    shares = [owners[number::threads] or owners for number in range(threads)]
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        took = [one for share in pool.map(buy, shares) for one in share]
    elapsed = time.perf_counter() - began
    return Sales(name, threads, len(took), len(took) / elapsed, percentile(took, 50), percentile(took, 99))


def _first_page(user: Any, other: Any, transfers: int) -> History:
    """Give both so many transfers, the other's being the newer ones, and read the first page of the user's."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    from wallet.selectors import transactions_of
    from wallet.services import open_account, system_account_id

    revenue = system_account_id("revenue")
    with connection.cursor() as cursor:
        for account in (open_account(user).pk, open_account(other).pk):
            cursor.execute(
                "INSERT INTO wallet_transfer (public_id, debit_account_id, credit_account_id, amount, kind, source,"
                " description, created_at) SELECT gen_random_uuid(),"
                " CASE WHEN n %% 2 = 0 THEN %s::uuid ELSE %s::uuid END,"
                " CASE WHEN n %% 2 = 0 THEN %s::uuid ELSE %s::uuid END,"
                " 1.00, 'ADJUSTMENT', %s || n, '', now() FROM generate_series(1, %s) AS n",
                [account, revenue, revenue, account, f"bench:{account}:", transfers],
            )
        cursor.execute("VACUUM ANALYZE wallet_transfer")
        with CaptureQueriesContext(connection) as queries:
            assert len(transactions_of(user)[0:50]) == 50
        times = []
        for _ in range(5):
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {queries[-1]['sql']}")
            [[report]] = cursor.fetchone()
            times.append((report["Planning Time"] + report["Execution Time"]) / 1000)
    return History(transfers, percentile(times, 50))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--history", type=int, required=True)
    options = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "zenzefi.settings.base"

    import django

    django.setup()
    from django.conf import settings
    from django.core.management import call_command

    from tests.factories import UserFactory
    from wallet.services import top_up_mock
    from zenzefi.runtime import servers

    settings.VAR_DIR.mkdir(parents=True, exist_ok=True)
    lease = servers.ensure(lambda _: None)
    try:
        call_command("migrate", interactive=False, verbosity=0)
        users = [UserFactory(password="!") for _ in range(64)]
        for user in users:
            top_up_mock(user=user, amount=RICH)
        runs = [
            (name, owners, threads)
            for name, owners in (("different", users), ("one", users[:1]))
            for threads in THREADS
        ]
        sales = [
            _sell(name, owners, threads=threads, seconds=options.seconds / len(runs)) for name, owners, threads in runs
        ]
        history = _first_page(UserFactory(password="!"), UserFactory(password="!"), options.history)
    finally:
        lease.release()
    json.dump({"sales": [one.as_json() for one in sales], "history": history.as_json()}, sys.stdout)


if __name__ == "__main__":
    main()
