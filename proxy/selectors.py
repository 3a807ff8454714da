"""Reads of the gateway's tables."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.db import connection

from proxy import keys
from proxy.breaker import CLOSED, HALF_OPEN, OPEN
from proxy.models import ScopeRule, ScopeVersion, Session, UpstreamTarget
from proxy.scopes import Rule
from proxy.targets import DISABLED, KeyUnreadable, TargetSpec, from_settings, make_tls_context, unseal_key
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
