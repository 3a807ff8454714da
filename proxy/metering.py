"""Counting what passes, without ever waiting.

Counts are added in memory, leave as one batch about every second, and a task moves batches to PostgreSQL
(:func:`proxy.services.apply_batches`). A batch has an id: sent twice, it counts once. While Redis is away the
counts stay in memory; at shutdown without Redis they go straight to PostgreSQL.
"""

from __future__ import annotations

import asyncio
import json
import logging
from time import time
from typing import Any
from uuid import UUID, uuid4

from proxy import keys, services
from proxy.database import Database, DatabaseAway
from proxy.limits import day_number, month_number
from proxy.redis_link import RedisAway, RedisLink
from proxy.streams import Exchange, Registry
from proxy.validation import FLUSH
from zenzefi.lib import clock

logger = logging.getLogger(__name__)

#: Rows of one batch: bounds the size of one write to Redis.
BATCH_ROWS = 500
_USER_AGENT_BYTES = 255
_COUNTED = ("requests", "bytes_in", "bytes_out")


class Meter:
    """The counts of one worker since its last flush."""

    def __init__(self, link: RedisLink, database: Database, registry: Registry) -> None:
        self._link = link
        self._database = database
        self._registry = registry
        self._rows: dict[tuple[bytes, bytes], list[Any]] = {}
        # A batch whose answer was lost is sent again under its id, before anything newer.
        self._unsent: tuple[str, list[list[Any]]] | None = None

    def add(self, exchange: Exchange) -> None:
        """Add what an exchange moved since it was last added."""
        bytes_in = exchange.bytes_in - exchange.reported_in
        bytes_out = exchange.bytes_out - exchange.reported_out
        requests = 0
        if exchange.reached and not exchange.counted:
            exchange.counted = True
            requests = 1
        if not (requests or bytes_in or bytes_out):
            return
        exchange.reported_in = exchange.bytes_in
        exchange.reported_out = exchange.bytes_out
        self.count(
            exchange.token_id,
            exchange.device,
            exchange.user_id,
            exchange.address,
            exchange.user_agent,
            requests,
            bytes_in,
            bytes_out,
            int(time() * 1000),
        )

    def count(
        self,
        token_id: bytes,
        device: bytes,
        user_id: bytes,
        address: str,
        user_agent: bytes,
        requests: int,
        bytes_in: int,
        bytes_out: int,
        at: int,
    ) -> None:
        """Add to what a token moved on a device; ``at`` in milliseconds since the epoch."""
        key = (token_id, device)
        row = self._rows.get(key)
        if row is None:
            self._rows[key] = [user_id, address, user_agent, requests, bytes_in, bytes_out, at, at]
        else:
            row[1] = address
            row[2] = user_agent
            row[3] += requests
            row[4] += bytes_in
            row[5] += bytes_out
            row[7] = at

    def add_running(self) -> None:
        """Add the progress of everything that is still running."""
        for exchange in self._registry:
            self.add(exchange)

    def _next_batch(self) -> tuple[str, list[list[Any]]] | None:
        if self._unsent is None and self._rows:
            keys_ = list(self._rows)[:BATCH_ROWS]
            rows = []
            for key in keys_:
                user, address, agent, requests, bytes_in, bytes_out, first, last = self._rows.pop(key)
                token, device = key
                rows.append(
                    [
                        token.decode(),
                        user.decode(),
                        device.decode("ascii"),
                        address,
                        agent.decode("latin-1")[:_USER_AGENT_BYTES],
                        requests,
                        bytes_in,
                        bytes_out,
                        first,
                        last,
                    ]
                )
            self._unsent = (str(uuid4()), rows)
        return self._unsent

    async def flush(self) -> None:
        """Send what there is. Keeps it when Redis is away."""
        while self._link.up and (batch := self._next_batch()) is not None:
            identity, rows = batch
            totals: dict[str, list[int]] = {}
            for row in rows:
                total = totals.setdefault(row[0], [0, 0, 0])
                for index in range(3):
                    total[index] += row[5 + index]
            flat = [item for token, total in totals.items() for item in (token, *total)]
            try:
                await self._link.run(
                    FLUSH,
                    (keys.meter_stream(), keys.batch_marker(identity)),
                    (identity, json.dumps(rows), keys.prefix(), keys.USAGE_SECONDS, *flat),
                )
            except RedisAway:
                return
            # Another flush may have got there first, and be sending the next batch by now.
            if self._unsent is batch:
                self._unsent = None

    async def drain(self) -> None:
        """Send everything before the worker ends, to PostgreSQL if need be."""
        await self.flush()
        while (batch := self._next_batch()) is not None:
            identity, rows = batch
            try:
                await self._database.run(services.apply_batches, [(UUID(identity), rows)])
            except DatabaseAway:
                logger.error("Counts of %d sessions are lost: Redis and PostgreSQL are away", len(rows))
                return
            self._unsent = None


async def live_usage(link: RedisLink, token_id: bytes) -> dict[str, Any] | None:
    """Return a token's requests, bytes_in and bytes_out so far, today and this month (UTC).

    ``None`` when Redis does not know.
    """
    if not link.up:
        return None
    name, now = token_id.decode(), clock.now()
    names = (
        keys.usage(name),
        keys.day_usage(name, day_number(now)),
        keys.month_usage(name, month_number(now)),
    )
    try:
        ever, today, this_month = await asyncio.gather(*(link.call(b"HMGET", key, *_COUNTED) for key in names))
    except RedisAway:
        return None
    return {**_counts(ever), "today": _counts(today), "this_month": _counts(this_month)}


def _counts(values: list[bytes | None]) -> dict[str, int]:
    return {field: int(value or 0) for field, value in zip(_COUNTED, values, strict=True)}
