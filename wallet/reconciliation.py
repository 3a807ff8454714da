"""Proof that the ledger is right.

Each check is set-based SQL that returns the rows that contradict it; other apps register theirs with :func:`register`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import cast

from django.db import connection, transaction

from zenzefi.lib import clock
from zenzefi.lib import redis as redis_client


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold. ``query`` selects two columns, the row's name and what is wrong, for each exception."""

    name: str
    query: str


@dataclass(frozen=True, slots=True)
class Drift:
    """A row that contradicts a check."""

    row: str
    problem: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check found, and nothing when it holds."""

    name: str
    drifts: list[Drift]


# Both sides of every transfer as one table: what it added to an account and left behind there.
_POSTINGS = """
    SELECT id, debit_account_id AS account_id, -amount AS delta,
           debit_balance_after AS balance_after, debit_owed_after AS owed_after
      FROM wallet_transfer
    UNION ALL
    SELECT id, credit_account_id, amount, credit_balance_after, credit_owed_after
      FROM wallet_transfer
"""

_CHECKS: list[Check] = [
    Check(
        "transfers sum to zero over all accounts",
        f"""
        SELECT 'all accounts', 'sum is ' || sum(delta) FROM ({_POSTINGS}) AS posting HAVING sum(delta) <> 0
        """,
    ),
    Check(
        "cached balances equal their transfers",
        f"""
        SELECT 'account ' || account.id,
               'balance ' || account.balance || ' less owed ' || account.owed
               || ' but its transfers sum to ' || coalesce(history.total, 0)
          FROM wallet_account AS account
          LEFT JOIN (SELECT account_id, sum(delta) AS total FROM ({_POSTINGS}) AS posting GROUP BY account_id)
               AS history ON history.account_id = account.id
         WHERE account.user_id IS NOT NULL
           AND account.balance - account.owed <> coalesce(history.total, 0)
        """,
    ),
    Check(
        "cached numbers of transfers are right",
        f"""
        SELECT 'account ' || account.id,
               'counts ' || account.postings || ' transfers but has ' || coalesce(history.postings, 0)
          FROM wallet_account AS account
          LEFT JOIN (SELECT account_id, count(*) AS postings FROM ({_POSTINGS}) AS posting GROUP BY account_id)
               AS history ON history.account_id = account.id
         WHERE account.user_id IS NOT NULL
           AND account.postings <> coalesce(history.postings, 0)
        """,
    ),
    Check(
        "cached balances equal what the last transfer left",
        f"""
        SELECT 'account ' || account.id,
               'balance ' || account.balance || ', owed ' || account.owed || ' but transfer ' || latest.id
               || ' left ' || latest.balance_after || ', owed ' || latest.owed_after
          FROM wallet_account AS account
          JOIN (SELECT DISTINCT ON (account_id) * FROM ({_POSTINGS}) AS posting ORDER BY account_id, id DESC)
               AS latest ON latest.account_id = account.id
         WHERE account.user_id IS NOT NULL
           AND (account.balance, account.owed) IS DISTINCT FROM (latest.balance_after, latest.owed_after)
        """,
    ),
    Check(
        "each transfer continues where the one before it ended",
        f"""
        SELECT 'transfer ' || id,
               'account ' || account_id || ' stood at ' || before || ', moved by ' || delta || ' and ended at '
               || coalesce(after::text, 'nothing')
          FROM (SELECT posting.id, account_id, delta, balance_after - owed_after AS after,
                       coalesce(lag(balance_after - owed_after)
                                OVER (PARTITION BY account_id ORDER BY posting.id), 0) AS before
                  FROM ({_POSTINGS}) AS posting
                  JOIN wallet_account AS account ON account.id = account_id AND account.user_id IS NOT NULL)
               AS step
         WHERE before + delta IS DISTINCT FROM after
        """,
    ),
    Check(
        "no account is negative, and none both has and owes",
        """
        SELECT 'account ' || id, 'balance ' || balance || ', owed ' || owed
          FROM wallet_account
         WHERE balance < 0 OR owed < 0 OR (balance > 0 AND owed > 0)
            OR (user_id IS NULL AND (balance <> 0 OR owed <> 0))
        """,
    ),
    Check(
        "no transfer is negative or leaves a negative balance",
        f"""
        SELECT DISTINCT 'transfer ' || id, 'moved ' || abs(delta) || ' and left ' || coalesce(balance_after, 0)
               || ', owed ' || coalesce(owed_after, 0)
          FROM ({_POSTINGS}) AS posting
         WHERE delta = 0 OR balance_after < 0 OR owed_after < 0
         UNION ALL
        SELECT 'transfer ' || id, 'moved ' || amount FROM wallet_transfer WHERE amount < 0
        """,
    ),
]


def register(check: Check) -> None:
    """Add a check; called once for each, when the app that owns it is ready."""
    _CHECKS.append(check)


def reconcile() -> list[Outcome]:
    """Run every check on one snapshot of the database, so that traffic meanwhile is no drift.

    Must be called outside a transaction.
    """
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        outcomes = []
        for check in _CHECKS:
            cursor.execute(check.query)
            outcomes.append(Outcome(check.name, [Drift(row, problem) for row, problem in cursor.fetchall()]))
        return outcomes


@dataclass(frozen=True, slots=True)
class Verdict:
    """The last nightly run: when it was (seconds since the epoch) and how many rows contradicted each check."""

    at: float
    drifts: dict[str, int]


def _key() -> str:
    return redis_client.key("ledger", "verdict")


def remember(outcomes: list[Outcome]) -> None:
    """Keep a run's result where every process's ``/metrics`` finds it."""
    verdict = {
        "at": clock.now().timestamp(),
        "drifts": {outcome.name: len(outcome.drifts) for outcome in outcomes},
    }
    redis_client.client().set(_key(), json.dumps(verdict))


def last_verdict() -> Verdict | None:
    """Return the last remembered result, ``None`` before the first night."""
    stored = cast("bytes | None", redis_client.client().get(_key()))
    return None if stored is None else Verdict(**json.loads(stored))
