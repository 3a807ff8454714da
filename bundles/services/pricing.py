"""What a bundle costs."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from bundles.exceptions import PriceOutOfRange, PricesDisagree
from zenzefi.lib.money import CENT

_MAX_PRICE = Decimal("99999999.99")


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices in ZNC, and why they are not those of the price list and the discount; empty when they are."""

    list_price: Decimal
    base_price: Decimal
    total_price: Decimal
    override_reason: str


def price_bundle(
    *,
    token_count: int,
    list_price: Decimal,
    discount_percent: Decimal,
    base_price: Decimal | None = None,
    total_price: Decimal | None = None,
    override_reason: str = "",
) -> Prices:
    """Return the prices of a bundle: base = count × price of one, total = base − discount, unless given otherwise.

    The discount is rounded half up to the cent, as the database's constraint does it.

    Raises :class:`PricesDisagree` for given prices that do not follow from the others and have no reason, and
    :class:`PriceOutOfRange`.
    """
    usual_base = token_count * list_price
    base = usual_base if base_price is None else base_price
    usual_total = base - (base * discount_percent / 100).quantize(CENT, rounding=ROUND_HALF_UP)
    total = usual_total if total_price is None else total_price
    by_hand = base != usual_base or total != usual_total
    if by_hand and not override_reason:
        raise PricesDisagree
    if not token_count * CENT <= total <= base <= _MAX_PRICE:
        raise PriceOutOfRange
    return Prices(list_price, base, total, override_reason if by_hand else "")
