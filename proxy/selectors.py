"""Reads of the gateway's tables."""

from __future__ import annotations

from proxy.models import ScopeRule


def scope_rules() -> list[tuple[str, str]]:
    """Return every path rule as a pair of scope and pattern."""
    return list(ScopeRule.objects.values_list("scope_id", "pattern"))
