"""The Zenzefi servers of one worker: which of them a request goes to, over which connection.

aiohttp keeps the connections of each server, bounded each for itself. Among the servers that may be asked the one
with the least in flight for its weight is taken; those that are equal in it take turns by weight. A worker with a
single server that works pays for none of this.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from time import monotonic
from typing import Any
from uuid import uuid4

import aiohttp
from aiohttp import ClientTimeout, DummyCookieJar, TCPConnector
from aiohttp.connector import Connection
from django.conf import settings
from yarl import URL

from proxy import breaker, keys
from proxy.breaker import Circuit
from proxy.exceptions import Refused
from proxy.headers import Rewriter
from proxy.redis_link import RedisAway, RedisLink
from proxy.streams import Exchange
from proxy.targets import ACTIVE, DISABLED, TargetSpec, host_of, make_tls_context
from proxy.upstream import Route, UpstreamUnreachable
from proxy.upstream_protocol import UpstreamProtocol

logger = logging.getLogger(__name__)

#: Seconds for which a server that refused a connection is asked only when no other is left.
REST_AFTER_FAILURE = 1.0
#: Seconds between two rounds of telling and asking Redis, and those that the lease of the prober outlasts.
SYNC_SECONDS = 1.0
LEASE_SECONDS = 4.0
#: What an answer of the server's own gateway looks like.
GATEWAY_ERRORS = frozenset({502, 503, 504})


class Target:
    """One server, its connections, and how it is doing."""

    __slots__ = (
        "_pool",
        "_session",
        "base",
        "carrier_key",
        "circuit",
        "connector",
        "host",
        "in_flight",
        "limit",
        "rewriter",
        "route",
        "spec",
        "tls",
        "turn",
        "url",
    )

    def __init__(self, pool: Pool, spec: TargetSpec, tls: Any) -> None:
        loop = asyncio.get_running_loop()
        self._pool = pool
        self._session: aiohttp.ClientSession | None = None
        self.spec = spec
        self.url = spec.url
        url = URL(spec.url)
        #: Path below which everything is relayed, without a slash at its end.
        self.base = url.raw_path.rstrip("/").encode("latin-1")
        #: ``Host`` as the server knows itself.
        self.host = (spec.host or host_of(spec.url)).encode("latin-1")
        #: Connections at once.
        self.limit = spec.max_connections or int(settings.GATEWAY["max_upstream_connections"])
        self.tls = tls
        #: What a carrier in front calls it.
        self.carrier_key = spec.carrier_key
        self.connector = TCPConnector(limit=self.limit, keepalive_timeout=30.0, ttl_dns_cache=10, loop=loop)
        self.connector._factory = partial(UpstreamProtocol, loop=loop)  # type: ignore[assignment]
        self.route = Route("GET", url, ssl=tls, loop=loop)
        self.rewriter = Rewriter([])
        self.circuit = Circuit()
        #: Exchanges of this worker that were given to it and have not ended.
        self.in_flight = 0
        #: Its place among servers with equal load; see :meth:`Pool._least_loaded`.
        self.turn = 0

    def release(self, exchange: Exchange) -> None:
        """The exchange is over, or goes to another server."""
        self.in_flight -= 1
        if self.circuit.trial is exchange:
            self._pool.give_up_trial(self)

    def session(self) -> aiohttp.ClientSession:
        """Return the session for WebSockets. It keeps no cookies, reads no environment, adds no headers."""
        if self._session is None:
            conf = settings.GATEWAY
            head_max = int(conf["upstream_head_max_bytes"])
            self._session = aiohttp.ClientSession(
                # As long as any other request may wait for a connection; for the answer, whoever asks sees to it.
                timeout=ClientTimeout(total=None, connect=conf["connect_timeout"], ceil_threshold=3600),
                max_line_size=head_max,
                max_field_size=head_max,
                max_headers=int(conf["upstream_head_max_fields"]),
                connector=self.connector,
                connector_owner=False,
                cookie_jar=DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        await self.connector.close()


class Pool:
    """The servers of one worker. Must be made inside the event loop.

    ``on_outage`` is awaited with the names of the servers when none of them may be asked any more, and with none
    when one may again; it returns whether that was taken down.
    """

    def __init__(self, link: RedisLink, *, on_outage: Callable[[list[str]], Awaitable[bool]]) -> None:
        self._link = link
        self._on_outage = on_outage
        self.worker = uuid4().hex
        #: Every configured server, those included that get nothing now.
        self.targets: list[Target] = []
        self._retired: list[Target] = []
        self._of_scope: dict[bytes, list[Target]] = {}
        #: Servers whose circuit is not closed. Empty while everything works.
        self._tripped: list[Target] = []
        #: Servers that a carrier in front failed with, as long as we have not asked them ourselves.
        self._suspects: set[Target] = set()
        # A pool slot, name resolution, TCP and TLS, together.
        self._timeout = ClientTimeout(connect=settings.GATEWAY["connect_timeout"], ceil_threshold=3600)
        self._background: set[asyncio.Task[Any]] = set()
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        #: Failures of each server that nobody has counted yet, by its name.
        self.failures: dict[str, int] = {}
        self._told_outage: bool | None = None
        self._telling: asyncio.Task[None] | None = None
        #: Whether this worker is the one that probes.
        self.is_prober = False

    # --- what there is

    async def apply(self, specs: Sequence[TargetSpec]) -> None:
        """Serve these from now on. What is under way goes on; connections of what is gone close when idle."""
        known = {target.spec.id: target for target in self.targets}
        targets = []
        for spec in specs:
            target = known.get(spec.id)
            if target is not None and target.spec.reaches_like(spec):
                target.spec = spec
            else:
                try:
                    tls = await asyncio.to_thread(make_tls_context, spec) if spec.is_secure else True
                    made = Target(self, spec, tls)
                except (OSError, ValueError) as exc:
                    # ssl.SSLError is an OSError. The others serve on, and this one as it was, if it was.
                    logger.error("Server %s cannot be used: %s", spec.name, exc)
                    if target is not None:
                        targets.append(target)
                    continue
                if target is not None:
                    made.circuit = target.circuit
                target = made
            targets.append(target)
        urls = [target.url for target in targets]
        for target in targets:
            own = [target.url, *([f"{URL(target.url).scheme}://{target.spec.host}"] if target.spec.host else [])]
            target.rewriter = Rewriter([*own, *urls])
        self._retired += [target for target in self.targets if target not in targets]
        self.targets = targets
        self._suspects.intersection_update(targets)
        self._of_scope = {}
        self._review()
        await self._close_retired()

    async def _close_retired(self) -> None:
        idle = [target for target in self._retired if not target.in_flight]
        self._retired = [target for target in self._retired if target.in_flight]
        for target in idle:
            await target.close()

    def is_cut(self, exchange: Exchange) -> bool:
        """Whether the exchange runs over a server that was switched off."""
        target: Target | None = exchange.target
        if target is None:
            return False
        return any(one.spec.id == target.spec.id and one.spec.state == DISABLED for one in self.targets)

    def _review(self) -> None:
        """After any circuit changed."""
        self._tripped = [one for one in self.targets if not one.circuit.closed and one.spec.state == ACTIVE]

    # --- choosing

    def _serving(self, scope: bytes) -> list[Target]:
        """Return the servers that requests of a scope may go to at all."""
        found = [
            target
            for target in self.targets
            if target.spec.state == ACTIVE and (not target.spec.scopes or scope in target.spec.scopes)
        ]
        if len(self._of_scope) < 1024:
            self._of_scope[scope] = found
        return found

    def _least_loaded(self, targets: Iterable[Target], avoid: Target | None) -> Target | None:
        """Return the server with the least in flight for its weight, ``avoid`` only if there is no other.

        Among equals weighted turns, as nginx takes them: each gains its weight, the first pays the sum.
        """
        best: list[Target] = []
        least = math.inf
        now = monotonic()
        for target in targets:
            circuit = target.circuit
            if not circuit.closed:
                continue
            load = target.in_flight / target.spec.weight
            if target is avoid or target.in_flight >= target.limit:
                load += 1e9
            if circuit.resting_until > now:
                load += 1e6
            if load < least:
                least, best = load, [target]
            elif load == least:
                best.append(target)
        if len(best) < 2:
            return best[0] if best else None
        total = 0
        chosen = best[0]
        for target in best:
            target.turn += target.spec.weight
            total += target.spec.weight
            if target.turn > chosen.turn:
                chosen = target
        chosen.turn -= total
        return chosen

    async def reserve(
        self, exchange: Exchange, scope: bytes, *, safe: bool, avoid: Target | None = None, never: Target | None = None
    ) -> Target:
        """Give the exchange to a server. ``safe``: the request may be sent again should the server fail.

        Raises :class:`Refused` when none may be asked.
        """
        targets = self._of_scope.get(scope)
        if targets is None:
            targets = self._serving(scope)
        if self._tripped:
            target = await self._on_trial(exchange, targets, safe=safe, never=never)
            if target is not None:
                return target
        if not targets:
            raise self._none_serves()
        usable = targets if never is None else [target for target in targets if target is not never]
        target = self._least_loaded(usable, avoid)
        if target is None:
            raise self._all_out(targets)
        exchange.target = target
        target.in_flight += 1
        return target

    def require(self, scope: bytes) -> None:
        """Raise :class:`Refused` when no server works that requests of a scope may go to.

        For a request that is not given to one, so none is tried by it.
        """
        targets = self._of_scope.get(scope)
        if targets is None:
            targets = self._serving(scope)
        if not targets:
            raise self._none_serves()
        if not any(target.circuit.closed for target in targets):
            raise self._all_out(targets)

    def _none_serves(self) -> Refused:
        return Refused("upstream_unavailable" if self.targets else "upstream_missing")

    def _all_out(self, targets: list[Target]) -> Refused:
        return Refused("upstream_unavailable", headers=((b"retry-after", b"%d" % self._due_in(targets)),))

    @staticmethod
    def _due_in(targets: list[Target]) -> int:
        """Return the seconds until the next trial, at least one."""
        return max(1, math.ceil(min(target.circuit.due_at() for target in targets) - monotonic()))

    async def _on_trial(
        self, exchange: Exchange, targets: list[Target], *, safe: bool, never: Target | None
    ) -> Target | None:
        """Return a server whose turn it is to be tried, if this request may do it.

        While others work, only a request that can be sent again is risked.
        """
        if not safe and any(target.circuit.closed for target in targets):
            return None
        now = monotonic()
        for target in targets:
            circuit = target.circuit
            if circuit.closed or circuit.trial is not None or circuit.due_at() > now or target is never:
                continue
            exchange.target = target
            target.in_flight += 1
            if await breaker.may_try(self._link, target.spec.id, circuit, by=exchange):
                return target
            exchange.leave_target()
        return None

    async def connect(
        self, exchange: Exchange, scope: bytes, *, safe: bool, avoid: Target | None = None
    ) -> tuple[Target, Connection]:
        """Return a connection to a server; when connecting fails, to one other.

        Nothing was sent then, so this is the one retry that is right for any method.
        Raises :class:`UpstreamUnreachable`, and :class:`Refused` when no server may be asked.
        """
        never: Target | None = None
        failure: Exception | None = None
        while True:
            targets = self._of_scope.get(scope)
            if targets is not None and len(targets) == 1 and never is None and not self._tripped:
                # A single server that works: nothing to choose, nobody to ask.
                target = exchange.target = targets[0]
                target.in_flight += 1
            else:
                try:
                    target = await self.reserve(exchange, scope, safe=safe, avoid=avoid, never=never)
                except Refused:
                    if failure is None:
                        raise
                    raise UpstreamUnreachable(repr(failure)) from failure
            waits = target.in_flight > target.limit
            try:
                return target, await target.connector.connect(target.route, [], self._timeout)
            except (aiohttp.ClientError, OSError, TimeoutError) as exc:
                if waits and isinstance(exc, TimeoutError):
                    # No slot became free: the server is busy, and so are the others, or they had been taken.
                    raise Refused("upstream_busy") from exc
                self.connecting_failed(exchange, exc)
                if failure is not None:
                    raise UpstreamUnreachable(repr(exc)) from exc
                never, failure = target, exc

    def hand_over(self, scope: bytes, carriers: frozenset[str]) -> Target | None:
        """Return the server that a carrier in front shall take a request to; ``carriers`` are those it knows.

        ``None`` when the request is better relayed by this worker: no such server works, one is to be looked at, or
        its answers count as failures, of which a carrier does not tell in time.
        """
        targets = self._of_scope.get(scope)
        if targets is None:
            targets = self._serving(scope)
        if self._suspects or self._tripped:
            now = monotonic()
            for one in targets:
                circuit = one.circuit
                if circuit.closed:
                    if one in self._suspects and circuit.resting_until <= now:
                        return None
                elif circuit.due_at() <= now:
                    return None
        for target in targets:
            if not self._may_be_carried_to(target, carriers):
                targets = [one for one in targets if self._may_be_carried_to(one, carriers)]
                break
        return self._least_loaded(targets, None)

    def _may_be_carried_to(self, target: Target, carriers: frozenset[str]) -> bool:
        spec = target.spec
        return (
            target.carrier_key in carriers
            and spec.carried_at_edge
            and not spec.counts_gateway_errors
            and target not in self._suspects
        )

    # --- learning

    def connecting_failed(self, exchange: Exchange, error: Exception) -> None:
        """The exchange's server did not take a connection; the exchange may go to another."""
        target = exchange.target
        assert target is not None
        target.circuit.resting_until = monotonic() + REST_AFTER_FAILURE
        self.failed(exchange, str(error) or type(error).__name__)
        exchange.leave_target()

    def suspect(self, carrier_key: str) -> None:
        """A carrier in front failed with a server. We relay until we have seen for ourselves how it is.

        Failures in a row are what opens a circuit, and of the answers that a carrier had between them we do not know.
        """
        self._suspects.update(target for target in self.targets if target.carrier_key == carrier_key)

    def failed(self, exchange: Exchange, error: str) -> None:
        """The exchange's server failed before it answered."""
        target = exchange.target
        if target is None:
            return
        name = target.spec.name
        self.failures[name] = self.failures.get(name, 0) + 1
        if not target.circuit.fail(error, by=exchange):
            return
        self._suspects.discard(target)
        logger.warning("Server %s gets no requests for now: %s", name, error)
        self._review()
        self._do(breaker.share_opening(self._link, target.spec.id, target.circuit))
        self._news.set()

    def answered(self, exchange: Exchange, status: int) -> None:
        """The exchange's server has begun to answer."""
        target = exchange.target
        if target is None:
            return
        if status in GATEWAY_ERRORS and target.spec.counts_gateway_errors:
            self.failed(exchange, f"answered {status}")
            return
        if self._suspects:
            self._suspects.discard(target)
        circuit = target.circuit
        circuit.failures = 0
        if circuit.trial is exchange:
            circuit.close()
            logger.info("Server %s works again", target.spec.name)
            self._review()
            self._do(breaker.share_closing(self._link, target.spec.id))
            self._news.set()

    def give_up_trial(self, target: Target) -> None:
        target.circuit.trial = None
        self._do(breaker.give_up_trial(self._link, target.spec.id))

    def _do(self, telling: Any) -> None:
        """Tell Redis without waiting. What cannot be told now is made up for by the next round."""

        async def tell() -> None:
            try:
                await telling
            except RedisAway:
                pass

        if not self._link.up:
            telling.close()
            return
        task = asyncio.get_running_loop().create_task(tell())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # --- rounds

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="gateway-upstreams")

    def look(self) -> None:
        """Have a round now: another worker has told something."""
        self._news.set()

    async def _run(self) -> None:
        while True:
            try:
                await self.sync()
            except Exception:
                # Whatever it was, the next round is a second away and everything depends on it.
                logger.exception("The state of the servers could not be exchanged")
            try:
                # Not wait_for: before Python 3.12 it forgets that the task was cancelled in the moment of news.
                async with asyncio.timeout(SYNC_SECONDS):
                    await self._news.wait()
            except TimeoutError:
                pass
            self._news.clear()

    async def sync(self) -> None:
        """Tell the other workers how the servers are doing here, and learn from them."""
        targets = list(self.targets)
        turns = [target.circuit.turns for target in targets]
        leads = 0
        if self._link.up:
            names = [keys.prober()]
            arguments: list[Any] = [self.worker, round(LEASE_SECONDS * 1000)]
            for target in targets:
                circuit = target.circuit
                names += [keys.upstream(target.spec.id), keys.upstream_in_flight(target.spec.id)]
                gone = [one for one in self._retired if one.spec.id == target.spec.id]
                arguments += [
                    target.in_flight + sum(one.in_flight for one in gone),
                    "" if circuit.told else circuit.error,
                ]
                circuit.told = True
            try:
                leads, *states = await self._link.run(breaker.UPSTREAMS, tuple(names), tuple(arguments))
            except RedisAway:
                pass
            else:
                for target, turn, (opens, left, down) in zip(targets, turns, states, strict=True):
                    circuit = target.circuit
                    if circuit.turns != turn:
                        continue
                    circuit.learn(opens, left / 1000, down / 1000)
                    if circuit.opens and not circuit.shared and circuit.open_until > monotonic():
                        # Opened while Redis was away.
                        self._do(breaker.share_opening(self._link, target.spec.id, circuit))
        self.is_prober = bool(leads)
        self._review()
        await self._close_retired()
        self._tell_outage()

    def _tell_outage(self) -> None:
        serving = [target for target in self.targets if target.spec.state == ACTIVE]
        out = bool(serving) and all(not target.circuit.closed for target in serving)
        if self._telling is not None and not self._telling.done():
            return
        if out is self._told_outage or (not out and self._told_outage is None and not self._link.up):
            return
        names = [target.spec.name for target in serving] if out else []

        async def tell() -> None:
            if await self._on_outage(names):
                self._told_outage = out

        # Not waited for: PostgreSQL may be away as well.
        self._telling = asyncio.get_running_loop().create_task(tell())
        self._background.add(self._telling)
        self._telling.add_done_callback(self._background.discard)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*([self._task] if self._task else []), *self._background, return_exceptions=True)
        await asyncio.gather(*(target.close() for target in [*self.targets, *self._retired]))
