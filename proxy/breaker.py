"""Whether a server may be asked: its circuit in this worker, and what the workers tell each other about it.

A circuit is closed while the server works. It opens after ``eject_after`` failures in a row and then, when the
back-off is over, lets one request of all workers try. That one closes it or opens it for twice as long. A server
that fails its probes is left alone in the same way until it passes them again.
"""

from __future__ import annotations

import random
from time import monotonic, time
from typing import Any

from django.conf import settings

from proxy import keys
from proxy.redis_link import RedisAway, RedisLink, Script

BREAKER = Script("breaker")
UPSTREAMS = Script("upstreams")
SCRIPTS = (BREAKER, UPSTREAMS)

CLOSED, HALF_OPEN, OPEN = "closed", "half_open", "open"
#: Seconds until a circuit is asked about again that another worker is trying.
_OTHERS_TRIAL = 0.25
#: Characters of an error that are kept.
_ERROR_CHARS = 200


def backoff(opens: int) -> float:
    """Return the seconds of the nth opening in a row: doubled each time up to the cap, less up to a fifth at random."""
    conf = settings.GATEWAY
    seconds: float = min(conf["eject_max_seconds"], conf["eject_seconds"] * 2.0 ** min(opens - 1, 30))
    return seconds * (1 - random.random() / 5)  # noqa: S311 - spreads load, guards nothing


class Circuit:
    """The circuit of one server in this worker. Times are on the monotonic clock."""

    __slots__ = (
        "closed",
        "down_until",
        "error",
        "error_at",
        "failures",
        "open_until",
        "opens",
        "resting_until",
        "shared",
        "told",
        "trial",
        "turns",
    )

    def __init__(self) -> None:
        #: All that a request looks at while everything works.
        self.closed = True
        #: In a row, without an answer between them.
        self.failures = 0
        #: Openings in a row; 0: the breaker is closed.
        self.opens = 0
        self.open_until = 0.0
        #: Until when failed probes speak against it.
        self.down_until = 0.0
        #: After a connection failed: others are preferred until then.
        self.resting_until = 0.0
        #: Whether Redis knows of this opening.
        self.shared = False
        #: The exchange that tries whether the server is back.
        self.trial: Any = None
        self.error = ""
        #: Seconds since the epoch.
        self.error_at = 0.0
        #: Whether Redis knows of this error.
        self.told = True
        #: Grows whenever this worker itself opened or closed it: what Redis said before is old news then.
        self.turns = 0

    def state(self) -> str:
        if self.closed:
            return CLOSED
        return OPEN if monotonic() < self.due_at() else HALF_OPEN

    def due_at(self) -> float:
        """Return when it may be tried."""
        return max(self.open_until, self.down_until)

    def fail(self, error: str, *, by: Any) -> bool:
        """Note a failure and return whether the circuit opened by it."""
        self.error, self.error_at, self.told = error[:_ERROR_CHARS], time(), False
        if not self.closed:
            if self.trial is not by:
                # One that was under way when the circuit opened tells nothing new.
                return False
        else:
            self.failures += 1
            if self.failures < settings.GATEWAY["eject_after"]:
                return False
        self.trial = None
        self.opens += 1
        self.open_until = monotonic() + backoff(self.opens)
        self.closed = self.shared = False
        self.turns += 1
        return True

    def open_for(self, seconds: float, opens: int) -> None:
        """Take over an opening that Redis knows."""
        self.open_until = monotonic() + seconds
        self.opens = max(1, opens)
        self.closed, self.shared = False, True

    def close(self) -> None:
        """The server works, as far as requests tell."""
        self.turns += 1
        self.failures = self.opens = 0
        self.open_until = 0.0
        self.trial = None
        if self.down_until <= monotonic():
            self.down_until = 0.0
        self.closed = not self.down_until

    def learn(self, opens: int, left: float, down: float) -> None:
        """Take over what Redis knows: openings in a row, seconds that it stays open, seconds of failed probes."""
        if down > 0:
            self.mark_down(down)
        elif self.down_until:
            self.mark_up()
        if opens and self.trial is None and (left > 0 or not self.opens):
            self.open_for(left, opens)
        elif not opens and self.opens and self.shared:
            self.close()

    def mark_down(self, seconds: float) -> None:
        """It failed its probes, which is worth this long unless repeated."""
        self.down_until = monotonic() + seconds
        self.closed = False

    def mark_up(self) -> None:
        """It passes its probes."""
        self.down_until = 0.0
        self.closed = not self.opens


async def share_opening(link: RedisLink, target_id: str, circuit: Circuit) -> None:
    """Tell the other workers; take over theirs when it came first. Raises :class:`RedisAway`."""
    conf = settings.GATEWAY
    remaining, opens = await link.run(
        BREAKER,
        (keys.upstream(target_id),),
        (
            "open",
            round(conf["eject_seconds"] * 1000),
            round(conf["eject_max_seconds"] * 1000),
            random.random(),  # noqa: S311 - as above
            circuit.error,
            keys.changes_channel(),
            keys.UPSTREAM_CHANGED,
        ),
    )
    if not circuit.closed and circuit.trial is None:
        circuit.open_for(remaining / 1000, opens)


async def may_try(link: RedisLink, target_id: str, circuit: Circuit, *, by: Any) -> bool:
    """Whether this exchange may be the one that tries the server. Without Redis, one of each worker may.

    A trial that nobody has told the end of, as its process was killed, makes room for another after ``lease_seconds``.
    """
    circuit.trial = by
    lease = round(settings.GATEWAY["lease_seconds"] * 1000)
    verdict, wait = 1, 0
    if link.up:
        try:
            verdict, wait = await link.run(BREAKER, (keys.upstream(target_id),), ("try", lease))
        except RedisAway:
            pass
    if circuit.trial is not by:
        return bool(circuit.closed)
    if verdict == 1:
        return True
    circuit.trial = None
    # Another worker tries it, or opened it again meanwhile.
    circuit.open_until = monotonic() + max(_OTHERS_TRIAL, wait / 1000)
    return False


async def share_closing(link: RedisLink, target_id: str) -> None:
    """Tell the other workers that the server works. Raises :class:`RedisAway`."""
    await link.run(BREAKER, (keys.upstream(target_id),), ("close", keys.changes_channel(), keys.UPSTREAM_CHANGED))


async def give_up_trial(link: RedisLink, target_id: str) -> None:
    """Let another request try: this one ended without telling anything. Raises :class:`RedisAway`."""
    await link.run(BREAKER, (keys.upstream(target_id),), ("release",))


async def share_probe(link: RedisLink, target_id: str, *, down_for: float, error: str) -> None:
    """Tell all workers what the probes found; ``down_for`` 0: it is there. Raises :class:`RedisAway`."""
    await link.run(
        BREAKER,
        (keys.upstream(target_id),),
        (
            "probe",
            round(down_for * 1000),
            error[:_ERROR_CHARS],
            keys.changes_channel(),
            keys.UPSTREAM_CHANGED,
        ),
    )
