"""From ZNC to a currency and back, at a rate that is a pair of amounts."""

from __future__ import annotations

from datetime import datetime
from decimal import ROUND_DOWN, ROUND_UP, Decimal

from wallet.exceptions import CurrencyNotAvailable
from wallet.models import Currency, ExchangeRate
from zenzefi.lib import clock
from zenzefi.lib.money import floor_cents


def rate_of(code: str, *, at: datetime | None = None) -> ExchangeRate:
    """Return the rate of a currency that is sold, with its currency loaded.

    Raises :class:`CurrencyNotAvailable` when the currency is unknown, switched off or has no rate yet.
    """
    rate = (
        ExchangeRate.objects.filter(currency=code, currency__is_active=True, effective_from__lte=at or clock.now())
        .select_related("currency")
        .order_by("-effective_from")
        .first()
    )
    if rate is None:
        raise CurrencyNotAvailable
    return rate


def smallest_unit(currency: Currency) -> Decimal:
    """Return one minor unit: 0.01 for EUR, 1 for JPY."""
    return Decimal(1).scaleb(-currency.minor_unit_digits)


def cost_of(amount_znc: Decimal, rate: ExchangeRate) -> Decimal:
    """Return what so many ZNC cost, rounded up to a minor unit: never sold below the rate."""
    cost = amount_znc * rate.currency_amount / rate.znc_amount
    return cost.quantize(smallest_unit(rate.currency), rounding=ROUND_UP)


def znc_for(amount: Decimal, rate: ExchangeRate) -> Decimal:
    """Return how many ZNC an amount buys, rounded down to 0.01."""
    return floor_cents(amount * rate.znc_amount / rate.currency_amount)


def share_of(amount_znc: Decimal, part: Decimal, whole: Decimal) -> Decimal:
    """Return the ZNC that belong to a part of what was paid, rounded down to 0.01; all of them for the whole."""
    if part >= whole:
        return amount_znc
    return floor_cents(amount_znc * part / whole)


def price_of_one(rate_znc_amount: Decimal, rate_currency_amount: Decimal) -> str:
    """Write the price of 1 ZNC in the currency: at least two places, at most eight, rounded down."""
    price = (rate_currency_amount / rate_znc_amount).quantize(Decimal("0.00000001"), rounding=ROUND_DOWN)
    return _plain(price)


def znc_per_unit(rate_znc_amount: Decimal, rate_currency_amount: Decimal) -> str:
    """Write how many ZNC one unit of the currency buys: at least two places, at most eight, rounded down."""
    return price_of_one(rate_currency_amount, rate_znc_amount)


def _plain(number: Decimal) -> str:
    whole, _, fraction = f"{number:f}".partition(".")
    return f"{whole}.{fraction.rstrip('0').ljust(2, '0')}"
