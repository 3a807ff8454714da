"""Active probes: one worker of all asks every server whether it is there, and tells the others."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import ClientTimeout, DummyCookieJar, TCPConnector
from django.conf import settings
from yarl import URL

from proxy import breaker
from proxy.pool import Pool, Target
from proxy.redis_link import RedisAway, RedisLink
from proxy.targets import DISABLED

logger = logging.getLogger(__name__)

#: From this status on the server counts as not there.
FAILING = 500


@dataclass(slots=True)
class _Tally:
    """Results in a row."""

    passed: int = 0
    failed: int = 0


class Prober:
    """Probes while this worker holds the lease; see ``lua/upstreams.lua``.

    A verdict expires, so that a worker that dies while it probes leaves no server shut out for ever.
    """

    def __init__(self, pool: Pool, link: RedisLink) -> None:
        self._pool = pool
        self._link = link
        self._tallies: dict[str, _Tally] = {}

    async def run(self) -> None:
        while True:
            try:
                if self._pool.is_prober:
                    await self.round()
                else:
                    self._tallies.clear()
            except Exception:
                logger.exception("The servers could not be probed")
            await asyncio.sleep(settings.GATEWAY["probe_interval"] if self._pool.is_prober else 0.5)

    async def round(self) -> None:
        """Probe every server once, beside each other."""
        probed = [one for one in self._pool.targets if one.spec.probe_path and one.spec.state != DISABLED]
        self._tallies = {one.spec.id: self._tallies.get(one.spec.id, _Tally()) for one in probed}
        await asyncio.gather(*(self._probe(target) for target in probed))

    async def _probe(self, target: Target) -> None:
        conf = settings.GATEWAY
        problem = await ask(target, seconds=conf["probe_timeout"])
        tally = self._tallies.get(target.spec.id, _Tally())
        is_down = bool(target.circuit.down_until)
        if problem:
            tally.passed, tally.failed = 0, tally.failed + 1
            # Known as down: one more failure is enough, also to a worker that has just taken over.
            if not is_down and tally.failed < conf["probe_fall"]:
                return
            patience = (conf["probe_rise"] + 2) * (conf["probe_interval"] + conf["probe_timeout"])
            if not is_down:
                logger.warning("Server %s fails its probes: %s", target.spec.name, problem)
            target.circuit.mark_down(patience)
            target.circuit.error = problem
        else:
            tally.passed, tally.failed = tally.passed + 1, 0
            if not is_down or tally.passed < conf["probe_rise"]:
                return
            logger.info("Server %s passes its probes", target.spec.name)
            patience = 0.0
            target.circuit.mark_up()
        target.circuit.turns += 1
        try:
            await breaker.share_probe(self._link, target.spec.id, down_for=patience, error=problem)
        except RedisAway:
            pass
        self._pool.look()


async def ask(target: Target, *, seconds: float) -> str:
    """Return why a server does not pass; empty when it does. A connection of its own: a full pool is no failure."""
    spec = target.spec
    headers = {"User-Agent": "zenzefi-probe", "Host": target.host.decode("latin-1")}
    url = URL(f"{spec.url}/{spec.probe_path.lstrip('/')}", encoded=True)
    options: dict[str, Any] = {"cookie_jar": DummyCookieJar(), "trust_env": False}
    try:
        async with (
            aiohttp.ClientSession(connector=TCPConnector(force_close=True), **options) as session,
            session.get(
                url, headers=headers, ssl=target.tls, allow_redirects=False, timeout=ClientTimeout(total=seconds)
            ) as answer,
        ):
            return f"the probe was answered {answer.status}" if answer.status >= FAILING else ""
    except TimeoutError:
        return f"the probe had no answer within {seconds:g} s"
    except (aiohttp.ClientError, OSError) as exc:
        return f"the probe failed: {str(exc) or type(exc).__name__}"
