"""The switch for everything: while it is off, the gateway lets nothing through and ends what is open.

Redis says so to every request (``lua/decide.lua``). Beside that each worker reads the row in PostgreSQL: when it is
told, and every few seconds, or each second while Redis is away.
"""

from __future__ import annotations

import asyncio
import logging

from django.db import DatabaseError

from proxy import selectors
from proxy.database import Database, DatabaseAway
from proxy.redis_link import RedisLink
from proxy.streams import Registry

logger = logging.getLogger(__name__)


class Gate:
    """One worker's knowledge of the switch."""

    def __init__(self, database: Database, registry: Registry) -> None:
        self._database = database
        self._registry = registry
        self.closed = False

    async def load(self) -> None:
        """Read the switch; end what is open if it is off. What cannot be read stays as it was."""
        try:
            closed = await self._database.run(selectors.is_gateway_closed)
        except (DatabaseAway, DatabaseError) as exc:
            # Also before the migrations of this version have run.
            logger.warning("The gateway's switch could not be read: %s", exc)
            return
        if closed != self.closed:
            logger.warning("The gateway was %s", "closed" if closed else "opened")
        self.closed = closed
        if closed:
            for exchange in self._registry:
                exchange.interrupt("gateway_closed")

    async def keep_looking(self, link: RedisLink) -> None:
        waited = 0
        while True:
            await asyncio.sleep(1.0)
            waited += 1
            if link.up and waited < 5:
                continue
            waited = 0
            try:
                await self.load()
            except Exception:
                logger.exception("The gateway's switch could not be read")
