"""Tiers bought by the month.

The order of locks: the user's account, then the subscription, then the user.
"""

from __future__ import annotations

import calendar
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.contrib.auth import get_user_model
from django.utils.translation import gettext as _

from accounts import selectors as accounts_selectors
from accounts.services import FREE_TIER, set_tier
from notifications.services import record
from tokens.exceptions import TierNotSold, TierUnchanged
from tokens.models import TierSubscription
from tokens.services.revocation import refund_for
from wallet.exceptions import InsufficientBalance
from wallet.services import SystemAccount, TransferKind, credit, debit, lock_accounts_of
from zenzefi.lib import clock
from zenzefi.lib.money import ZERO
from zenzefi.lib.transactions import in_transaction

#: How long a row that a worker took in hand is left alone by the others; far longer than one renewal takes.
CLAIM = timedelta(minutes=2)

EndReason = TierSubscription.EndReason


@dataclass(frozen=True, slots=True)
class ChosenTier:
    """The tier that the user has now, how they came by it, and the balance right after in ZNC."""

    tier: Any
    subscription: TierSubscription | None
    balance: Decimal


@in_transaction
def choose_tier(*, user: Any, tier: str) -> ChosenTier:
    """Buy another tier for a month from now on, or cancel at the end of the month by choosing the free one.

    What is unused of a month that was paid is credited, cut to the cent, before the new price is taken. The tier
    that the user has, cancelled, is resumed by choosing it again; that costs nothing. A tier that staff gave ends at
    once.

    Raises :class:`TierNotSold`, :class:`TierUnchanged`, :class:`~wallet.exceptions.InsufficientBalance`,
    :class:`~wallet.exceptions.BalanceLimitExceeded`; nothing has changed then.
    """
    [account] = lock_accounts_of(user)
    current = _lock_current(user)
    wanted = accounts_selectors.tier_by_slug(tier)
    if wanted is None or not wanted.is_active:
        raise TierNotSold
    now = clock.now()
    has = FREE_TIER if current is None else current.tier_id
    if wanted.slug == has:
        if current is None or current.cancelled_at is None:
            raise TierUnchanged
        current.cancelled_at = None
        current.save(update_fields=["cancelled_at"])
        record("tier.resumed", user, {"tier": has})
        return ChosenTier(wanted, current, account.balance)
    if wanted.slug == FREE_TIER:
        assert current is not None
        left = _cancel(current, now)
        return ChosenTier(wanted if left is None else left.tier, left, account.balance)
    if current is not None:
        _end(current, EndReason.CHANGED, now, account=account)
    chosen = TierSubscription(
        user=user,
        tier=wanted,
        price=wanted.monthly_price,
        started_at=now,
        period_start=now,
        period_end=month_later(now, 1),
        due_at=month_later(now, 1),
    )
    _pay(chosen, account)
    chosen.save(force_insert=True)
    set_tier(user_id=user.pk, tier=wanted.slug, reason="bought")
    _tell("tier.bought", chosen, balance=str(account.balance))
    return ChosenTier(wanted, chosen, account.balance)


@in_transaction
def grant_tier(*, user: Any, tier: str, reason: str, actor: Any) -> TierSubscription:
    """Give a user a tier without charge and without end, as staff; the free one takes away what they have.

    What is unused of a month that was paid is credited. Returns what was given, or what was taken away.

    Raises :class:`TierNotSold` for a tier that is not there, :class:`TierUnchanged`,
    :class:`~wallet.exceptions.BalanceLimitExceeded`.
    """
    [account] = lock_accounts_of(user)
    current = _lock_current(user)
    given = accounts_selectors.tier_by_slug(tier)
    if given is None:
        raise TierNotSold
    now = clock.now()
    if current is not None:
        _end(current, EndReason.SET_BY_STAFF, now, account=account)
    set_tier(user_id=user.pk, tier=given.slug, reason=reason, actor=actor)
    if given.slug == FREE_TIER:
        if current is None:
            raise TierUnchanged
        return current
    granted = TierSubscription.objects.create(
        user=user, tier=given, price=ZERO, started_at=now, period_start=now, granted_by=actor, reason=reason
    )
    _tell("tier.granted", granted, reason=reason, actor_id=str(actor.pk))
    return granted


@in_transaction
def claim_due_subscriptions(*, limit: int = 100) -> list[uuid.UUID]:
    """Take subscriptions in hand whose month is over, and return their ids.

    Rows that another worker has in hand are skipped; one whose worker died comes up again after :data:`CLAIM`.
    """
    now = clock.now()
    due = TierSubscription.objects.due(now).order_by("due_at", "pk")
    ids = list(due.select_for_update(skip_locked=True, no_key=True).values_list("pk", flat=True)[:limit])
    TierSubscription.objects.filter(pk__in=ids).update(due_at=now + CLAIM)
    return ids


