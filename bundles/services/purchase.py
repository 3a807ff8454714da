"""Buying a bundle."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.utils.translation import gettext as _

from bundles.exceptions import BundleNotFound, BundleNotSold
from bundles.models import Bundle, BundlePurchase
from notifications.services import record
from referrals.services import award_for_purchase, referrer_awaiting_bonus
from tokens.exceptions import DurationNotSold
from tokens.services import IssuedToken, issue_tokens, list_price
from wallet.services import SystemAccount, TransferKind, debit, lock_accounts_of
from zenzefi.lib.money import floor_cents
from zenzefi.lib.transactions import in_transaction


@dataclass(frozen=True, slots=True)
class PurchasedBundle:
    """A bought bundle, its tokens with their secrets, and the buyer's balance right after in ZNC."""

    purchase: BundlePurchase
    tokens: list[IssuedToken]
    balance: Decimal


@in_transaction
def purchase_bundle(*, buyer: Any, bundle_id: uuid.UUID) -> PurchasedBundle:
    """Sell a bundle: one debit, and all of its tokens, each with its share of the price as what was paid for it.

    Raises :class:`BundleNotFound`, :class:`BundleNotSold`, and :class:`~wallet.exceptions.InsufficientBalance`.
    """
    referrer = referrer_awaiting_bonus(buyer)
    account, *others = lock_accounts_of(buyer, *([referrer] if referrer else []))
    bundle = Bundle.objects.select_related("scope").filter(pk=bundle_id).first()
    if bundle is None:
        raise BundleNotFound
    if not bundle.is_active or not bundle.scope.is_active:
        raise BundleNotSold
    purchase = BundlePurchase.objects.create(
        buyer=buyer,
        bundle=bundle,
        bundle_name=bundle.name,
        token_count=bundle.token_count,
        base_price=bundle.base_price,
        paid=bundle.total_price,
    )
    debit(
        account=account,
        counterparty=SystemAccount.REVENUE,
        amount=purchase.paid,
        kind=TransferKind.PURCHASE,
        source=purchase.source,
        description=_("Bundle %(name)s") % {"name": bundle.name},
    )
    issued = issue_tokens(
        owner=buyer,
        purchase_source=purchase.source,
        scope=bundle.scope,
        duration_hours=bundle.duration_hours,
        list_price=_price_of_one(bundle),
        shares=split_price(purchase.paid, purchase.token_count),
    )
    if referrer is not None:
        award_for_purchase(
            referee=buyer,
            referrer=referrer,
            referrer_account=others[0],
            paid=purchase.paid,
            purchase_source=purchase.source,
        )
    record(
        "bundle.purchased",
        buyer,
        {
            "purchase_id": str(purchase.id),
            "bundle_id": str(bundle.id),
            "bundle_name": bundle.name,
            "duration_hours": bundle.duration_hours,
            "scope": bundle.scope_id,
            "token_ids": [str(one.token.id) for one in issued],
            "paid": str(purchase.paid),
            "balance": str(account.balance),
        },
    )
    return PurchasedBundle(purchase=purchase, tokens=issued, balance=account.balance)


def split_price(total: Decimal, count: int) -> list[Decimal]:
    """Return ``count`` amounts of ZNC that differ by a cent at most and add up to the total, larger ones first.

    50.00 over three is 16.67, 16.67 and 16.66.
    """
    share, rest = divmod(int(total.scaleb(2)), count)
    return [Decimal(share + (number < rest)).scaleb(-2) for number in range(count)]


def _price_of_one(bundle: Bundle) -> Decimal:
    try:
        return list_price(bundle.duration_hours)
    except DurationNotSold:
        # Sold in bundles only: the price list has nothing newer than what the bundle was priced at.
        return floor_cents(bundle.base_price / bundle.token_count)
