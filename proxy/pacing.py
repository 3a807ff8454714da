"""Slowing streams down to a token's bytes a second: what is too fast waits, nothing is refused.

A bucket belongs to a token in this process; all its streams, both directions, draw from it. Processes that serve
one token at the same time learn of each other about once a second and share its rate evenly
(:meth:`proxy.validation.Validator.renew`): until then a new one may move as much again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from time import monotonic
from weakref import WeakValueDictionary

#: Seconds of the rate that may pass at once after a pause, and that one piece may hold.
BURST = 0.1
_SMALLEST_PIECE = 512


class Pace:
    """The bytes a second of one token in this process."""

    __slots__ = ("__weakref__", "_free_at", "_rate", "rate")

    def __init__(self, rate: int) -> None:
        #: Bytes a second of the token, and this process's share of them.
        self.rate = rate
        self._rate = float(rate)
        #: When what was taken so far has been paid for, on the monotonic clock.
        self._free_at = monotonic()

    def share(self, workers: int) -> None:
        """Take an even share of the rate, with this many processes in all."""
        self._rate = self.rate / max(1, workers)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Cut data so small that no piece holds up the others for long."""
        size = max(_SMALLEST_PIECE, int(self._rate * BURST))
        for start in range(0, len(data), size):
            yield data[start : start + size]

    async def take(self, count: int) -> None:
        """Wait until this many bytes may pass. Those who wait take turns in the order they came."""
        now = monotonic()
        due = max(self._free_at, now - BURST)
        self._free_at = due + count / self._rate
        if due > now:
            await asyncio.sleep(due - now)


class Paces:
    """The paces of one worker; each lasts as long as an exchange holds it."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[bytes, Pace] = WeakValueDictionary()

    def of(self, token_id: bytes, rate: int) -> Pace:
        """Return the pace that all exchanges of a token share."""
        pace = self._known.get(token_id)
        if pace is None or pace.rate != rate:
            pace = self._known[token_id] = Pace(rate)
        return pace
