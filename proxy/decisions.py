"""What is decided about a request, and what is asked for it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum

from proxy.limits import NONE, Limits


class Outcome(IntEnum):
    """What ``lua/decide.lua`` answers."""

    OK = 0
    MISS = 1
    UNKNOWN = 2
    REVOKED = 3
    EXPIRED = 4
    OWNER_DISABLED = 5
    DEVICE_MISSING = 6
    DEVICE_MALFORMED = 7
    PATH_AMBIGUOUS = 8
    SCOPE_FORBIDDEN = 9
    DEVICE_CONFLICT = 10
    RATE_LIMITED = 11
    GATEWAY_CLOSED = 12
    ADDRESS_FORBIDDEN = 13
    CONCURRENCY_LIMITED = 14
    QUOTA_EXCEEDED = 15
    #: Asked with :data:`LET_GO`.
    GATEWAY_ONLY = 16
    #: Asked together with :attr:`REVOKED`.
    HELD = 20


#: A token that may not be used at all, whatever the request.
REFUSED_CREDENTIALS = frozenset(
    {Outcome.UNKNOWN, Outcome.REVOKED, Outcome.HELD, Outcome.EXPIRED, Outcome.OWNER_DISABLED}
)

#: What is asked: whether a request is admitted, what the token is, whether an open exchange may go on, whether a
#: request is admitted that others carry without telling what became of it.
ADMIT, LOOK, RECHECK, LET_GO = b"1", b"0", b"2", b"3"
#: How the lease of an exchange begins that only this process knows of.
LOCAL_LEASE = b"local"

DEVICE_OK, DEVICE_MISSING, DEVICE_MALFORMED = b"0", b"1", b"2"


class ValidationAway(Exception):
    """Nobody can say whether the token is good: Redis and PostgreSQL are away, or the fallback is at its limit."""


@dataclass(slots=True)
class Decision:
    """The answer about one request. Times are milliseconds since the epoch, 0 before activation."""

    outcome: int
    generation: bytes = b""
    token_id: bytes = b""
    user_id: bytes = b""
    scope: bytes = b""
    activated: int = 0
    expires: int = 0
    #: Milliseconds that the token lasts from its activation.
    duration: int = 0
    #: Requests left in the window; -1 where no limit applies.
    remaining: int = -1
    reset_ms: int = 0
    limits: Limits = NONE
    #: Counts against the token's requests at once until it is given back; empty where nothing limits them.
    lease: bytes = b""
    #: What refused: a name of :data:`proxy.limits.QUOTAS`, ``rate`` or ``concurrency``, and its value.
    rule: str = ""
    limit: int = 0
    #: Seconds, of a rate.
    window: int = 0


def milliseconds(moment: datetime | None) -> int:
    return 0 if moment is None else round(moment.timestamp() * 1000)


def moment(milliseconds_: int) -> datetime:
    """Return milliseconds since the epoch as a time in UTC, exactly."""
    return datetime.fromtimestamp(milliseconds_ // 1000, UTC).replace(microsecond=milliseconds_ % 1000 * 1000)
