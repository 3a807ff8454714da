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
from tokens.exceptions import TokenAlreadyRevoked, TokenChangedOwner, TokenExpired, TokenJustRenewed
from tokens.models import AccessToken
from tokens.services.access import find_token, lock_token, tell_after_commit
from tokens.services.purchase import source_of
from wallet.services import SystemAccount, TransferKind, credit, lock_accounts_of
from zenzefi.lib import clock
from zenzefi.lib.money import ZERO
from zenzefi.lib.transactions import in_transaction


@dataclass(frozen=True, slots=True)
class Revocation:
    """A revoked token, what was paid back for it and its successor, and the owner's balance right after, in ZNC."""

    token: AccessToken
    refund_amount: Decimal
    balance: Decimal


@in_transaction
def revoke_token(
    *, token_id: uuid.UUID, actor: Any | None, refund: bool, reason: str = "", owner: Any | None = None
) -> Revocation:
    """Revoke a token for good and, with ``refund``, pay back what its unused time cost.

    A successor that was bought for it is revoked with it: both answer to the secret that is taken away. A successor
    revoked before its time leaves its predecessor to its own end.

    ``actor`` is who did it, none for the platform itself. With ``owner`` a token of anyone else is not found; staff
    pass none.

    Raises :class:`~tokens.exceptions.TokenNotFound`, :class:`TokenAlreadyRevoked`, :class:`TokenExpired`,
    :class:`TokenChangedOwner`, :class:`TokenJustRenewed`, :class:`~wallet.exceptions.BalanceLimitExceeded`; nothing
    moves then.
    """
    found = find_token(token_id, owner=owner)
    owner_id = found.owner_id
    payee = get_user_model()._default_manager.get(pk=owner_id)
    successor_id = _successor_of(found)
    # A refund may take a bonus back: that account is locked together with the owner's. The buyer of both tokens is
    # one person, who earned a bonus for at most one of them.
    sources = [found.purchase_source, *([source_of(successor_id)] if successor_id else [])]
    earned = {source: referrer_of_purchase(source) for source in sources} if refund else {}
    referrer = next(filter(None, earned.values()), None)
    account, *others = lock_accounts_of(payee, *([referrer] if referrer else []))
    token = lock_token(token_id)
    if token.owner_id != owner_id:
        raise TokenChangedOwner
    if _successor_of(token) != successor_id:
        raise TokenJustRenewed
    # Read after the locks: time spent waiting for them is used time, as an activation that came first is.
    now = clock.now()
    status = token.status(now)
    if status is AccessToken.Status.REVOKED:
        raise TokenAlreadyRevoked
    if status is AccessToken.Status.EXPIRED:
        raise TokenExpired
    total = ZERO
    revoked = [token]
    if successor_id is not None:
        # It would go on with the secret that is being taken away.
        revoked.append(AccessToken.objects.get(pk=successor_id))
    for one in revoked:
        amount = refund_due(one, now) if refund else ZERO
        if amount > 0:
            credit(
                account=account,
                counterparty=SystemAccount.REVENUE,
                amount=amount,
                kind=TransferKind.REFUND,
                source=source_of(one.id),
                description=_("Refund of an access token, %(hours)d h") % {"hours": one.duration_hours},
            )
            if earned[one.purchase_source] is not None:
                take_back_for_refund(
                    purchase_source=one.purchase_source,
                    refund_source=source_of(one.id),
                    refunded=amount,
                    referrer_account=others[0],
                )
        one.refunded += amount
        one.revoked_at = one.changed_at = now
        one.revoked_reason = reason
        one.renew_at = None
        one.save(update_fields=["refunded", "revoked_at", "changed_at", "revoked_reason", "renew_at"])
        record(
            "token.revoked",
            payee,
            {
                "token_id": str(one.id),
                "refund_amount": str(amount),
                "balance": str(account.balance),
                "reason": reason,
                "actor_id": None if actor is None else str(actor.pk),
            },
        )
        total += amount
    tell_after_commit([(one.id, one.digest) for one in revoked], revoked=True)
    if status is AccessToken.Status.SCHEDULED:
        _let_predecessor_end(token, now)
    return Revocation(token=token, refund_amount=total, balance=account.balance)


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
