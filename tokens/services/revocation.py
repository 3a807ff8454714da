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
from tokens.exceptions import TokenChangedOwner, TokenJustRenewed
from tokens.models import AccessToken
from tokens.services.access import demand_usable, find_token, lock_token, tell_after_commit
from tokens.services.purchase import source_of
from wallet.services import SystemAccount, TransferKind, credit, lock_accounts_of
from zenzefi.lib import clock
from zenzefi.lib.money import ZERO
from zenzefi.lib.transactions import in_transaction


@dataclass(frozen=True, slots=True)
class Revocation:
    """A revoked token, what was paid back for it and its successor, and the owner's balance right after, in ZNC.

    ``received`` is the part of the refund that the owner got: nothing for a token that somebody else had paid for.
    """

    token: AccessToken
    refund_amount: Decimal
    received: Decimal
    balance: Decimal


@in_transaction
def revoke_token(
    *, token_id: uuid.UUID, actor: Any | None, refund: bool, reason: str = "", owner: Any | None = None
) -> Revocation:
    """Revoke a token for good and, with ``refund``, pay back what its unused time cost to whoever paid for it.

    That is the owner, or the payer of a token that was claimed as a gift: otherwise gifts would carry money from user
    to user. A successor that was bought for the token is revoked with it: both answer to the secret that is taken away.
    A successor revoked before its time leaves its predecessor to its own end. ``actor`` is who did it, none for the
    platform itself. With ``owner`` a token of anyone else is not found; staff pass none.

    Raises :class:`~tokens.exceptions.TokenNotFound`, :class:`~tokens.exceptions.TokenAlreadyRevoked`,
    :class:`~tokens.exceptions.TokenExpired`, :class:`~tokens.exceptions.TokenHeld`, :class:`TokenChangedOwner`,
    :class:`TokenJustRenewed`, :class:`~wallet.exceptions.BalanceLimitExceeded`; nothing moves then.
    """
    found = find_token(token_id, owner=owner)
    successor_id = _successor_of(found)
    payee_id = found.payer_id or found.owner_id
    users = get_user_model()._default_manager.in_bulk({found.owner_id, payee_id})
    holder, payee = users[found.owner_id], users[payee_id]
    # A refund may take a bonus back: those accounts are locked together with those of owner and payer.
    sources = [found.purchase_source, *([source_of(successor_id)] if successor_id else [])]
    referrers = {source: referrer_of_purchase(source) if refund else None for source in sources}
    locked = lock_accounts_of(holder, payee, *filter(None, referrers.values()))
    accounts = {account.user_id: account for account in locked}
    token = lock_token(token_id)
    if (token.owner_id, token.payer_id) != (found.owner_id, found.payer_id):
        raise TokenChangedOwner
    if _successor_of(token) != successor_id:
        raise TokenJustRenewed
    # Read after the locks: time spent waiting for them is used time, as an activation that came first is.
    now = clock.now()
    demand_usable(token, now)
    was_scheduled = token.status(now) is AccessToken.Status.SCHEDULED
    revoked = [token]
    if successor_id is not None:
        # It would go on with the secret that is being taken away.
        revoked.append(AccessToken.objects.get(pk=successor_id))
    total = received = ZERO
    for one in revoked:
        amount = refund_due(one, now) if refund else ZERO
        payee_account = accounts[one.payer_id or one.owner_id]
        if amount > 0:
            credit(
                account=payee_account,
                counterparty=SystemAccount.REVENUE,
                amount=amount,
                kind=TransferKind.REFUND,
                source=source_of(one.id),
                description=_("Refund of an access token, %(hours)d h") % {"hours": one.duration_hours},
            )
            referrer = referrers[one.purchase_source]
            if referrer is not None:
                take_back_for_refund(
                    purchase_source=one.purchase_source,
                    refund_source=source_of(one.id),
                    refunded=amount,
                    referrer_account=accounts[referrer.pk],
                )
        one.refunded += amount
        one.revoked_at = one.changed_at = now
        one.revoked_reason = reason
        one.renew_at = None
        one.save(update_fields=["refunded", "revoked_at", "changed_at", "revoked_reason", "renew_at"])
        own = amount if one.payer_id is None else ZERO
        record(
            "token.revoked",
            holder,
            {
                "token_id": str(one.id),
                "refund_amount": str(own),
                "balance": str(accounts[holder.pk].balance),
                "reason": reason,
                "actor_id": None if actor is None else str(actor.pk),
            },
        )
        if one.payer_id is not None and amount > 0:
            record(
                "gift.refunded",
                payee,
                {"token_id": str(one.id), "refund_amount": str(amount), "balance": str(payee_account.balance)},
            )
        total += amount
        received += own
    tell_after_commit([(one.id, one.digest) for one in revoked], revoked=True)
    if was_scheduled:
        _let_predecessor_end(token, now)
    return Revocation(token=token, refund_amount=total, received=received, balance=accounts[holder.pk].balance)


def _successor_of(token: AccessToken) -> uuid.UUID | None:
    """Return the successor that is bought and not revoked, if there is one."""
    successors = AccessToken.objects.filter(predecessor=token, revoked_at__isnull=True)
    return successors.values_list("pk", flat=True).first()


def _let_predecessor_end(successor: AccessToken, now: datetime) -> None:
    """Make the gateway forget that another token was to follow."""
    predecessor = successor.predecessor
    assert predecessor is not None
    predecessor.auto_renew = False
    predecessor.changed_at = now
    predecessor.save(update_fields=["auto_renew", "changed_at"])
    tell_after_commit([(predecessor.id, predecessor.digest)], revoked=False)


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
