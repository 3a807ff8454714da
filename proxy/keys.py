"""Names of the gateway's keys in Redis, shared by the data plane, its receivers and its tasks."""

from __future__ import annotations

from datetime import datetime

from django.conf import settings

#: Seconds that a tombstone and a generation outlive the change: far longer than any fill that is under way.
TOMBSTONE_SECONDS = 3600
#: Seconds that the live totals of a token are kept after its last use.
USAGE_SECONDS = 45 * 86400

#: On the channel of changes, beside digests: path rules changed; the gateway was closed or opened.
RULES_CHANGED = "rules"
GATE_CHANGED = "gate"
#: Servers were added, changed, drained or taken away.
TARGETS_CHANGED = "targets"
#: A circuit opened or closed.
UPSTREAM_CHANGED = "upstream"


def prefix() -> str:
    return f"{settings.REDIS_PREFIX}gw:"


def credential(digest: str) -> str:
    return f"{prefix()}cred:{digest}"


def generation(digest: str) -> str:
    return f"{prefix()}gen:{digest}"


def swept(digest: str, changed_at: datetime) -> str:
    """There once the sweep has evicted a credential for this change of it."""
    return f"{prefix()}swept:{digest}:{changed_at.timestamp():.6f}"


def gate() -> str:
    """There while the gateway is closed."""
    return f"{prefix()}gate"


def device(token_id: object) -> str:
    """The device that holds a token with one seat."""
    return f"{prefix()}dev:{token_id}"


def seats(token_id: object) -> str:
    """The devices that hold a token with several seats, by when they were seen."""
    return f"{prefix()}seat:{token_id}"


def leases(token_id: object) -> str:
    return f"{prefix()}lease:{token_id}"


def pacers(token_id: object) -> str:
    """The workers that slow a token's streams down, by when they last did."""
    return f"{prefix()}pace:{token_id}"


def day_usage(token_id: object, day: int) -> str:
    return f"{prefix()}day:{token_id}:{day}"


def month_usage(token_id: object, month: int) -> str:
    return f"{prefix()}month:{token_id}:{month}"


def usage(token_id: object) -> str:
    return f"{prefix()}use:{token_id}"


def pending_activations() -> str:
    return f"{prefix()}activations"


def meter_stream() -> str:
    return f"{prefix()}meter"


def batch_marker(batch: object) -> str:
    return f"{prefix()}batch:{batch}"


def changes_channel() -> str:
    return f"{prefix()}changes"


def upstream(target_id: str) -> str:
    return f"{prefix()}up:{target_id}"


def upstream_in_flight(target_id: str) -> str:
    return f"{prefix()}flight:{target_id}"


def last_known() -> str:
    """What the workers read from PostgreSQL last and apply: path rules and servers."""
    return f"{prefix()}last"


def prober() -> str:
    return f"{prefix()}prober"
