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
from tokens.selectors import renews_by_default
from tokens.services.issuing import IssuedToken, new_token
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
    issued = sell_token(
        owner=owner,
        account=account,
        referrer=referrer,
        referrer_account=others[0] if others else None,
        price=price,
        description=_("Access token, %(hours)d h") % {"hours": duration_hours},
        label=label,
        scope=sold_scope,
        duration_hours=duration_hours,
        auto_renew=renews_by_default(owner, duration_hours=duration_hours, scope=scope),
    )
    token = issued.token
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


def sell_token(
    *,
    owner: Any,
    account: Any,
    referrer: Any | None,
    referrer_account: Any | None,
    price: Decimal,
    description: str,
    **fields: Any,
) -> IssuedToken:
    """Take the price, store the token with these fields, and award the referrer, in the caller's transaction.

    ``account`` and ``referrer_account`` are locked. The posting's source is the token.

    Raises :class:`~wallet.exceptions.InsufficientBalance`; nothing has happened then.
    """
    token_id = uuid.uuid4()
    debit(
        account=account,
        counterparty=SystemAccount.REVENUE,
        amount=price,
        kind=TransferKind.PURCHASE,
        source=source_of(token_id),
        description=description,
    )
    issued = new_token(
        token_id=token_id,
        owner=owner,
        purchase_source=source_of(token_id),
        list_price=price,
        paid=price,
        **fields,
    )
    issued.token.save(force_insert=True)
    if referrer is not None:
        award_for_purchase(
            referee=owner,
            referrer=referrer,
            referrer_account=referrer_account,
            paid=price,
            purchase_source=issued.token.purchase_source,
        )
    return issued


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
