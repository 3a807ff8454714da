"""Reads of users and their sessions."""

from __future__ import annotations

import uuid
from datetime import datetime

from django.db.models import Q, QuerySet

from accounts import access_tokens
from accounts.exceptions import AccessTokenExpired, InvalidAccessToken
from accounts.models import BlockedMailDomain, SignInSession, Tier, User, same_in_any_case
from accounts.validators import ascii_domain, normalise_email
from zenzefi.lib.network import network_of


def tiers_for_sale() -> QuerySet[Tier]:
    """Return the tiers that accounts may choose, cheapest first."""
    return Tier.objects.filter(is_active=True)


def tier_by_slug(slug: str) -> Tier | None:
    """Return a tier, for sale or not."""
    return Tier.objects.filter(pk=slug).first()


def user_by_email(email: str) -> User | None:
    """Return the user with this address in any case, disabled ones included."""
    return User.objects.with_email(email).first()


def is_address_of(user: User, email: str) -> bool:
    """Whether an address is the user's, in any case. No query."""
    return normalise_email(email).lower() == user.email.lower()


def user_by_referral_code(code: str) -> User | None:
    """Return whose code it is; a disabled user's code counts for nobody."""
    return User.objects.filter(referral_code=code.strip().upper(), is_active=True).first()


def duplicates(user: User) -> list[str]:
    """Return which of ``email`` and ``username`` another user has already, in any case."""
    same_email, same_username = (same_in_any_case(field, getattr(user, field)) for field in ("email", "username"))
    found = (
        User.objects.exclude(pk=user.pk)
        .filter(Q(same_email) | Q(same_username))
        .annotate(same_email=same_email, same_username=same_username)
        .values_list("same_email", "same_username")
    )
    return [field for field, taken in zip(("email", "username"), zip(*found, strict=True), strict=False) if any(taken)]


def live_session(*, session_id: uuid.UUID, user_id: uuid.UUID) -> SignInSession | None:
    """Return the session with its user and their tier, in one query, if both are alive."""
    return (
        SignInSession.objects.alive()
        .select_related("user__tier")
        .filter(pk=session_id, user_id=user_id, user__is_active=True)
        .first()
    )


def live_sessions(user: User) -> QuerySet[SignInSession]:
    """Return where the user is signed in, latest use first."""
    return SignInSession.objects.alive().filter(user=user).order_by("-last_used_at", "-pk")


def mail_domain_is_blocked(email: str) -> bool:
    """Whether the domain of an address, or one that it is part of, is blocked."""
    labels = ascii_domain(email.rpartition("@")[2]).split(".")
    domains = [".".join(labels[start:]) for start in range(len(labels))]
    return BlockedMailDomain.objects.filter(domain__in=domains).exists()


def share_address(one: User, other: User, *, since: datetime) -> bool:
    """Whether both have registered or signed in from one place at or after a moment.

    A place is an IPv4 address, or the /64 that one subscriber of IPv6 has.
    """
    return not _networks_of(one, since).isdisjoint(_networks_of(other, since))


def _networks_of(user: User, since: datetime) -> set[str]:
    known = set(
        SignInSession.objects.filter(user=user, last_used_at__gte=since, address__isnull=False).values_list(
            "address", flat=True
        )
    )
    if user.registered_from is not None and user.created_at >= since:
        known.add(user.registered_from)
    return {network_of(str(address)) for address in known}


def is_access_token(text: str) -> bool:
    """Whether this platform signed the text as an access token, which may have expired since."""
    try:
        access_tokens.verify(text)
    except AccessTokenExpired:
        return True
    except InvalidAccessToken:
        return False
    return True
