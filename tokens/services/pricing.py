"""Prices with dates."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from notifications.services import record
from tokens.exceptions import DurationNotSold, PriceChangeExists, PriceChangeInPast, PriceChangeNotFound
from tokens.models import PriceChange, TokenPrice
from tokens.price_lists import PriceList
from tokens.selectors import current_prices
from zenzefi.lib import clock
from zenzefi.lib.transactions import in_transaction


@in_transaction
def schedule_price(
    *, duration_hours: int, price: Decimal, effective_at: datetime | None = None, actor: Any | None = None
) -> PriceChange:
    """Let a duration cost another price from a moment on (default: now). What was bought before keeps its own.

    Raises :class:`DurationNotSold` for a duration that is not on the price list, :class:`PriceChangeInPast`,
    :class:`PriceChangeExists`.
    """
    entry = TokenPrice.objects.select_for_update(no_key=True).filter(duration_hours=duration_hours).first()
    if entry is None:
        raise DurationNotSold
    now = clock.now()
    if effective_at is not None and effective_at < now:
        raise PriceChangeInPast
    moment = effective_at or now
    if PriceChange.objects.filter(duration=entry, effective_at=moment).exists():
        raise PriceChangeExists
    change = PriceChange.objects.create(duration=entry, price=price, effective_at=moment, scheduled_by=actor)
    _tell("price.scheduled", change, actor)
    return change


@in_transaction
def cancel_price_change(*, change_id: int, actor: Any) -> None:
    """Take back a change that is not in effect yet. Raises :class:`PriceChangeNotFound`, :class:`PriceChangeInPast`."""
    change = PriceChange.objects.select_for_update(no_key=True).filter(pk=change_id).first()
    if change is None:
        raise PriceChangeNotFound
    if change.effective_at <= clock.now():
        raise PriceChangeInPast
    _tell("price.cancelled", change, actor)
    change.delete()


@in_transaction
def apply_price_list(*, price_list: PriceList, actor: Any | None = None) -> list[PriceChange]:
    """Schedule every price of a list that differs from what holds at its moment; applying it twice changes nothing.

    Raises what :func:`schedule_price` raises; nothing is scheduled then.
    """
    # Two lists at once wait here, in the order of the primary key, and the second one sees what the first did.
    entries = {
        entry.duration_hours: entry
        for entry in TokenPrice.objects.select_for_update(no_key=True)
        .filter(duration_hours__in=price_list.prices)
        .order_by("pk")
    }
    if missing := price_list.prices.keys() - entries.keys():
        raise DurationNotSold(f"{DurationNotSold.detail} ({', '.join(str(hours) for hours in sorted(missing))} h)")
    prices_then = current_prices(price_list.effective_at)
    return [
        schedule_price(duration_hours=hours, price=price, effective_at=price_list.effective_at, actor=actor)
        for hours, price in sorted(price_list.prices.items())
        if prices_then[hours] != price
    ]


def _tell(event: str, change: PriceChange, actor: Any | None) -> None:
    record(
        event,
        None,
        {
            "duration_hours": change.duration_id,
            "price": str(change.price),
            "effective_at": change.effective_at.isoformat(),
            "actor_id": None if actor is None else str(actor.pk),
        },
    )
