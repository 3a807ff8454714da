"""Reads of the gateway's tables."""

from __future__ import annotations

import functools
import logging
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import redis.exceptions
from django.conf import settings
from django.db import connection
from django.db.models import BigIntegerField, QuerySet, Sum
from django.db.models.functions import Coalesce

from proxy import keys
from proxy.breaker import CLOSED, HALF_OPEN, OPEN
from proxy.limits import COLUMNS, NONE, Limits, first_day
from proxy.models import (
    GatewaySwitch,
    ScopeRule,
    ScopeVersion,
    Session,
    TierLimits,
    TokenLimits,
    TokenUsage,
    UpstreamTarget,
)
from proxy.scopes import Rule
from proxy.targets import DISABLED, KeyUnreadable, TargetSpec, from_settings, make_tls_context, unseal_key
from tokens import selectors as tokens_selectors
from tokens.selectors import Credential
from zenzefi.lib import clock
from zenzefi.lib import redis as redis_client
from zenzefi.lib.health import Upstream
from zenzefi.lib.network import network_of

logger = logging.getLogger(__name__)


def scope_rules() -> list[Rule]:
    """Return every path rule in force."""
    rows = ScopeRule.objects.order_by("pk").values_list("scope_id", "pattern", "method", "action")
    return [Rule(scope, pattern, method, action == ScopeRule.Action.DENY) for scope, pattern, method, action in rows]


def changes_of(version: ScopeVersion) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the rules that a version added to the one before it, and those that it took away."""
    before = (
        ScopeVersion.objects.filter(scope_id=version.scope_id, number__lt=version.number).order_by("-number").first()
    )
    old = before.rules if before is not None else []
    return [rule for rule in version.rules if rule not in old], [rule for rule in old if rule not in version.rules]


def upstream_targets() -> list[TargetSpec]:
    """Return the servers to send requests to: the rows as soon as there is one, else those of the environment."""
    rows = UpstreamTarget.objects.order_by("name").prefetch_related("scopes")
    return [spec_of(row) for row in rows] or from_settings()


#: Seconds that the report of health waits for the rows; the servers themselves must be asked in what is left.
_ROWS_WITHIN = 0.8


def upstreams_to_check() -> list[Upstream]:
    """Return the servers that health reports on: all but those switched off; the environment's without PostgreSQL."""
    found: list[TargetSpec] = []

    def read() -> None:
        try:
            found.extend(upstream_targets())
        except Exception as exc:
            # Whatever it is, the check of the database reports it.
            logger.debug("The servers could not be read: %s", exc)
        finally:
            connection.close()

    reader = threading.Thread(target=read, name="health-upstreams", daemon=True)
    reader.start()
    reader.join(_ROWS_WITHIN)
    return [
        Upstream(spec.url, spec.host, functools.partial(make_tls_context, spec))
        for spec in list(found) or from_settings()
        if spec.state != DISABLED
    ]


def client_key_of(row: UpstreamTarget) -> str:
    """Return the private key of a server's row; empty when there is none or it cannot be read any more."""
    if not row.client_key:
        return ""
    try:
        return unseal_key(bytes(row.client_key))
    except KeyUnreadable:
        logger.error("The key of server %s cannot be read: SECRET_KEY has changed since it was stored", row.name)
        return ""


def spec_of(row: UpstreamTarget) -> TargetSpec:
    """Return a row as the gateway wants it."""
    return TargetSpec(
        id=str(row.pk),
        name=row.name,
        url=row.url.rstrip("/"),
        weight=row.weight,
        scopes=frozenset(scope.pk.encode("ascii") for scope in row.scopes.all()),
        state=row.state,
        host=row.host,
        max_connections=row.max_connections or 0,
        counts_gateway_errors=row.counts_gateway_errors,
        carried_at_edge=row.carried_at_edge,
        probe_path=row.probe_path,
        ca_certificates=row.ca_certificates,
        client_certificate=row.client_certificate,
        client_key=client_key_of(row),
    )


@dataclass(frozen=True, slots=True)
class LiveState:
    """How a server is doing, as the workers tell. ``circuit`` is empty when Redis does not answer."""

    circuit: str = ""
    in_flight: int = 0
    error: str = ""
    error_at: datetime | None = None


#: Milliseconds after which a worker that told nothing is not counted any more.
_TOLD_WITHIN = 5000


def live_states(target_ids: Sequence[str]) -> dict[str, LiveState]:
    """Return how servers are doing, in one call. Raises :class:`redis.exceptions.RedisError`."""
    with redis_client.client().pipeline(transaction=False) as pipe:
        pipe.time()
        for target_id in target_ids:
            pipe.hgetall(keys.upstream(target_id))
            pipe.hgetall(keys.upstream_in_flight(target_id))
        (seconds, microseconds), *found = pipe.execute()
    now = seconds * 1000 + microseconds // 1000
    states = {}
    for place, target_id in enumerate(target_ids):
        circuit, flights = found[place * 2], found[place * 2 + 1]
        in_flight = 0
        for told in flights.values():
            count, _, at = told.decode().partition(":")
            if now - int(at) <= _TOLD_WITHIN:
                in_flight += int(count)
        until = max(int(circuit.get(b"until", 0)), int(circuit.get(b"down", 0)))
        opened = bool(int(circuit.get(b"opens", 0))) or int(circuit.get(b"down", 0)) > now
        error_at = int(circuit.get(b"error_at", 0))
        states[target_id] = LiveState(
            circuit=CLOSED if not opened else OPEN if until > now else HALF_OPEN,
            in_flight=in_flight,
            error=circuit.get(b"error", b"").decode("utf-8", "replace"),
            error_at=datetime.fromtimestamp(error_at / 1000, UTC) if error_at else None,
        )
    return states


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
