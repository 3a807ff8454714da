"""Reads of the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db.models import F, QuerySet

from wallet.models import Account, Transfer
from wallet.reconciliation import Verdict, last_verdict
from zenzefi.lib.money import ZERO

__all__ = ["Balance", "Verdict", "balance_of", "last_verdict", "transactions_of"]


@dataclass(frozen=True, slots=True)
class Balance:
    """What a user has and owes, in ZNC."""

    balance: Decimal
    owed: Decimal


def balance_of(user: Any) -> Balance:
    """Return a user's balance; zero when no account was opened yet."""
    row = Account.objects.filter(user=user).values_list("balance", "owed").first()
    return Balance(*row) if row else Balance(ZERO, ZERO)


class Transactions:
    """A user's side of their transfers, newest first: can be counted and sliced, as a paginator does.

    A slice is a list of dictionaries with the keys ``id`` (the order), ``public_id``, ``signed`` (ZNC, negative when it
    left the account), ``kind``, ``description``, ``source``, ``balance_after`` (ZNC) and ``created_at``.

    A transfer has the account on one side only, so the two sides are added up without looking for duplicates. Each
    side is cut to what the page can need before they are merged: PostgreSQL walks two indexes that far and stops,
    however long the history is. An OR over both columns, or a union that is cut as a whole, would collect and sort
    all of it.
    """

    def __init__(self, account: Account | None, filters: dict[str, Any]) -> None:
        self._account = account
        self._filters = filters

    def count(self) -> int:
        if self._account is None:
            return 0
        if not self._filters:
            return self._account.postings
        sides = (Transfer.objects.of(self._account, side) for side in ("debit", "credit"))
        return sum(side.filter(**self._filters).count() for side in sides)

    def __getitem__(self, page: slice) -> list[dict[str, Any]]:
        if self._account is None:
            return []
        sides = [
            Transfer.objects.of(self._account, name)
            .filter(**self._filters)
            .values(
                "id",
                "public_id",
                "kind",
                "description",
                "source",
                "created_at",
                signed=F("amount") * sign,
                balance_after=F(f"{name}_balance_after"),
            )[: page.stop]
            for name, sign in (("debit", -1), ("credit", 1))
        ]
        merged: QuerySet[Transfer, Any] = sides[0].union(sides[1], all=True)
        return list(merged.order_by("-id")[page])


def transactions_of(
    user: Any,
    *,
    kind: str | None = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
) -> Transactions:
    """Return the user's transactions, of one kind if given; both bounds in time are inclusive."""
    filters: dict[str, Any] = {"kind": kind, "created_at__gte": created_after, "created_at__lte": created_before}
    return Transactions(
        Account.objects.filter(user=user).first(),
        {name: value for name, value in filters.items() if value is not None},
    )
