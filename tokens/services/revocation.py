"""Taking a token back, with or without its money."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.contrib.auth import get_user_model
from django.utils.translation import gettext as _

from notifications.services import record
from referrals.services import referrer_of_purchase, take_back_for_refund
from tokens.exceptions import TokenAlreadyRevoked, TokenChangedOwner, TokenExpired
from tokens.models import AccessToken
from tokens.services.access import find_token, lock_token, tell_after_commit
from tokens.services.purchase import source_of
from wallet.services import SystemAccount, TransferKind, credit, lock_accounts_of
from zenzefi.lib import clock
from zenzefi.lib.money import ZERO
from zenzefi.lib.transactions import in_transaction


@dataclass(frozen=True, slots=True)
class Revocation:
    """A revoked token, what was paid back for it, and the owner's balance right after, both in ZNC."""

    token: AccessToken
    refund_amount: Decimal
    balance: Decimal


@in_transaction
def revoke_token(
    *, token_id: uuid.UUID, actor: Any | None, refund: bool, reason: str = "", owner: Any | None = None
) -> Revocation:
    """Revoke a token for good and, with ``refund``, pay back what its unused time cost.

    ``actor`` is who did it, none for the platform itself. With ``owner`` a token of anyone else is not found; staff
    pass none.

    Raises :class:`~tokens.exceptions.TokenNotFound`, :class:`TokenAlreadyRevoked`, :class:`TokenExpired`,
    :class:`TokenChangedOwner`, :class:`~wallet.exceptions.BalanceLimitExceeded`; nothing moves then.
    """
    found = find_token(token_id, owner=owner)
    owner_id = found.owner_id
    payee = get_user_model()._default_manager.get(pk=owner_id)
    # A refund may take a bonus back: that account is locked together with the owner's.
    referrer = referrer_of_purchase(found.purchase_source) if refund else None
    account, *others = lock_accounts_of(payee, *([referrer] if referrer else []))
    token = lock_token(token_id)
    if token.owner_id != owner_id:
        raise TokenChangedOwner
    # Read after the locks: time spent waiting for them is used time, as an activation that came first is.
    now = clock.now()
    status = token.status(now)
    if status is AccessToken.Status.REVOKED:
        raise TokenAlreadyRevoked
    if status is AccessToken.Status.EXPIRED:
        raise TokenExpired
    amount = refund_due(token, now) if refund else ZERO
    if amount > 0:
        credit(
            account=account,
            counterparty=SystemAccount.REVENUE,
            amount=amount,
            kind=TransferKind.REFUND,
            source=source_of(token.id),
            description=_("Refund of an access token, %(hours)d h") % {"hours": token.duration_hours},
        )
        if referrer is not None:
            take_back_for_refund(
                purchase_source=token.purchase_source,
                refund_source=source_of(token.id),
                refunded=amount,
                referrer_account=others[0],
            )
    token.refunded += amount
    token.revoked_at = token.changed_at = now
    token.revoked_reason = reason
    token.save(update_fields=["refunded", "revoked_at", "changed_at", "revoked_reason"])
    record(
        "token.revoked",
        payee,
        {
            "token_id": str(token.id),
            "refund_amount": str(amount),
            "balance": str(account.balance),
            "reason": reason,
            "actor_id": None if actor is None else str(actor.pk),
        },
    )
    tell_after_commit([(token.id, token.digest)], revoked=True)
    return Revocation(token=token, refund_amount=amount, balance=account.balance)


def refund_due(token: AccessToken, at: datetime) -> Decimal:
    """Return what revoking the token at a moment pays back, in ZNC."""
    if token.expires_at is None:
        return token.paid - token.refunded
    unused = (token.expires_at - at) // timedelta(seconds=1)
    return max(
        ZERO, refund_for(token.paid, unused_seconds=unused, total_seconds=token.duration_hours * 3600) - token.refunded
    )


def refund_for(paid: Decimal, *, unused_seconds: int, total_seconds: int) -> Decimal:
    """Return ``floor_to_0.01(paid * unused_seconds / total_seconds)``.

    In whole cents and seconds: nothing is rounded but the result, and that down.
    """
    cents = int(paid.scaleb(2)) * max(0, min(unused_seconds, total_seconds)) // total_seconds
    return Decimal(cents).scaleb(-2)
