"""Amounts of ZNC: ``Decimal`` with two places, the rounding always named."""

from __future__ import annotations

import decimal
from decimal import ROUND_DOWN, Decimal
from typing import Any

from django.utils.translation import gettext_lazy as _
from rest_framework import serializers

CENT = Decimal("0.01")
ZERO = Decimal("0.00")
#: The largest amount one posting or balance may have.
MAX_AMOUNT = Decimal("99999999.99")


def floor_cents(amount: Decimal) -> Decimal:
    """Return the amount cut to two places: what we pay out is never rounded up."""
    return amount.quantize(CENT, rounding=ROUND_DOWN)


class AmountField(serializers.DecimalField):
    """A positive amount of money in a request: a string, an integer, or a JSON number of at most two decimals.

    Refuses booleans, NaN, infinities, exponents, zero, negatives and anything above :data:`MAX_AMOUNT`.
    In answers it is a string with two places.
    """

    default_error_messages = {
        "not_positive": _("The amount must be greater than zero."),
    }

    def __init__(self, *, decimal_places: int = 2, max_value: Decimal = MAX_AMOUNT, **kwargs: Any) -> None:
        digits = max_value.adjusted() + 1 + decimal_places
        super().__init__(max_digits=digits, decimal_places=decimal_places, max_value=max_value, **kwargs)

    def to_internal_value(self, data: Any) -> Decimal:
        if isinstance(data, bool) or not isinstance(data, str | int | Decimal):
            self.fail("invalid")
        text = str(data)
        if len(text) > 32 or not text.isascii() or any(mark in text for mark in "eE_ \t\n"):
            self.fail("invalid")
        try:
            value = super().to_internal_value(text)
        except decimal.InvalidOperation:
            self.fail("invalid")
        if value <= 0:
            self.fail("not_positive")
        return value.quantize(Decimal(1).scaleb(-(self.decimal_places or 0)))


class MoneyField(serializers.DecimalField):
    """An amount in an answer: a JSON string with two places, possibly negative."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_digits=16, decimal_places=2, **kwargs)
