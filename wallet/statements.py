"""Statements: where an account stood at two moments, and every transfer in between.

Rows are read in pages by key, each a query of its own: a statement of any length is sent while it is read, and holds
neither a transaction nor a cursor open for a slow reader.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from django.db.models import F, QuerySet, Sum

from wallet.models import Account, Transfer
from zenzefi.lib.money import ZERO

_PAGE = 1000
#: What a spreadsheet takes for the start of a formula (OWASP, CSV Injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_COLUMNS = ["created_at", "id", "transaction_type", "description", "amount", "balance_after", "owed_after"]


@dataclass(frozen=True, slots=True)
class Standing:
    """What an account held and what it owed at a moment, ZNC; one of the two is zero."""

    balance: Decimal
    owed: Decimal

    @classmethod
    def of(cls, net: Decimal) -> Standing:
        return cls(max(net, ZERO), max(-net, ZERO))


class Statement:
    """One user's transfers from ``start`` on and before ``end``.

    ``opening`` and ``closing`` are sums of the ledger, not what a row left behind, and the rows are bounded by the
    last one there was when the statement was asked for: whatever is posted while it is read,
    ``opening + rows = closing``.
    """

    def __init__(self, user: Any, *, start: datetime, end: datetime) -> None:
        self.start, self.end = start, end
        self._account = Account.objects.filter(user=user).first()
        # Read before the sums: what is posted after this has a higher id, as the account's lock orders them.
        self._last = self._last_id()
        opening = self._net(created_at__lt=start)
        self.opening = Standing.of(opening)
        self.closing = Standing.of(opening + self._net(created_at__gte=start, created_at__lt=end))

    def _last_id(self) -> int:
        if self._account is None:
            return 0
        sides = (Transfer.objects.of(self._account, side) for side in ("debit", "credit"))
        return max(side.values_list("id", flat=True).first() or 0 for side in sides)

    def _net(self, **period: datetime) -> Decimal:
        net = ZERO
        for side, sign in (("debit", -1), ("credit", 1)):
            if self._account is not None:
                found = Transfer.objects.filter(**{f"{side}_account": self._account}, id__lte=self._last, **period)
                net += sign * (found.aggregate(total=Sum("amount"))["total"] or ZERO)
        return net

    def pages(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows in the order they were posted, up to 1,000 at a time."""
        if self._account is None:
            return
        after = 0
        while True:
            sides = [
                Transfer.objects.of(self._account, side, newest_first=False)
                .filter(id__gt=after, id__lte=self._last, created_at__gte=self.start, created_at__lt=self.end)
                .values(
                    "id",
                    "public_id",
                    "kind",
                    "description",
                    "created_at",
                    signed=F("amount") * sign,
                    balance_after=F(f"{side}_balance_after"),
                    owed_after=F(f"{side}_owed_after"),
                )[:_PAGE]
                for side, sign in (("debit", -1), ("credit", 1))
            ]
            merged: QuerySet[Transfer, Any] = sides[0].union(sides[1], all=True)
            page: list[dict[str, Any]] = list(merged.order_by("id")[:_PAGE])
            if page:
                yield page
            if len(page) < _PAGE:
                return
            after = page[-1]["id"]

    def as_csv(self) -> Iterator[str]:
        """Yield the statement as CSV (RFC 4180), safe to open in a spreadsheet."""
        yield _csv_lines(
            [
                _COLUMNS,
                [_time(self.start), "", "opening_balance", "", "", *_amounts(self.opening)],
            ]
        )
        for page in self.pages():
            yield _csv_lines([[_cell(value) for value in _shown(row).values()] for row in page])
        yield _csv_lines([[_time(self.end), "", "closing_balance", "", "", *_amounts(self.closing)]])

    def as_json(self) -> Iterator[str]:
        """Yield the statement as one JSON object."""
        head = {
            "from": _time(self.start),
            "to": _time(self.end),
            "currency": "ZNC",
            "opening_balance": str(self.opening.balance),
            "opening_owed": str(self.opening.owed),
            "closing_balance": str(self.closing.balance),
            "closing_owed": str(self.closing.owed),
        }
        yield json.dumps(head)[:-1] + ', "rows": ['
        separator = ""
        for page in self.pages():
            yield separator + ", ".join(json.dumps(_shown(row)) for row in page)
            separator = ", "
        yield "]}"


def _shown(row: dict[str, Any]) -> dict[str, str]:
    return {
        "created_at": _time(row["created_at"]),
        "id": str(row["public_id"]),
        "transaction_type": row["kind"].lower(),
        "description": row["description"],
        "amount": str(row["signed"]),
        "balance_after": str(row["balance_after"]),
        "owed_after": str(row["owed_after"]),
    }


def _time(moment: datetime) -> str:
    # Not strftime, which writes the year 1 as "1".
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _amounts(standing: Standing) -> list[str]:
    return [str(standing.balance), str(standing.owed)]


def _cell(text: str) -> str:
    """Return a text that no spreadsheet runs as a formula; a number may start with its minus sign."""
    if not text.startswith(_FORMULA) or _is_number(text):
        return text
    return f"'{text}"


def _is_number(text: str) -> bool:
    return text.removeprefix("-").replace(".", "", 1).isdecimal() and text.isascii()


def _csv_lines(rows: list[list[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerows(rows)
    return buffer.getvalue()
