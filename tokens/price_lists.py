"""Price lists as files, and what they would change::

effective_at: 2027-01-01T00:00:00Z   # optional: at once
prices:                              # ZNC by duration in hours; what is not named stays
  24: 20.00
  168: "110.00"
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import yaml
from django.db.models import Count, Sum, TextField, Value
from django.db.models.functions import Cast, Concat
from django.utils.dateparse import parse_datetime
from django.utils.translation import gettext as _

from tokens.exceptions import InvalidPriceList
from tokens.models import AccessToken
from tokens.selectors import current_prices
from zenzefi.lib import clock
from zenzefi.lib.money import CENT, MAX_AMOUNT, ZERO


@dataclass(frozen=True, slots=True)
class PriceList:
    """Prices in ZNC by duration in hours, from a moment on; ``None`` is at once."""

    prices: dict[int, Decimal]
    effective_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class PlannedPrice:
    """One duration of a list: what it costs at the list's moment, what it is to cost, and how it sold last month.

    ``sold`` are tokens bought alone, ``revenue`` what was paid for them, ``would_be`` the same tokens at the new price.
    ``price`` is ``None`` for a duration that is not on the price list. All money in ZNC.
    """

    duration_hours: int
    price: Decimal | None
    new_price: Decimal
    sold: int
    revenue: Decimal
    would_be: Decimal

    @property
    def difference(self) -> Decimal:
        return self.new_price - (self.price or ZERO)


@dataclass(frozen=True, slots=True)
class PricePlan:
    """What a list would change, beside the sales of the last whole month (UTC), ``since`` to before ``until``."""

    lines: list[PlannedPrice]
    since: datetime
    until: datetime


class _ExactLoader(yaml.SafeLoader):
    """Reads numbers with decimals as they are written, and refuses a key that is given twice."""


def _exact_number(loader: _ExactLoader, node: yaml.ScalarNode) -> Decimal:
    try:
        return Decimal(loader.construct_scalar(node))
    except InvalidOperation:
        raise InvalidPriceList(_("%(text)s is not a price.") % {"text": node.value}) from None


def _plain_integer(loader: _ExactLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    # YAML 1.1 reads 010 as eight and 1:30 as ninety.
    if not re.fullmatch(r"-?(0|[1-9][0-9]*)", text):
        raise InvalidPriceList(_("%(text)s is not a price.") % {"text": text})
    return int(text)


def _unique_keys(loader: _ExactLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    pairs = [(loader.construct_object(key), loader.construct_object(value, deep=True)) for key, value in node.value]
    seen: dict[Any, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str | int) or key in seen:
            raise InvalidPriceList(_("%(key)s is given twice or cannot be a name.") % {"key": key})
        seen[key] = value
    return seen


_ExactLoader.add_constructor("tag:yaml.org,2002:float", _exact_number)
_ExactLoader.add_constructor("tag:yaml.org,2002:int", _plain_integer)
_ExactLoader.add_constructor("tag:yaml.org,2002:map", _unique_keys)


def read_price_list(text: str) -> PriceList:
    """Return the price list of a YAML file. Raises :class:`InvalidPriceList` with what is wrong."""
    try:
        content = yaml.load(text, Loader=_ExactLoader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError) as exc:
        raise InvalidPriceList(_("The file is not YAML: %(error)s") % {"error": exc}) from None
    if not isinstance(content, dict) or not isinstance(content.get("prices"), dict) or not content["prices"]:
        raise InvalidPriceList(_("The file must have prices: a price for each duration in hours."))
    if unknown := content.keys() - {"prices", "effective_at"}:
        raise InvalidPriceList(
            _("The file may have prices and effective_at, not %(names)s.") % {"names": ", ".join(map(str, unknown))}
        )
    return PriceList(
        prices={_hours(hours): _price(price) for hours, price in content["prices"].items()},
        effective_at=_moment(content.get("effective_at")),
    )


def _hours(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise InvalidPriceList(_("%(value)s is not a duration in whole hours.") % {"value": value})
    return value


def _price(value: Any) -> Decimal:
    try:
        price = Decimal(value) if isinstance(value, str | int | Decimal) and not isinstance(value, bool) else None
    except InvalidOperation:
        price = None
    if price is None or not price.is_finite() or not 0 < price <= MAX_AMOUNT or price != price.quantize(CENT):
        raise InvalidPriceList(_("%(value)s is not a price in ZNC with at most two decimals.") % {"value": value})
    return price.quantize(CENT)


def _moment(value: Any) -> datetime | None:
    if value is None:
        return None
    moment = parse_datetime(value) if isinstance(value, str) else value
    # A date, or a moment without its offset, would mean another time to whoever reads the file elsewhere.
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise InvalidPriceList(_("effective_at must be a moment with its offset, such as 2027-01-01T00:00:00Z."))
    return moment


def plan_of(price_list: PriceList) -> PricePlan:
    """Return what a list would change, and what last month's sales would have been; changes nothing."""
    until = clock.now().astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    since = (until - timedelta(days=1)).replace(day=1)
    prices = current_prices(price_list.effective_at)
    alone = Concat(Value("token:"), Cast("id", TextField()))
    sales: dict[int, tuple[int, Decimal]] = {
        hours: (sold, revenue)
        for hours, sold, revenue in AccessToken.objects.filter(
            created_at__gte=since, created_at__lt=until, purchase_source=alone, duration_hours__in=price_list.prices
        )
        .order_by()
        .values("duration_hours")
        .annotate(sold=Count("pk"), revenue=Sum("paid"))
        .values_list("duration_hours", "sold", "revenue")
    }
    lines = []
    for hours, new_price in sorted(price_list.prices.items()):
        sold, revenue = sales.get(hours, (0, ZERO))
        lines.append(PlannedPrice(hours, prices.get(hours), new_price, sold, revenue, sold * new_price))
    return PricePlan(lines, since, until)
