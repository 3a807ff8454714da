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
from tokens.exceptions import TokenChangedOwner
from tokens.models import AccessToken
from tokens.services.access import demand_usable, find_token, lock_token, tell_after_commit
from tokens.services.purchase import source_of
from wallet.services import SystemAccount, TransferKind, credit, lock_accounts_of
from zenzefi.lib import clock
from zenzefi.lib.money import ZERO
from zenzefi.lib.transactions import in_transaction


@dataclass(frozen=True, slots=True)
class Revocation:
    """A revoked token, what was paid back for it, and the owner's balance right after, both in ZNC.

    ``received`` is the part of the refund that the owner got: nothing where somebody else had paid for the token.
    """

    token: AccessToken
    refund_amount: Decimal
    balance: Decimal

    @property
    def received(self) -> Decimal:
        return self.refund_amount if self.token.payer_id is None else ZERO


@in_transaction
def revoke_token(
    *, token_id: uuid.UUID, actor: Any | None, refund: bool, reason: str = "", owner: Any | None = None
) -> Revocation:
    """Revoke a token for good and, with ``refund``, pay back what its unused time cost to whoever paid for it.

    That is the owner, or the payer of a token that was claimed as a gift: otherwise gifts would carry money from user
    to user. ``actor`` is who did it, none for the platform itself. With ``owner`` a token of anyone else is not found;
    staff pass none.

    Raises :class:`~tokens.exceptions.TokenNotFound`, :class:`~tokens.exceptions.TokenAlreadyRevoked`,
    :class:`~tokens.exceptions.TokenExpired`, :class:`~tokens.exceptions.TokenHeld`, :class:`TokenChangedOwner`,
    :class:`~wallet.exceptions.BalanceLimitExceeded`; nothing moves then.
    """
    found = find_token(token_id, owner=owner)
    payee_id = found.payer_id or found.owner_id
    users = get_user_model()._default_manager.in_bulk({found.owner_id, payee_id})
    holder, payee = users[found.owner_id], users[payee_id]
    # A refund may take a bonus back: that account is locked together with those of owner and payer.
    referrer = referrer_of_purchase(found.purchase_source) if refund else None
    account, payee_account, *others = lock_accounts_of(holder, payee, *([referrer] if referrer else []))
    token = lock_token(token_id)
    if (token.owner_id, token.payer_id) != (found.owner_id, found.payer_id):
        raise TokenChangedOwner
    # Read after the locks: time spent waiting for them is used time, as an activation that came first is.
    now = clock.now()
    demand_usable(token, now)
    amount = refund_due(token, now) if refund else ZERO
    if amount > 0:
        credit(
            account=payee_account,
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
    revocation = Revocation(token=token, refund_amount=amount, balance=account.balance)
    record(
        "token.revoked",
        holder,
        {
            "token_id": str(token.id),
            "refund_amount": str(revocation.received),
            "balance": str(account.balance),
            "reason": reason,
            "actor_id": None if actor is None else str(actor.pk),
        },
    )
    if token.payer_id is not None and amount > 0:
        record(
            "gift.refunded",
            payee,
            {"token_id": str(token.id), "refund_amount": str(amount), "balance": str(payee_account.balance)},
        )
    tell_after_commit([(token.id, token.digest)], revoked=True)
    return revocation


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
