"""Reads of access tokens."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db.models import F, Q, QuerySet

from tokens import secrets
from tokens.exceptions import TokenNotFound
from tokens.models import AccessToken, Gift, RenewalDefault, RotatedDigest, Scope, TierSubscription, TokenPrice


@dataclass(frozen=True, slots=True)
class Successor:
    """The token that goes on with a secret from ``activated_at`` on, which is when its predecessor ends."""

    token_id: uuid.UUID
    scope: str
    duration_seconds: int
    activated_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Credential:
    """What the gateway must know of a token to decide on a request."""

    token_id: uuid.UUID
    user_id: uuid.UUID
    scope: str
    duration_seconds: int
    activated_at: datetime | None
    expires_at: datetime | None
    revoked: bool
    #: Offered as a gift: refused until that is claimed or cancelled.
    held: bool
    owner_active: bool
    owner_is_superuser: bool
    #: The device that used it last, and when, as far as that was written.
    device_id: str
    device_seen_at: datetime | None
    #: The owner's tier and its rate, proxied requests a minute; ``None`` is the platform's.
    tier: str = ""
    tier_rate: int | None = None
    #: Networks in CIDR notation that clients may come from; none is every network.
    networks: tuple[str, ...] = ()
    #: Also when the token has ended already: the gateway's clock decides which of the two is meant.
    successor: Successor | None = None


def credential_by_digest(digest: str) -> Credential | None:
    """Return the credential of a token's SHA-256 (hexadecimal), revoked and expired ones included."""
    row = (
        AccessToken.objects.filter(digest=digest)
        .values_list(
            "id",
            "owner_id",
            "scope_id",
            "duration_hours",
            "activated_at",
            "expires_at",
            "revoked_at",
            "held_at",
            "owner__is_active",
            "owner__is_superuser",
            "device_id",
            "device_seen_at",
            "owner__tier_id",
            "owner__tier__proxy_requests_per_minute",
            "allowed_ips",
            "successor__id",
            "successor__scope_id",
            "successor__duration_hours",
            "successor__activated_at",
            "successor__expires_at",
            "successor__revoked_at",
        )
        .first()
    )
    if row is None:
        return None
    token_id, user_id, scope, hours, activated_at, expires_at, revoked_at, held_at, active, superuser = row[:10]
    device_id, seen_at, tier, tier_rate, networks = row[10:15]
    next_id, next_scope, next_hours, next_start, next_end, next_revoked_at = row[15:]
    successor = None
    if next_id is not None and next_revoked_at is None:
        assert next_start is not None and next_end is not None
        successor = Successor(next_id, next_scope, next_hours * 3600, next_start, next_end)
    return Credential(
        token_id=token_id,
        user_id=user_id,
        scope=scope,
        duration_seconds=hours * 3600,
        activated_at=activated_at,
        expires_at=expires_at,
        revoked=revoked_at is not None,
        held=held_at is not None,
        owner_active=active,
        owner_is_superuser=superuser,
        device_id=device_id,
        device_seen_at=seen_at,
        tier=tier,
        tier_rate=tier_rate,
        networks=tuple(networks),
        successor=successor,
    )


@dataclass(frozen=True, slots=True)
class ChangedCredential:
    """A digest that must not be answered from a cache filled before it changed.

    ``revoked``: open streams of the token must be cut too. A digest that a rotation replaced is listed as its own
    entry with ``revoked`` false: it belongs to nobody any more.
    """

    token_id: uuid.UUID
    digest: str
    revoked: bool
    changed_at: datetime


def digests_of_user(user_id: uuid.UUID) -> list[tuple[uuid.UUID, str]]:
    """Return token id and digest of every token of a user that a cache may hold: those not revoked."""
    return list(
        AccessToken.objects.filter(owner_id=user_id, revoked_at__isnull=True).order_by("pk").values_list("id", "digest")
    )


def digests_of_tier(tier: str) -> list[str]:
    """Return the digests of every token, neither revoked nor expired, whose owner has a tier."""
    unspent = AccessToken.objects.unspent().filter(owner__tier_id=tier)
    return list(unspent.order_by("pk").values_list("digest", flat=True))


def successor_of(token_id: uuid.UUID) -> uuid.UUID | None:
    """Return the token that was bought to go on when this one ends; ``None`` when there is none."""
    return AccessToken.objects.filter(predecessor=token_id).values_list("pk", flat=True).first()


