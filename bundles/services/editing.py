"""What staff change about bundles."""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import Any

from django.db import IntegrityError, transaction

from bundles.exceptions import BundleNameTaken, BundleNotFound
from bundles.models import Bundle
from bundles.services.pricing import Prices, price_bundle
from notifications.services import record
from tokens.services import list_price, scope_for_sale
from zenzefi.lib.transactions import in_transaction

_DESCRIBED = ("name", "description", "is_active")
_PRICED = ("base_price", "total_price", "discount_percent", "list_price", "override_reason")


@in_transaction
def create_bundle(
    *,
    actor: Any,
    name: str,
    token_count: int,
    duration_hours: int,
    discount_percent: Decimal,
    scope: str = "full",
    description: str = "",
    base_price: Decimal | None = None,
    total_price: Decimal | None = None,
    override_reason: str = "",
    is_active: bool = True,
) -> Bundle:
    """Make a bundle, priced from today's price list; prices that are given instead need a reason, which is kept.

    Raises :class:`~tokens.exceptions.DurationNotSold`, :class:`~tokens.exceptions.ScopeNotSold`,
    :class:`BundleNameTaken`, :class:`~bundles.exceptions.PricesDisagree`, :class:`~bundles.exceptions.PriceOutOfRange`.
    """
    bundle = Bundle(
        name=name,
        description=description,
        token_count=token_count,
        duration_hours=duration_hours,
        scope=scope_for_sale(scope),
        discount_percent=discount_percent,
        is_active=is_active,
    )
    _set_prices(
        bundle,
        price_bundle(
            token_count=token_count,
            list_price=list_price(duration_hours),
            discount_percent=discount_percent,
            base_price=base_price,
            total_price=total_price,
            override_reason=override_reason,
        ),
    )
    _store(bundle, actor, "bundle.created", {})
    return bundle


@in_transaction
def edit_bundle(
    *,
    actor: Any,
    bundle_id: uuid.UUID,
    name: str | None = None,
    description: str | None = None,
    token_count: int | None = None,
    duration_hours: int | None = None,
    scope: str | None = None,
    discount_percent: Decimal | None = None,
    base_price: Decimal | None = None,
    total_price: Decimal | None = None,
    override_reason: str = "",
    is_active: bool | None = None,
) -> Bundle:
    """Change what is given of a bundle; what was bought before stays as it was.

    Another number of tokens or another duration prices it anew from today's price list. Another discount takes the
    total from the base price there is, and a base price set by hand keeps its reason.

    Raises what :func:`create_bundle` raises, and :class:`BundleNotFound`.
    """
    bundle = Bundle.objects.select_for_update(of=("self",), no_key=True).filter(pk=bundle_id).first()
    if bundle is None:
        raise BundleNotFound
    before = _state(bundle)
    for field, value in (("name", name), ("description", description), ("is_active", is_active)):
        if value is not None:
            setattr(bundle, field, value)
    if scope is not None and scope != bundle.scope_id:
        bundle.scope = scope_for_sale(scope)
    recount = token_count is not None and token_count != bundle.token_count
    retime = duration_hours is not None and duration_hours != bundle.duration_hours
    rediscount = discount_percent is not None and discount_percent != bundle.discount_percent
    if token_count is not None:
        bundle.token_count = token_count
    if duration_hours is not None:
        bundle.duration_hours = duration_hours
    if discount_percent is not None:
        bundle.discount_percent = discount_percent
    if recount or retime:
        bundle.list_price = list_price(bundle.duration_hours)
    elif base_price is None:
        base_price = bundle.base_price
        if total_price is None and not rediscount:
            total_price = bundle.total_price
    _set_prices(
        bundle,
        price_bundle(
            token_count=bundle.token_count,
            list_price=bundle.list_price,
            discount_percent=bundle.discount_percent,
            base_price=base_price,
            total_price=total_price,
            override_reason=override_reason or _kept_reason(before, base_price, total_price),
        ),
    )
    _store(bundle, actor, "bundle.changed", before)
    return bundle


@in_transaction
def switch_off_bundle(*, actor: Any, bundle_id: uuid.UUID) -> Bundle:
    """Sell a bundle no longer; doing so twice changes nothing. Raises :class:`BundleNotFound`."""
    return edit_bundle(actor=actor, bundle_id=bundle_id, is_active=False)


@in_transaction
def save_edited_bundle(*, bundle: Bundle, actor: Any) -> None:
    """Store a bundle that staff made or changed in a form, which has checked and priced it.

    Raises :class:`BundleNameTaken` for a name taken meanwhile.
    """
    before = Bundle.objects.select_for_update(of=("self",), no_key=True).filter(pk=bundle.pk).first()
    _store(bundle, actor, "bundle.changed" if before else "bundle.created", _state(before) if before else {})


def _kept_reason(before: dict[str, str], base_price: Decimal | None, total_price: Decimal | None) -> str:
    """Return the reason there is, while the prices it explains stay: new ones set by hand need their own."""
    base_stays = base_price is None or str(base_price) == before["base_price"]
    total_stays = total_price is None or str(total_price) == before["total_price"]
    return before["override_reason"] if base_stays and total_stays else ""


def _set_prices(bundle: Bundle, prices: Prices) -> None:
    bundle.list_price = prices.list_price
    bundle.base_price = prices.base_price
    bundle.total_price = prices.total_price
    bundle.override_reason = prices.override_reason


def _state(bundle: Bundle) -> dict[str, str]:
    fields = (*_DESCRIBED, "token_count", "duration_hours", "scope_id", *_PRICED)
    return {field: str(getattr(bundle, field)) for field in fields}


def _store(bundle: Bundle, actor: Any, event: str, before: dict[str, str]) -> None:
    """Save the bundle and record who changed what, and why its prices were set by hand."""
    after = _state(bundle)
    changes = {field: [before.get(field), value] for field, value in after.items() if before.get(field) != value}
    if not changes:
        return
    try:
        with transaction.atomic():
            bundle.save()
    except IntegrityError as exc:
        constraint = getattr(getattr(exc.__cause__, "diag", None), "constraint_name", None) or ""
        if constraint.startswith("bundles_bundle_name"):
            raise BundleNameTaken from None
        raise
    record(
        event,
        None,
        {
            "bundle_id": str(bundle.id),
            "actor_id": str(actor.pk),
            "changes": changes,
            "reason": bundle.override_reason,
        },
    )
