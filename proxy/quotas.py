"""Usage by day, and the notices that a quota is nearly or wholly used up."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any

from django.contrib.auth import get_user_model
from django.db import connection
from django.db.models import F, Q, Sum

from notifications.services import record
from proxy.limits import COLUMNS, NONE, QUOTAS, THRESHOLDS, Limits, first_day, next_period
from proxy.models import QuotaNotice, TierLimits, TokenLimits, TokenUsage
from zenzefi.lib import clock

# Rows of tokens that are gone are left out by the join: their counts belong to nobody any more.
_ADD = """
INSERT INTO proxy_tokenusage AS u (token_id, day, requests, bytes_in, bytes_out)
SELECT r.token_id, r.day, r.requests, r.bytes_in, r.bytes_out
FROM unnest(%s::uuid[], %s::date[], %s::bigint[], %s::bigint[], %s::bigint[])
     AS r(token_id, day, requests, bytes_in, bytes_out)
JOIN tokens_accesstoken t ON t.id = r.token_id
ON CONFLICT (token_id, day) DO UPDATE SET
  requests = u.requests + EXCLUDED.requests,
  bytes_in = u.bytes_in + EXCLUDED.bytes_in,
  bytes_out = u.bytes_out + EXCLUDED.bytes_out
"""
_HAS_QUOTA = Q(*((f"{name}__gt", 0) for name in QUOTAS), _connector=Q.OR)


def count_usage(*, batches: Iterable[Sequence[Sequence[Any]]]) -> None:
    """Add batches of counts (:data:`proxy.services.MeterRow`) to the usage of their days; give notice of quotas.

    Must run in the transaction that makes sure of each batch being counted once. What a row holds belongs to the
    day of its last moment.
    """
    days: dict[tuple[str, date], list[int]] = {}
    for rows in batches:
        for row in rows:
            day = datetime.fromtimestamp(row[9] / 1000, UTC).date()
            total = days.setdefault((row[0], day), [0, 0, 0])
            for index in range(3):
                total[index] += row[5 + index]
    # In one order, as every caller locks them.
    pairs = sorted(days)
    with connection.cursor() as cursor:
        cursor.execute(
            _ADD,
            [
                [token for token, _day in pairs],
                [day for _token, day in pairs],
                *([days[pair][index] for pair in pairs] for index in range(3)),
            ],
        )
    _give_notice({uuid.UUID(token) for token, _day in pairs})


@dataclass(frozen=True, slots=True)
class _Bounded:
    """A token with quotas."""

    token_id: uuid.UUID
    owner_id: uuid.UUID
    limits: Limits


def _bounded(token_ids: set[uuid.UUID]) -> list[_Bounded]:
    """Return those of the tokens that have quotas, their owners' tiers considered. Superusers have none."""
    tiers = {row["tier_id"]: row for row in TierLimits.objects.filter(_HAS_QUOTA).values("tier_id", *COLUMNS)}
    own = {row["token_id"]: row for row in TokenLimits.objects.filter(token_id__in=token_ids).values()}
    if not tiers and not own:
        return []
    owners = TokenUsage.objects.filter(token_id__in=token_ids).values_list(
        "token_id", "token__owner_id", "token__owner__tier_id", "token__owner__is_superuser"
    )
    found = []
    for token_id, owner_id, tier, superuser in owners.order_by("token_id").distinct():
        limits = NONE.merged(own.get(token_id), tiers.get(tier))
        if limits.has_quotas and not superuser:
            found.append(_Bounded(token_id, owner_id, limits))
    return found


def _give_notice(token_ids: set[uuid.UUID]) -> None:
    """Record an event for each threshold that a token has reached, once for each period."""
    bounded = _bounded(token_ids)
    if not bounded:
        return
    now = clock.now()
    begins = {rule: first_day(rule, now).date() for rule in QUOTAS}
    ids = [token.token_id for token in bounded]
    used = _used(ids, today=begins["requests_per_day"], month=begins["requests_per_month"])
    told = set(
        QuotaNotice.objects.filter(token_id__in=ids, period__gte=begins["requests_per_month"]).values_list(
            "token_id", "rule", "period", "threshold"
        )
    )
    for token in bounded:
        for rule in QUOTAS:
            limit = getattr(token.limits, rule)
            count = used.get(token.token_id, {}).get(rule, 0)
            reached = [threshold for threshold in THRESHOLDS if limit and count * 100 >= limit * threshold]
            if reached and (token.token_id, rule, begins[rule], reached[-1]) not in told:
                _tell(token, rule, begins[rule], reached, used=count)


def _used(token_ids: list[uuid.UUID], *, today: date, month: date) -> dict[uuid.UUID, dict[str, int]]:
    """Return what each token has used of each quota, in one query however many there are."""
    rows = TokenUsage.objects.filter(token_id__in=token_ids, day__gte=month).order_by("token_id").values("token_id")
    of_today, both = Q(day__gte=today), F("bytes_in") + F("bytes_out")
    sums: Any = rows.annotate(
        requests_per_day=Sum("requests", filter=of_today, default=0),
        requests_per_month=Sum("requests", default=0),
        bytes_per_day=Sum(both, filter=of_today, default=0),
        bytes_per_month=Sum(both, default=0),
    )
    return {row["token_id"]: {rule: int(row[rule]) for rule in QUOTAS} for row in sums}


def _tell(token: _Bounded, rule: str, period: date, reached: list[int], *, used: int) -> None:
    """Note the thresholds as told; record an event for the last. Whoever jumps over both is told of that one alone."""
    is_new = False
    for threshold in reached:
        with connection.cursor() as cursor:
            # Of two workers at once one waits here for the other and then finds its row.
            cursor.execute(
                "INSERT INTO proxy_quotanotice (token_id, rule, period, threshold, created_at) "
                "VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [token.token_id, rule, period, threshold, clock.now()],
            )
            is_new = cursor.rowcount == 1
    if is_new:
        record(
            "quota.reached" if reached[-1] == 100 else "quota.warning",
            get_user_model()._default_manager.get(pk=token.owner_id),
            {
                "token_id": str(token.token_id),
                "rule": rule,
                "limit": getattr(token.limits, rule),
                "used": used,
                "threshold": reached[-1],
                "reset_at": next_period(rule, datetime.combine(period, time(), UTC)).isoformat(),
            },
        )