@in_transaction
def renew_subscription(*, subscription_id: uuid.UUID) -> bool:
    """Take the price of the next month, or let the subscription end; returns whether it goes on.

    A month that nobody collected in time is not collected later: the next one that is paid holds the present moment.
    Safe to call at any time, also from many workers at once.
    """
    owner_id = TierSubscription.objects.values_list("user_id", flat=True).get(pk=subscription_id)
    user = get_user_model()._default_manager.get(pk=owner_id)
    [account] = lock_accounts_of(user)
    subscription = _lock_current(user)
    now = clock.now()
    if (
        subscription is None
        or subscription.pk != subscription_id
        or subscription.period_end is None
        or subscription.period_end > now
    ):
        return False
    tier = subscription.tier
    ends_because: EndReason | None = None
    if subscription.cancelled_at is not None:
        ends_because = EndReason.CANCELLED
    elif not user.is_active:
        ends_because = EndReason.USER_DISABLED
    elif not tier.is_active:
        ends_because = EndReason.NOT_SOLD
    else:
        subscription.price = tier.monthly_price
        while subscription.period_end <= now:
            subscription.month += 1
            subscription.period_start = subscription.period_end
            subscription.period_end = month_later(subscription.started_at, subscription.month + 1)
        subscription.due_at = subscription.period_end
        try:
            _pay(subscription, account)
        except InsufficientBalance:
            ends_because = EndReason.INSUFFICIENT_BALANCE
            subscription.refresh_from_db()
    if ends_because is not None:
        _end(subscription, ends_because, now)
        set_tier(user_id=user.pk, tier=FREE_TIER, reason=ends_because)
        return False
    subscription.save(update_fields=["price", "month", "period_start", "period_end", "due_at"])
    _tell("tier.renewed", subscription, balance=str(account.balance))
    return True


def month_later(moment: datetime, months: int) -> datetime:
    """Return the same day and time that many months later; the last day of a month that is too short for it."""
    years, month = divmod(moment.month - 1 + months, 12)
    year, month = moment.year + years, month + 1
    day = min(moment.day, calendar.monthrange(year, month)[1])
    return moment.replace(year=year, month=month, day=day)


def _lock_current(user: Any) -> TierSubscription | None:
    current = TierSubscription.objects.current().filter(user=user)
    return current.select_for_update(of=("self",), no_key=True).select_related("tier").first()


def _pay(subscription: TierSubscription, account: Any) -> None:
    if subscription.price == ZERO:
        return
    debit(
        account=account,
        counterparty=SystemAccount.REVENUE,
        amount=subscription.price,
        kind=TransferKind.SUBSCRIPTION,
        source=subscription.source,
        description=_("Tier %(name)s, a month") % {"name": subscription.tier.name},
    )


def _cancel(subscription: TierSubscription, now: datetime) -> TierSubscription | None:
    """Let it end with the month that is paid; what staff gave, at once."""
    if subscription.period_end is None:
        _end(subscription, EndReason.CANCELLED, now)
        set_tier(user_id=subscription.user_id, tier=FREE_TIER, reason=EndReason.CANCELLED)
        return None
    if subscription.cancelled_at is not None:
        raise TierUnchanged
    subscription.cancelled_at = now
    subscription.save(update_fields=["cancelled_at"])
    _tell("tier.cancelled", subscription)
    return subscription


def _end(subscription: TierSubscription, reason: str, now: datetime, *, account: Any | None = None) -> None:
    """End a subscription; with the owner's account, locked, credit what is unused of the month."""
    refund = ZERO if account is None else _unused(subscription, now)
    if account is not None and refund > ZERO:
        credit(
            account=account,
            counterparty=SystemAccount.REVENUE,
            amount=refund,
            kind=TransferKind.REFUND,
            source=subscription.source,
            description=_("Unused part of tier %(name)s") % {"name": subscription.tier.name},
        )
    subscription.refunded = refund
    subscription.ended_at = now
    subscription.end_reason = reason
    subscription.save(update_fields=["refunded", "ended_at", "end_reason"])
    _tell("tier.ended", subscription, reason=reason, refunded=str(refund))


def _unused(subscription: TierSubscription, at: datetime) -> Decimal:
    """Return what is unused of the present month, ZNC, cut to the cent."""
    if subscription.period_end is None:
        return ZERO
    second = timedelta(seconds=1)
    return refund_for(
        subscription.price,
        unused_seconds=(subscription.period_end - at) // second,
        total_seconds=(subscription.period_end - subscription.period_start) // second,
    )


def _tell(event: str, subscription: TierSubscription, **more: str) -> None:
    record(
        event,
        subscription.user,
        {
            "subscription_id": str(subscription.id),
            "tier": subscription.tier_id,
            "price": str(subscription.price),
            "period_end": subscription.period_end and subscription.period_end.isoformat(),
            **more,
        },
    )
