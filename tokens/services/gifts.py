"""Giving a token away that was never used.

The order of locks: accounts, then gifts, then tokens. Each state is read after its lock.
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import transaction

from accounts.selectors import is_address_of
from notifications.services import record
from tokens import gift_codes
from tokens.exceptions import (
    GiftAlreadyClaimed,
    GiftAwaitsApproval,
    GiftCancelled,
    GiftExpired,
    GiftLimitReached,
    GiftNotAwaiting,
    GiftNotFound,
    GiftToSelf,
    GiftUnavailable,
    OwnGift,
    TokenActivated,
)
from tokens.models import AccessToken, Gift
from tokens.services.access import demand_usable, lock_token, tell_after_commit
from tokens.services.maintenance import replace_secret
from tokens.signals import device_released
from wallet.services import lock_accounts_of
from zenzefi.lib import clock
from zenzefi.lib.transactions import in_transaction

_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class OfferedGift:
    """A gift and its code, which is shown this once."""

    gift: Gift
    code: str

    def __repr__(self) -> str:
        return f"OfferedGift(gift={self.gift!r})"


@dataclass(frozen=True, slots=True)
class ClaimedGift:
    """A claimed gift, its token, and the new secret, which is shown this once."""

    gift: Gift
    token: AccessToken
    secret: str

    def __repr__(self) -> str:
        return f"ClaimedGift(gift={self.gift!r})"


@in_transaction
def offer_gift(*, token_id: uuid.UUID, giver: Any, message: str = "", recipient_email: str = "") -> OfferedGift:
    """Offer a token that was never used to whoever has the code, or of them to the account of one address.

    From the commit on the giver's secret is refused. A gift of more than ``GIFT_APPROVAL_ABOVE_HOURS`` hours can be
    claimed once staff have approved it.

    Raises :class:`~tokens.exceptions.TokenNotFound`, :class:`~tokens.exceptions.TokenAlreadyRevoked`,
    :class:`~tokens.exceptions.TokenExpired`, :class:`~tokens.exceptions.TokenHeld`, :class:`TokenActivated`,
    :class:`GiftToSelf`, :class:`GiftLimitReached`.
    """
    if recipient_email and is_address_of(giver, recipient_email):
        raise GiftToSelf
    # Gifts of one user wait for each other at the account, so that two at once do not both count as the last.
    lock_accounts_of(giver)
    token = lock_token(token_id, owner=giver)
    demand_usable(token)
    if token.activated_at is not None:
        raise TokenActivated
    now = clock.now()
    _demand_allowance(giver, now)
    code = gift_codes.generate()
    waits = token.duration_hours > settings.GIFT_APPROVAL_ABOVE_HOURS
    gift = Gift.objects.create(
        token=token,
        giver=giver,
        code_digest=gift_codes.digest(code),
        code_last_four=code[-4:],
        message=message,
        recipient_email=recipient_email,
        status=Gift.Status.AWAITING_APPROVAL if waits else Gift.Status.PENDING,
        created_at=now,
        expires_at=None if waits else _end(now),
    )
    token.held_at = token.changed_at = now
    token.save(update_fields=["held_at", "changed_at"])
    _tell("gift.created", gift, giver, status=gift.status)
    tell_after_commit([(token.id, token.digest)], revoked=False)
    return OfferedGift(gift=gift, code=gift_codes.shown(code))


@in_transaction
def claim_gift(*, code: str, claimer: Any) -> ClaimedGift:
    """Make the claimer the token's owner, with a new secret; the giver's is dead for good.

    What was paid stays with the token, and a refund goes to whoever paid (:func:`tokens.services.revoke_token`). The
    label, the device and the networks were the giver's and are forgotten.

    Raises :class:`GiftNotFound` for a code that is unknown or meant for another address, :class:`OwnGift`,
    :class:`GiftAwaitsApproval`, :class:`GiftAlreadyClaimed`, :class:`GiftCancelled`, :class:`GiftExpired`, and
    :class:`GiftUnavailable` while giver or claimer is disabled.
    """
    meant = gift_codes.canonical(code)
    found = Gift.objects.filter(code_digest=gift_codes.digest(meant)).first() if meant else None
    if found is not None and found.giver_id == claimer.pk:
        raise OwnGift
    if found is None or (found.recipient_email and not is_address_of(claimer, found.recipient_email)):
        raise GiftNotFound
    gift = _lock_gift(found.pk)
    now = clock.now()
    _demand_open(gift)
    if gift.status == Gift.Status.AWAITING_APPROVAL:
        raise GiftAwaitsApproval
    if gift.expires_at is None or gift.expires_at <= now:
        raise GiftExpired
    users = get_user_model()._default_manager.in_bulk([gift.giver_id, claimer.pk])
    if not all(user.is_active for user in users.values()):
        raise GiftUnavailable
    token = lock_token(gift.token_id)
    payer_id = token.payer_id or token.owner_id
    token.owner = claimer
    # A gift may come back to whoever paid.
    token.payer_id = None if payer_id == claimer.pk else payer_id
    token.label = ""
    token.allowed_ips = []
    # Whoever gave it away decides nothing about the claimer's money.
    token.auto_renew = False
    token.device_id = ""
    token.device_seen_at = now
    token.held_at = None
    secret = replace_secret(token)
    token.save(
        update_fields=[
            "owner",
            "payer",
            "label",
            "allowed_ips",
            "auto_renew",
            "device_id",
            "device_seen_at",
            "held_at",
            "digest",
            "last_four",
            "changed_at",
        ]
    )
    _close(gift, Gift.Status.CLAIMED, now, claimed_by=claimer)
    for user in (users[gift.giver_id], claimer):
        _tell("gift.claimed", gift, user)
    # A device of the giver may have claimed the token by a request that reached nothing.
    transaction.on_commit(lambda: device_released.send_robust(sender=AccessToken, token_id=token.id))
    return ClaimedGift(gift=gift, token=token, secret=secret)


@in_transaction
def cancel_gift(*, gift_id: uuid.UUID, giver: Any) -> Gift:
    """Take an open gift back; the token works again with the secret it had.

    Raises :class:`GiftNotFound`, also for a gift of somebody else, :class:`GiftAlreadyClaimed`,
    :class:`GiftCancelled`, :class:`GiftExpired`.
    """
    gift = _lock_gift(gift_id, giver=giver)
    _demand_open(gift)
    _hand_back(gift, lock_token(gift.token_id), Gift.Status.CANCELLED)
    _tell("gift.cancelled", gift, giver)
    return gift


@in_transaction
def approve_gift(*, gift_id: uuid.UUID, actor: Any, reason: str) -> Gift:
    """Let a gift that waits for it be claimed, for ``GIFT_VALID_DAYS`` from now on.

    Raises :class:`GiftNotFound`, :class:`GiftNotAwaiting`, and :class:`OwnGift` for a gift of the actor's own.
    """
    gift = _lock_gift(gift_id)
    if gift.status != Gift.Status.AWAITING_APPROVAL:
        raise GiftNotAwaiting
    if gift.giver_id == actor.pk:
        raise OwnGift
    now = clock.now()
    gift.status = Gift.Status.PENDING
    gift.expires_at = _end(now)
    gift.save(update_fields=["status", "expires_at"])
    _store_review(gift, now, actor, reason)
    _tell("gift.approved", gift, gift.giver, expires_at=gift.expires_at.isoformat())
    return gift


@in_transaction
def reject_gift(*, gift_id: uuid.UUID, actor: Any, reason: str) -> Gift:
    """Refuse an open gift, approved or not: the token goes back to the giver.

    Raises :class:`GiftNotFound`, :class:`GiftAlreadyClaimed`, :class:`GiftCancelled`, :class:`GiftExpired`.
    """
    gift = _lock_gift(gift_id)
    _demand_open(gift)
    _hand_back(gift, lock_token(gift.token_id), Gift.Status.REJECTED)
    _store_review(gift, clock.now(), actor, reason)
    _tell("gift.rejected", gift, gift.giver, reason=reason)
    return gift


@in_transaction
def return_expired_gifts(*, limit: int = 500) -> int:
    """Hand tokens back whose gifts nobody claimed in time, each once; return how many of at most ``limit``.

    Rows that another worker, a claim or a cancellation has in hand are skipped, not waited for.
    """
    due = list(
        Gift.objects.overdue()
        .order_by("expires_at", "pk")
        .select_for_update(of=("self",), skip_locked=True, no_key=True)
        .select_related("giver")[:limit]
    )
    # In the order of the primary key, as every flow that locks several tokens.
    wanted = AccessToken.objects.filter(pk__in=[gift.token_id for gift in due]).order_by("pk")
    tokens = {token.pk: token for token in wanted.select_for_update(of=("self",), no_key=True)}
    for gift in due:
        _hand_back(gift, tokens[gift.token_id], Gift.Status.EXPIRED)
        _tell("gift.expired", gift, gift.giver)
    return len(due)


def _end(start: datetime) -> datetime:
    return start + timedelta(days=settings.GIFT_VALID_DAYS)


def _demand_allowance(giver: Any, now: datetime) -> None:
    """Raise :class:`GiftLimitReached` when the giver has made ``GIFTS_PER_DAY`` gifts within 24 hours."""
    last = settings.GIFTS_PER_DAY - 1
    recent = Gift.objects.filter(giver=giver, created_at__gt=now - _DAY).order_by("-created_at")
    oldest = next(iter(recent.values_list("created_at", flat=True)[last : last + 1]), None)
    if oldest is not None:
        raise GiftLimitReached(headers={"Retry-After": str(math.ceil((oldest + _DAY - now).total_seconds()))})


def _lock_gift(gift_id: uuid.UUID, *, giver: Any | None = None) -> Gift:
    """Lock a gift, of this giver when one is given, and return it as it is now. Raises :class:`GiftNotFound`."""
    gifts = Gift.objects.filter(pk=gift_id) if giver is None else Gift.objects.filter(pk=gift_id, giver=giver)
    gift = _locked(gifts.select_related("giver"))
    if gift is None:
        raise GiftNotFound
    return gift


def _locked(gifts: Any) -> Any:
    return gifts.select_for_update(of=("self",), no_key=True).first()


def _demand_open(gift: Gift) -> None:
    if gift.status == Gift.Status.CLAIMED:
        raise GiftAlreadyClaimed
    if gift.status == Gift.Status.EXPIRED:
        raise GiftExpired
    if not gift.is_open:
        raise GiftCancelled


def _hand_back(gift: Gift, token: AccessToken, status: Gift.Status) -> None:
    now = clock.now()
    _close(gift, status, now)
    token.held_at = None
    token.changed_at = now
    token.save(update_fields=["held_at", "changed_at"])
    # The gateway may remember that it was held.
    tell_after_commit([(token.id, token.digest)], revoked=False)


def _close(gift: Gift, status: Gift.Status, at: datetime, *, claimed_by: Any | None = None) -> None:
    gift.status = status
    gift.closed_at = at
    gift.claimed_by = claimed_by
    gift.save(update_fields=["status", "closed_at", "claimed_by"])


def _store_review(gift: Gift, at: datetime, actor: Any, reason: str) -> None:
    gift.reviewed_by, gift.reviewed_at, gift.review_reason = actor, at, reason
    gift.save(update_fields=["reviewed_by", "reviewed_at", "review_reason"])


def _tell(event: str, gift: Gift, user: Any, **more: str) -> None:
    record(event, user, {"gift_id": str(gift.id), "token_id": str(gift.token_id), **more})
