"""What changes the path rules of a scope. Every change makes a numbered version of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.db import connection

from proxy import services
from proxy.exceptions import ReasonMissing, RulesUnchanged
from proxy.models import ScopeRule, ScopeVersion
from zenzefi.lib.transactions import in_transaction

#: First key of the advisory locks that keep two changes of one scope apart; the second is made of its name.
_LOCK_CLASS = 0x5C09E

#: What of a rule belongs to a version.
RULE_FIELDS = ("action", "method", "pattern", "description")


def rules_in_force(scope_id: str) -> list[dict[str, str]]:
    """Return a scope's rules as a version keeps them."""
    return list(
        ScopeRule.objects.filter(scope_id=scope_id).order_by("action", "pattern", "method").values(*RULE_FIELDS)
    )


def _lock(scope_ids: Iterable[str]) -> None:
    with connection.cursor() as cursor:
        for scope_id in sorted(set(scope_ids)):
            cursor.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [_LOCK_CLASS, scope_id])


def _keep_version(scope_id: str, *, actor: Any, reason: str) -> ScopeVersion:
    latest = ScopeVersion.objects.filter(scope_id=scope_id).order_by("-number").first()
    rules = rules_in_force(scope_id)
    if latest is not None and latest.rules == rules:
        return latest
    return ScopeVersion.objects.create(
        scope_id=scope_id,
        number=1 if latest is None else latest.number + 1,
        rules=rules,
        reason=reason,
        created_by=actor,
    )


@in_transaction
def save_rule(*, rule: ScopeRule, actor: Any, reason: str) -> ScopeVersion:
    """Add or change a rule and return the scope's new version. Raises :class:`ReasonMissing`."""
    if not reason.strip():
        raise ReasonMissing
    _lock([rule.scope_id])
    rule.save()
    return _keep_version(rule.scope_id, actor=actor, reason=reason)


@in_transaction
def remove_rules(*, rule_ids: Sequence[int], actor: Any, reason: str) -> list[ScopeVersion]:
    """Remove rules and return the new version of each scope that had one of them. Raises :class:`ReasonMissing`."""
    if not reason.strip():
        raise ReasonMissing
    chosen = ScopeRule.objects.filter(pk__in=rule_ids)
    scope_ids = sorted(set(chosen.values_list("scope_id", flat=True)))
    _lock(scope_ids)
    chosen.delete()
    return [_keep_version(scope_id, actor=actor, reason=reason) for scope_id in scope_ids]


@in_transaction
def roll_back(*, version_id: int, actor: Any, reason: str) -> ScopeVersion:
    """Put the rules of a version in force again, which makes a new version.

    Raises :class:`ReasonMissing` and :class:`RulesUnchanged`.
    """
    if not reason.strip():
        raise ReasonMissing
    version = ScopeVersion.objects.get(pk=version_id)
    scope_id = version.scope_id
    _lock([scope_id])
    if rules_in_force(scope_id) == version.rules:
        raise RulesUnchanged
    rules = ScopeRule.objects.filter(scope_id=scope_id)
    rules.delete()
    # Signals are not sent for these.
    ScopeRule.objects.bulk_create(ScopeRule(scope_id=scope_id, **rule) for rule in version.rules)
    services.announce_scope_rules()
    return _keep_version(scope_id, actor=actor, reason=reason)
