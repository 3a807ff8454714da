"""Reads of the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db.models import F, QuerySet

from wallet.models import Account, Transfer
from zenzefi.lib.money import ZERO


@dataclass(frozen=True, slots=True)
class Balance:
    """What a user has and owes, in ZNC."""

    balance: Decimal
    owed: Decimal


def balance_of(user: Any) -> Balance:
    """Return a user's balance; zero when no account was opened yet."""
    row = Account.objects.filter(user=user).values_list("balance", "owed").first()
    return Balance(*row) if row else Balance(ZERO, ZERO)


def transactions_of(
    user: Any,
    *,
    kind: str | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
) -> QuerySet[Transfer, Any]:
    """Return the user's side of their transfers, newest first, as dictionaries.

    Keys: ``id`` (order), ``public_id``, ``signed`` (ZNC, negative when it left the account), ``kind``,
    ``description``, ``balance_after`` (ZNC), ``created_at``. Both bounds are inclusive.

    A transfer has the account on one side only, so the two sides are added up without looking for duplicates.
    That lets PostgreSQL merge two index scans and stop after a page, however long the history is; an OR over both
    columns would collect and sort all of it.
    """

    def side(name: str, sign: int) -> QuerySet[Transfer, Any]:
        rows = Transfer.objects.filter(**{f"{name}_account__user": user})
        if kind is not None:
            rows = rows.filter(kind=kind)
        if created_after is not None:
            rows = rows.filter(created_at__gte=created_after)
        if created_before is not None:
            rows = rows.filter(created_at__lte=created_before)
        return rows.order_by().values(
            "id",
            "public_id",
            "kind",
            "description",
            "created_at",
            signed=F("amount") * sign,
            balance_after=F(f"{name}_balance_after"),
        )

    return side("debit", -1).union(side("credit", 1), all=True).order_by("-id")
