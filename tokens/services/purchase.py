"""Buying a token."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.utils.translation import gettext as _

from notifications.services import record
from referrals.services import award_for_purchase, referrer_awaiting_bonus
from tokens.exceptions import DurationNotSold, ScopeNotSold
from tokens.models import AccessToken, Scope, TokenPrice
from tokens.services.issuing import new_token
from wallet.services import SystemAccount, TransferKind, debit, lock_accounts_of
from zenzefi.lib.transactions import in_transaction


@dataclass(frozen=True, slots=True)
class PurchasedToken:
    """A bought token, the secret that is shown this once, and the buyer's balance right after in ZNC."""

    token: AccessToken
    secret: str
    balance: Decimal

    def __repr__(self) -> str:
        return f"PurchasedToken(token={self.token!r})"


@in_transaction
def purchase_token(*, owner: Any, duration_hours: int, scope: str = "full", label: str = "") -> PurchasedToken:
    """Sell a token at today's list price.

    Raises :class:`DurationNotSold`, :class:`ScopeNotSold`, and
    :class:`~wallet.exceptions.InsufficientBalance` when the owner cannot pay it.
    """
    referrer = referrer_awaiting_bonus(owner)
    account, *others = lock_accounts_of(owner, *([referrer] if referrer else []))
    price = list_price(duration_hours)
    sold_scope = scope_for_sale(scope)
    token_id = uuid.uuid4()
    debit(
        account=account,
        counterparty=SystemAccount.REVENUE,
        amount=price,
        kind=TransferKind.PURCHASE,
        source=source_of(token_id),
        description=_("Access token, %(hours)d h") % {"hours": duration_hours},
    )
    issued = new_token(
        token_id=token_id,
        owner=owner,
        label=label,
        scope=sold_scope,
        duration_hours=duration_hours,
        purchase_source=source_of(token_id),
        list_price=price,
        paid=price,
    )
    token = issued.token
    token.save(force_insert=True)
    if referrer is not None:
        award_for_purchase(
            referee=owner,
            referrer=referrer,
            referrer_account=others[0],
            paid=price,
            purchase_source=token.purchase_source,
        )
    record(
        "token.purchased",
        owner,
        {
            "token_id": str(token.id),
            "duration_hours": duration_hours,
            "scope": scope,
            "paid": str(price),
            "balance": str(account.balance),
        },
    )
    return PurchasedToken(token=token, secret=issued.secret, balance=account.balance)


def list_price(duration_hours: int) -> Decimal:
    """Return what a token of this duration costs today, in ZNC. Raises :class:`DurationNotSold`."""
    sold = TokenPrice.objects.filter(duration_hours=duration_hours, is_active=True).priced_at().first()
    if sold is None:
        raise DurationNotSold
    return sold.current_price


def scope_for_sale(slug: str) -> Scope:
    """Return the scope of this name. Raises :class:`ScopeNotSold`."""
    scope = Scope.objects.filter(slug=slug, is_active=True).first()
    if scope is None:
        raise ScopeNotSold
    return scope


def source_of(token_id: uuid.UUID) -> str:
    """Return how postings name the token they come from."""
    return f"token:{token_id}"
