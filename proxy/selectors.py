"""Reads of the gateway's tables."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import redis.exceptions
from django.conf import settings
from django.db.models import BigIntegerField, QuerySet, Sum
from django.db.models.functions import Coalesce

from proxy import keys
from proxy.limits import COLUMNS, NONE, Limits, first_day
from proxy.models import GatewaySwitch, ScopeRule, Session, TierLimits, TokenLimits, TokenUsage
from tokens import selectors as tokens_selectors
from tokens.selectors import Credential
from zenzefi.lib import clock
from zenzefi.lib import redis as redis_client
from zenzefi.lib.network import network_of


def scope_rules() -> list[tuple[str, str]]:
    """Return every path rule as a pair of scope and pattern."""
    return list(ScopeRule.objects.values_list("scope_id", "pattern"))


def share_device(one: Any, other: Any, since: datetime) -> bool:
    """Whether both users came through the gateway with one device, each at or after a moment."""
    sessions = Session.objects.filter(last_activity_at__gte=since)
    return sessions.filter(user=one, device_id__in=sessions.filter(user=other).values("device_id")).exists()


def share_address(one: Any, other: Any, since: datetime) -> bool:
    """Whether both users came through the gateway from one place, each at or after a moment."""
    sessions = Session.objects.filter(last_activity_at__gte=since, client_address__isnull=False)
    one_from, other_from = (
        {network_of(str(address)) for address in sessions.filter(user=user).values_list("client_address", flat=True)}
        for user in (one, other)
    )
    return not one_from.isdisjoint(other_from)


# --- limits


def is_gateway_closed() -> bool:
    return GatewaySwitch.objects.filter(is_closed=True).exists()


@dataclass(frozen=True, slots=True)
class Usage:
    """Requests and bytes of one token in one period."""

    requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


@dataclass(frozen=True, slots=True)
class Admission:
    """What the gateway must know of a token, its limits included."""

    credential: Credential
    limits: Limits
    #: Of a token with quotas: what PostgreSQL counted since the day and the month began.
    today: Usage | None = None
    this_month: Usage | None = None
    #: Of a token with several seats: the devices seen lately and when.
    devices: tuple[tuple[str, datetime], ...] = ()


def limits_of(credential: Credential) -> Limits:
    """Return the limits in force for a token."""
    own = TokenLimits.objects.filter(token_id=credential.token_id).values("requests_per_minute", *COLUMNS).first()
    tier = TierLimits.objects.filter(tier_id=credential.tier).values(*COLUMNS).first()
    found = Limits(rate=credential.tier_rate or 0, networks=credential.networks).merged(own, tier)
    return found.for_superuser() if credential.owner_is_superuser else found


def usage_of(token_id: uuid.UUID, rule: str, moment: datetime) -> Usage:
    """Return what PostgreSQL counted in the period of a quota that a moment lies in."""
    rows = TokenUsage.objects.filter(token_id=token_id, day__gte=first_day(rule, moment).date())
    return Usage(
        **rows.aggregate(
            requests=Coalesce(Sum("requests"), 0, output_field=BigIntegerField()),
            bytes_in=Coalesce(Sum("bytes_in"), 0, output_field=BigIntegerField()),
            bytes_out=Coalesce(Sum("bytes_out"), 0, output_field=BigIntegerField()),
        )
    )


def admission_by_digest(digest: str) -> Admission | None:
    """Return what decides on the requests of a token's SHA-256 (hexadecimal); ``None`` for an unknown one."""
    credential = tokens_selectors.credential_by_digest(digest)
    if credential is None:
        return None
    if credential.revoked:
        return Admission(credential, NONE)
    limits = limits_of(credential)
    today = this_month = None
    devices: tuple[tuple[str, datetime], ...] = ()
    now = clock.now()
    if limits.has_quotas:
        today = usage_of(credential.token_id, "requests_per_day", now)
        this_month = usage_of(credential.token_id, "requests_per_month", now)
    if limits.seats > 1:
        seen = Session.objects.open().filter(
            token_id=credential.token_id, last_activity_at__gt=now - timedelta(seconds=settings.DEVICE_IDLE_SECONDS)
        )
        devices = tuple(seen.order_by("-last_activity_at").values_list("device_id", "last_activity_at"))
    return Admission(credential, limits, today, this_month, devices[: limits.seats])


def devices_of(token_id: uuid.UUID) -> QuerySet[Session]:
    """Return a token's devices by their open sessions, the one seen last first."""
    return Session.objects.open().filter(token_id=token_id).order_by("-last_activity_at", "-id")


def seat_holders(token_id: uuid.UUID) -> set[str] | None:
    """Return the devices that hold a seat of a token right now; ``None`` while Redis is away."""
    client: Any = redis_client.client()
    oldest = (clock.now() - timedelta(seconds=settings.DEVICE_IDLE_SECONDS)).timestamp() * 1000
    try:
        single = client.get(keys.device(token_id))
        several = client.zrangebyscore(keys.seats(token_id), oldest, "+inf")
    except redis.exceptions.RedisError:
        return None
    return {name.decode() for name in (*several, *([single] if single else ()))}
