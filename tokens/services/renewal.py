"""Tokens that renew themselves: buying the successor, once, before the end.

What the gateway sees of it, and why, is in ``docs/adr``: the successor waits without a secret, and from the end of its
predecessor on the same secret means the successor.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db.models import Sum
from django.utils.translation import gettext as _

from notifications.services import record
from referrals.services import referrer_awaiting_bonus
from tokens.exceptions import DailyCapReached, DurationNotSold, OwnerDisabled, ScopeNotSold, TokenExpired
from tokens.models import AccessToken, RenewalDefault
from tokens.selectors import RenewalTerms, renewal_terms_of
from tokens.services.access import demand_usable, find_token, lock_token, take_over, tell_after_commit
from tokens.services.purchase import list_price, scope_for_sale, sell_token
from wallet.exceptions import InsufficientBalance
from wallet.services import lock_accounts_of
from zenzefi.lib import clock
from zenzefi.lib.money import ZERO
from zenzefi.lib.transactions import in_transaction

#: How long a row that a worker took in hand is left alone by the others; far longer than one renewal takes.
CLAIM = timedelta(minutes=2)

#: What keeps a renewal from happening until the owner switches it on again. Their codes are the reasons that a
#: token shows.
_REFUSALS = (InsufficientBalance, DailyCapReached, DurationNotSold, ScopeNotSold, OwnerDisabled, TokenExpired)

#: Stands for "as it is" where none means something.
KEEP: Any = object()


@in_transaction
def claim_due_renewals(*, limit: int = 100) -> list[uuid.UUID]:
    """Take tokens in hand of which a successor is due, and return their ids, the first to end first.

    Rows that another worker has in hand are skipped; one whose worker died comes up again after :data:`CLAIM`.
    """
    now = clock.now()
    due = AccessToken.objects.due_for_renewal(now).order_by("renew_at", "pk")
    ids = list(due.select_for_update(of=("self",), skip_locked=True, no_key=True).values_list("pk", flat=True)[:limit])
    AccessToken.objects.filter(pk__in=ids).update(renew_at=now + CLAIM)
    return ids


@in_transaction
def renew_token(*, token_id: uuid.UUID) -> AccessToken | None:
    """Buy the successor of a token that is due, or pause its renewal; ``None`` when no successor was bought.

    Safe to call at any time, also from many workers at once: a token that has a successor, is switched off, paused or
    not due is left as it is. Raises :class:`~tokens.exceptions.TokenNotFound`.
    """
    owner = get_user_model()._default_manager.get(pk=find_token(token_id).owner_id)
    referrer = referrer_awaiting_bonus(owner)
    accounts = lock_accounts_of(owner, *([referrer] if referrer else []))
    return _renew(lock_token(token_id, owner=owner), owner, referrer, accounts)


@in_transaction
def set_auto_renew(*, token_id: uuid.UUID, owner: Any, enabled: bool) -> AccessToken:
    """Let a token renew itself, or not. Switching on ends a pause, and what is due is tried at once.

    A successor that was bought already stays; it has a switch of its own.

    Raises :class:`~tokens.exceptions.TokenNotFound`, and for switching on :class:`~tokens.exceptions.TokenExpired` and
    :class:`~tokens.exceptions.TokenAlreadyRevoked`.
    """
    if not enabled:
        return _switch_off(lock_token(token_id, owner=owner))
    referrer = referrer_awaiting_bonus(owner)
    accounts = lock_accounts_of(owner, *([referrer] if referrer else []))
    token = lock_token(token_id, owner=owner)
    demand_usable(token)
    token.auto_renew = True
    token.renewal_paused = ""
    if token.expires_at is not None and token.renewed_at is None:
        token.renew_at = token.expires_at - token.renewal_lead
    token.save(update_fields=["auto_renew", "renewal_paused", "renew_at"])
    _renew(token, owner, referrer, accounts)
    return token


@in_transaction
def stop_renewal(*, token_id: uuid.UUID, actor: Any, reason: str) -> bool:
    """Switch a token's renewal off, as staff, and tell its owner; returns whether it was on.

    Raises :class:`~tokens.exceptions.TokenNotFound`.
    """
    token = lock_token(token_id)
    if not token.auto_renew:
        return False
    _switch_off(token)
    record(
        "renewal.stopped",
        token.owner,
        {"token_id": str(token.id), "reason": reason, "actor_id": str(actor.pk)},
    )
    return True


@in_transaction
def set_renewal_terms(
    *, user: Any, enabled: bool, duration_hours: int | None, scope: str | None, daily_cap: Decimal | None = KEEP
) -> RenewalTerms:
    """Store what an account wants of the tokens it buys from now on. No token that it has is changed.

    Without a duration tokens of every duration are meant, without a scope those of every scope. ``daily_cap`` is ZNC
    that renewals of all its tokens may cost in a day of UTC; none means the platform's own, leaving it out keeps it.

    Raises :class:`DurationNotSold`, :class:`ScopeNotSold`.
    """
    if duration_hours is not None:
        list_price(duration_hours)
    fields: dict[str, Any] = {
        "enabled": enabled,
        "duration_hours": duration_hours,
        "scope": None if scope is None else scope_for_sale(scope),
    }
    if daily_cap is not KEEP:
        fields["daily_cap"] = daily_cap
    RenewalDefault.objects.update_or_create(user=user, defaults=fields)
    return renewal_terms_of(user)


@in_transaction
def take_over_due(*, limit: int = 500) -> int:
    """Write down that successors have taken over; returns how many were looked at, at most ``limit``."""
    due = AccessToken.objects.due_to_take_over().order_by("activated_at", "pk")
    ids = list(due.values_list("pk", flat=True)[:limit])
    for token_id in ids:
        lock_token(token_id)
    return len(ids)


def _switch_off(token: AccessToken) -> AccessToken:
    token.auto_renew = False
    token.renewal_paused = ""
    token.renew_at = None
    token.save(update_fields=["auto_renew", "renewal_paused", "renew_at"])
    return token


def _renew(token: AccessToken, owner: Any, referrer: Any | None, accounts: list[Any]) -> AccessToken | None:
    """As :func:`renew_token`, with the accounts and the token locked."""
    now = clock.now()
    if token.renew_at is None or token.expires_at is None or now < token.expires_at - token.renewal_lead:
        return None
    try:
        successor = _buy_successor(token, owner, referrer, accounts, now)
    except _REFUSALS as refusal:
        _pause(token, owner, refusal.code)
        return None
    token.renew_at = None
    token.renewed_at = token.changed_at = now
    token.save(update_fields=["renew_at", "renewed_at", "changed_at"])
    record(
        "token.renewed",
        owner,
        {
            "token_id": str(token.id),
            "successor_id": str(successor.id),
            "starts_at": successor.activated_at and successor.activated_at.isoformat(),
            "expires_at": successor.expires_at and successor.expires_at.isoformat(),
            "paid": str(successor.paid),
            "balance": str(accounts[0].balance),
        },
    )
    take_over(successor, token)
    # The gateway must know of the successor before the token ends, whatever it has cached.
    tell_after_commit([(token.id, token.digest)], revoked=False)
    return successor


def _buy_successor(
    token: AccessToken, owner: Any, referrer: Any | None, accounts: list[Any], now: datetime
) -> AccessToken:
    """Sell the owner another token like this one, to start when it ends. Raises one of :data:`_REFUSALS`."""
    assert token.expires_at is not None
    if not owner.is_active:
        raise OwnerDisabled
    # Nobody pays for time that has passed; and who has not been served for longer than this has gone elsewhere.
    starts_at = max(token.expires_at, now)
    if starts_at - token.expires_at > token.renewal_lead:
        raise TokenExpired
    price = list_price(token.duration_hours)
    scope = scope_for_sale(token.scope_id)
    if exceeds_daily_cap(owner, price, now):
        raise DailyCapReached
    expires_at = starts_at + token.duration
    return sell_token(
        owner=owner,
        account=accounts[0],
        referrer=referrer,
        referrer_account=accounts[-1],
        price=price,
        description=_("Renewal of an access token, %(hours)d h") % {"hours": token.duration_hours},
        label=token.label,
        allowed_ips=token.allowed_ips,
        scope=scope,
        duration_hours=token.duration_hours,
        last_four=token.last_four,
        predecessor=token,
        activated_at=starts_at,
        expires_at=expires_at,
        auto_renew=True,
        renew_at=expires_at - token.renewal_lead,
    ).token


def exceeds_daily_cap(owner: Any, price: Decimal, at: datetime) -> bool:
    """Whether a renewal at this price would lift what renewals cost the account that day (UTC) above its cap.

    The owner's account is locked, so no other renewal comes in between.
    """
    own = RenewalDefault.objects.filter(user=owner).values_list("daily_cap", flat=True).first()
    cap = settings.RENEWAL_DAILY_CAP if own is None else own
    if cap is None:
        return False
    midnight = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    renewed = AccessToken.objects.owned_by(owner).filter(predecessor__renewed_at__gte=midnight)
    spent: Decimal = renewed.aggregate(total=Sum("paid", default=ZERO))["total"]
    return spent + price > cap


def _pause(token: AccessToken, owner: Any, reason: str) -> None:
    token.renewal_paused = reason
    token.renew_at = None
    token.save(update_fields=["renewal_paused", "renew_at"])
    record(
        "renewal.failed",
        owner,
        {
            "token_id": str(token.id),
            "reason": reason,
            "expires_at": token.expires_at and token.expires_at.isoformat(),
        },
    )
