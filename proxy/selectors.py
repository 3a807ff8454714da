"""Reads of the gateway's tables."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from proxy.models import ScopeRule, Session
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
