"""Path rules and servers as they were read last, kept in Redis for a worker that starts while PostgreSQL is away.

Its neighbours go on with what they have in memory; it should do the same, not refuse what they let through or send
requests where they would not. Whoever reads PostgreSQL writes what it read, every few seconds, so that a Redis that
lost its memory has it again. Private keys are sealed as they are in PostgreSQL.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import hiredis

from proxy import keys
from proxy.redis_link import RedisAway, RedisLink
from proxy.scopes import Rule
from proxy.targets import KeyUnreadable, TargetSpec, from_settings, seal_key, unseal_key

logger = logging.getLogger(__name__)

T = TypeVar("T")

RULES, TARGETS = "rules", "targets"


def pack_rules(rules: Sequence[Rule]) -> str:
    """Return rules as JSON."""
    return json.dumps([dataclasses.asdict(rule) for rule in rules])


def unpack_rules(packed: bytes) -> list[Rule]:
    """Raises :class:`TypeError`, :class:`ValueError` and their like for what another version has written."""
    return [Rule(**row) for row in json.loads(packed)]


def pack_targets(specs: Sequence[TargetSpec]) -> str:
    """Return servers as JSON; those of the environment as none, as each worker knows its own."""
    rows = []
    for spec in specs if list(specs) != from_settings() else ():
        key = seal_key(spec.client_key).decode("ascii") if spec.client_key else ""
        scopes = sorted(scope.decode("ascii") for scope in spec.scopes)
        rows.append({**dataclasses.asdict(spec), "scopes": scopes, "client_key": key})
    return json.dumps(rows)


def unpack_targets(packed: bytes) -> list[TargetSpec]:
    """Raises as :func:`unpack_rules`, and :class:`KeyUnreadable`."""
    specs = []
    for row in json.loads(packed):
        key = unseal_key(row["client_key"].encode("ascii")) if row["client_key"] else ""
        scopes = frozenset(scope.encode("ascii") for scope in row["scopes"])
        specs.append(TargetSpec(**{**row, "scopes": scopes, "client_key": key}))
    return specs or from_settings()


class LastKnown:
    """One worker's access to it."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        # What was read last, by name, beside how it is written.
        self._written: dict[str, tuple[Sequence[Any], str]] = {}

    def keep_rules(self, rules: Sequence[Rule]) -> None:
        """Write rules that have just been read from PostgreSQL. Lost without a word while Redis is away."""
        self._keep(RULES, rules, pack_rules)

    def keep_targets(self, specs: Sequence[TargetSpec]) -> None:
        """As :meth:`keep_rules`."""
        self._keep(TARGETS, specs, pack_targets)

    def _keep(self, name: str, read: Sequence[T], pack: Callable[[Sequence[T]], str]) -> None:
        known = self._written.get(name)
        if known is None or known[0] != read:
            known = self._written[name] = read, pack(read)
        self._link.tell(b"HSET", keys.last_known(), name, known[1])

    async def read(self) -> tuple[list[Rule] | None, list[TargetSpec] | None]:
        """Return rules and servers; ``None`` for what nobody has written or nobody can read."""
        try:
            rules, specs = await self._link.call(b"HMGET", keys.last_known(), RULES, TARGETS)
        except (RedisAway, hiredis.ReplyError) as exc:
            logger.warning("What was known last cannot be asked for: %s", exc)
            return None, None
        return _readable(unpack_rules, rules), _readable(unpack_targets, specs)


def _readable(unpack: Callable[[bytes], list[T]], packed: bytes | None) -> list[T] | None:
    if not packed:
        return None
    try:
        return unpack(packed)
    except (AttributeError, KeyError, TypeError, ValueError, KeyUnreadable) as exc:
        # Of another version, or of another SECRET_KEY.
        logger.warning("What was known last cannot be read: %s", type(exc).__name__)
        return None
