"""Names of the gateway's keys in Redis, shared by the data plane, its receivers and its tasks."""

from __future__ import annotations

from django.conf import settings

#: Seconds that a tombstone and a generation outlive the change: far longer than any fill that is under way.
TOMBSTONE_SECONDS = 3600
#: Seconds that the live totals of a token are kept after its last use.
USAGE_SECONDS = 45 * 86400

#: On the channel of changes, beside digests: path rules changed.
RULES_CHANGED = "rules"
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


def device(token_id: object) -> str:
    return f"{prefix()}dev:{token_id}"


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


def prober() -> str:
    return f"{prefix()}prober"
