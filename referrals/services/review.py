"""What staff decide about a held bonus."""

from __future__ import annotations

import uuid
from typing import Any

from notifications.services import record
from referrals.exceptions import BonusNotFound, BonusNotHeld, NothingLeftToPay, ReferrerDisabled
from referrals.models import ReferralBonus
from referrals.services.award import pay_out
from wallet.services import lock_accounts_of
from zenzefi.lib import clock
from zenzefi.lib.transactions import in_transaction


@in_transaction
def approve_bonus(*, bonus_id: uuid.UUID, actor: Any, reason: str) -> ReferralBonus:
    """Pay a held bonus, less the share of what was refunded of its purchase meanwhile.

    Raises :class:`BonusNotFound`, :class:`BonusNotHeld`, :class:`NothingLeftToPay`, :class:`ReferrerDisabled`, and
    :class:`~wallet.exceptions.BalanceLimitExceeded`; nothing moves then.
    """
    found = ReferralBonus.objects.select_related("referrer").filter(pk=bonus_id).first()
    if found is None:
        raise BonusNotFound
    [account] = lock_accounts_of(found.referrer)
    bonus = _lock_held(bonus_id)
    if not bonus.referrer.is_active:
        raise ReferrerDisabled
    if bonus.due <= 0:
        raise NothingLeftToPay
    pay_out(bonus, account)
    _store_review(bonus, actor, reason)
    return bonus


@in_transaction
def reject_bonus(*, bonus_id: uuid.UUID, actor: Any, reason: str) -> ReferralBonus:
    """Decide that a held bonus is not paid, for good. Raises :class:`BonusNotFound`, :class:`BonusNotHeld`."""
    bonus = _lock_held(bonus_id)
    bonus.status = ReferralBonus.Status.REJECTED
    _store_review(bonus, actor, reason)
    return bonus


def _lock_held(bonus_id: uuid.UUID) -> ReferralBonus:
    bonus = (
        ReferralBonus.objects.select_for_update(of=("self",), no_key=True)
        .select_related("referee", "referrer")
        .filter(pk=bonus_id)
        .first()
    )
    if bonus is None:
        raise BonusNotFound
    if bonus.status != ReferralBonus.Status.HELD:
        raise BonusNotHeld
    return bonus


def _store_review(bonus: ReferralBonus, actor: Any, reason: str) -> None:
    bonus.reviewed_by, bonus.reviewed_at, bonus.review_reason = actor, clock.now(), reason
    bonus.save(update_fields=["status", "paid_out", "reviewed_by", "reviewed_at", "review_reason"])
    record(
        "referral.bonus_reviewed",
        None,
        {"bonus_id": str(bonus.id), "status": bonus.status, "actor_id": str(actor.pk), "reason": reason},
    )