def changed_since(moment: datetime) -> list[ChangedCredential]:
    """Return the credentials that changed at or after a moment. One that was only made then is none of them.

    The moment of a change is read before its transaction commits: ask for a little more than the time since the
    last call, so that a slow commit is not missed.
    """
    changed = [
        ChangedCredential(token_id, digest, revoked_at is not None, changed_at)
        for token_id, digest, revoked_at, changed_at in AccessToken.objects.filter(
            # A new row's moment of change is read before its moment of making. A revocation counts whatever the clocks
            # of two machines say.
            Q(revoked_at__isnull=False) | Q(changed_at__gt=F("created_at")),
            changed_at__gte=moment,
        )
        .order_by("changed_at")
        .values_list("id", "digest", "revoked_at", "changed_at")
    ]
    rotated = RotatedDigest.objects.filter(rotated_at__gte=moment).order_by("rotated_at")
    changed += [
        ChangedCredential(token_id, digest, False, rotated_at)
        for token_id, digest, rotated_at in rotated.values_list("token", "digest", "rotated_at")
    ]
    return changed


def tokens_of(user: Any, *, active_only: bool = False) -> QuerySet[AccessToken]:
    """Return a user's tokens, newest first."""
    tokens = AccessToken.objects.owned_by(user).select_related("successor")
    return tokens.unspent() if active_only else tokens


def check_token(secret: str) -> AccessToken | None:
    """Return the token of a secret, usable or not; ``None`` for an unknown one. Never activates anything."""
    if not secrets.is_well_formed(secret):
        return None
    token = AccessToken.objects.select_related("owner").filter(digest=secrets.digest(secret)).first()
    if token is not None and token.status() is AccessToken.Status.EXPIRED:
        # Its successor has started, whether or not that was written down yet.
        goes_on = AccessToken.objects.select_related("owner").due_to_take_over().filter(predecessor=token).first()
        return goes_on or token
    return token


def renews_by_default(user: Any, *, duration_hours: int, scope: str) -> bool:
    """Whether the account wants a token of this duration and scope to renew itself."""
    return RenewalDefault.objects.filter(
        Q(duration_hours__isnull=True) | Q(duration_hours=duration_hours),
        Q(scope__isnull=True) | Q(scope=scope),
        user=user,
        enabled=True,
    ).exists()


@dataclass(frozen=True, slots=True)
class RenewalTerms:
    """An account's default of renewal; ``cost`` is what one renewal costs today, if one duration is meant and sold."""

    enabled: bool
    duration_hours: int | None
    scope: str | None
    daily_cap: Decimal | None
    cost: Decimal | None


def renewal_terms_of(user: Any) -> RenewalTerms:
    """Return what an account wants of the tokens it buys from now on."""
    terms = RenewalDefault.objects.filter(user=user).first() or RenewalDefault(user=user)
    sold = None
    if terms.duration_hours is not None:
        sold = prices_for_sale().filter(duration_hours=terms.duration_hours).first()
    return RenewalTerms(
        enabled=terms.enabled,
        duration_hours=terms.duration_hours,
        scope=terms.scope_id,
        daily_cap=terms.daily_cap,
        cost=None if sold is None else sold.current_price,
    )


def current_subscription(user: Any) -> TierSubscription | None:
    """Return how the user came by their tier; ``None`` for one that nobody pays for or gave."""
    return TierSubscription.objects.current().filter(user=user).first()


def tokens_like(text: str, *, limit: int) -> list[AccessToken]:
    """Return the tokens that staff mean by an id, a hint (``znz_…last4``) or its last four characters, newest first."""
    try:
        meant = Q(pk=uuid.UUID(text))
    except ValueError:
        meant = Q(last_four=text.removeprefix(secrets.PREFIX).lstrip(".…"))
    return list(AccessToken.objects.filter(meant).select_related("owner").order_by("-created_at")[:limit])


def prices_for_sale() -> QuerySet[TokenPrice]:
    """Return what is sold today with its ``current_price``, shortest duration first."""
    return TokenPrice.objects.filter(is_active=True).priced_at()


def current_prices(at: datetime | None = None) -> dict[int, Decimal]:
    """Return what each duration on the price list costs at a moment (default: now), ZNC by hours, for sale or not."""
    return {entry.duration_hours: entry.current_price for entry in TokenPrice.objects.priced_at(at)}


def scopes_for_sale() -> list[str]:
    """Return the names of the scopes sold today."""
    return list(Scope.objects.filter(is_active=True).values_list("slug", flat=True))


def token_of(user: Any, token_id: uuid.UUID) -> AccessToken:
    """Return one of the user's own tokens. Raises :class:`~tokens.exceptions.TokenNotFound`."""
    token = AccessToken.objects.owned_by(user).filter(pk=token_id).first()
    if token is None:
        raise TokenNotFound
    return token


def gifts_of(user: Any) -> QuerySet[Gift]:
    """Return the gifts that a user made or claimed with all they show, newest first."""
    return Gift.objects.of(user).select_related("token", "giver", "claimed_by")


def share_device(one: Any, other: Any, since: datetime) -> bool:
    """Whether tokens of both users were last used from the same device, each at or after a moment."""
    seen = AccessToken.objects.filter(device_seen_at__gte=since).exclude(device_id="")
    return seen.filter(owner=one, device_id__in=seen.filter(owner=other).values("device_id")).exists()
