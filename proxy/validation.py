"""Decides on requests: one Lua call each in Redis, filled from PostgreSQL on a miss, PostgreSQL alone without Redis."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import time
from typing import Any
from uuid import UUID, uuid4

from django.conf import settings

from proxy import keys, selectors
from proxy.database import Database, DatabaseAway
from proxy.decisions import (
    ADMIT,
    LET_GO,
    LOCAL_LEASE,
    Decision,
    Outcome,
    ValidationAway,
    milliseconds,
    moment,
)
from proxy.fallback import Fallback
from proxy.limits import (
    NONE,
    Limits,
    address_key,
    day_number,
    month_number,
    network_ranges,
    unpack,
)
from proxy.redis_link import RedisAway, RedisLink, Script
from proxy.selectors import Admission
from proxy.streams import Exchange
from tokens import services as tokens_services
from tokens.exceptions import TokenNotUsable
from tokens.selectors import Successor
from zenzefi.lib import clock

logger = logging.getLogger(__name__)


DECIDE = Script("decide")
FILL = Script("fill")
ACTIVATE = Script("activate")
SETTLE = Script("settle")
RENEW = Script("renew")
FLUSH = Script("flush")
SCRIPTS = (DECIDE, FILL, ACTIVATE, SETTLE, RENEW, FLUSH)


def _packed(successor: Successor | None) -> str:
    """Return a successor as ``lua/decide.lua`` reads it."""
    if successor is None:
        return ""
    start, end = milliseconds(successor.activated_at), milliseconds(successor.expires_at)
    return f"{successor.token_id} {successor.scope} {successor.duration_seconds * 1000} {start} {end}"


class Validator:
    """One worker's view of who may pass."""

    def __init__(self, link: RedisLink, database: Database, open_of: Callable[[bytes], int]) -> None:
        """``open_of`` counts the open exchanges of a token in this process."""
        self._link = link
        self._database = database
        self._fills: dict[str, asyncio.Task[None]] = {}
        self._fallback = Fallback(database, open_of)
        policy = settings.RATE_LIMITS["proxy"]
        self._limit = str(policy.limit).encode()
        self._window = str(policy.seconds * 1000).encode()
        self._idle = str(settings.DEVICE_IDLE_SECONDS * 1000).encode()
        self._prefix = keys.prefix().encode()
        self._credential = keys.credential("").encode()
        self._generation = keys.generation("").encode()
        self._pending = keys.pending_activations().encode()
        self._gate = keys.gate().encode()
        self._lease = str(round(settings.GATEWAY["lease_seconds"] * 1000)).encode()
        #: This process, to those that pace the same token.
        self._name = uuid4().hex[:16].encode()
        #: Of validations answered so far: by Redis, by what Redis remembers of unknown tokens, after a fill from
        #: PostgreSQL, without Redis.
        self.answered = {"redis": 0, "negative": 0, "postgresql": 0, "fallback": 0}

    async def decide(
        self,
        digest: str,
        device: bytes,
        device_state: bytes,
        open_scopes: bytes | None,
        address: str = "",
        *,
        mode: bytes = ADMIT,
    ) -> Decision:
        """Decide on one request; ``LOOK`` looks at the credentials only, ``RECHECK`` whether it may go on.

        Only ``ADMIT`` and ``LET_GO`` claim and count. ``open_scopes`` are the restricted scopes that open the path as
        ``,a,b,``; ``None`` when it is ambiguous. Raises :class:`ValidationAway`.
        """
        key = digest.encode()
        names = (self._credential + key, self._generation + key, self._gate)
        arguments = (
            device,
            device_state,
            b"?" if open_scopes is None else open_scopes,
            self._limit,
            self._window,
            self._idle,
            self._prefix,
            mode,
            address_key(address),
            self._lease,
        )
        if mode == LET_GO:
            arguments = (*arguments[:7], ADMIT, *arguments[8:], b"1")  # type: ignore[assignment]
        layer = "redis"
        for _ in range(5):
            if not self._link.up:
                break
            try:
                reply = await self._link.run(DECIDE, names, arguments)
            except RedisAway:
                break
            outcome = reply[0]
            if outcome != 1:
                if outcome == 0:
                    self.answered[layer] += 1
                    decision = Decision(
                        0,
                        reply[1],
                        reply[3],
                        reply[4],
                        reply[5],
                        int(reply[6] or 0),
                        int(reply[7] or 0),
                        int(reply[8]),
                        reply[9],
                        reply[10],
                    )
                    if len(reply) > 11:
                        decision.limits = unpack(reply[11], reply[12])
                        decision.lease = reply[13]
                    return decision
                self.answered["negative" if outcome == Outcome.UNKNOWN and layer == "redis" else layer] += 1
                decision = Decision(outcome, reply[1], *reply[3:5])
                if len(reply) > 5:
                    decision.rule, decision.limit, decision.reset_ms = reply[5].decode(), reply[6], reply[7]
                    decision.window = reply[8] // 1000 if len(reply) > 8 else 0
                return decision
            layer = "postgresql"
            try:
                await self._fill_once(digest, reply[1])
            except RedisAway:
                break
            except DatabaseAway as exc:
                raise ValidationAway from exc
        self.answered["fallback"] += 1
        return await self._fallback.decide(digest, device, device_state, open_scopes, address, mode=mode)

    async def _fill_once(self, digest: str, generation: bytes) -> None:
        """Read the credential once, however many requests wait for it.

        The reader is a task of its own: a client that leaves must not take the others' answer along.
        """
        task = self._fills.get(digest)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._fill(digest, generation))
            self._fills[digest] = task
            task.add_done_callback(lambda done: self._filled(digest, done))
        await asyncio.shield(task)

    def _filled(self, digest: str, task: asyncio.Task[None]) -> None:
        self._fills.pop(digest, None)
        if not task.cancelled():
            task.exception()

    async def _fill(self, digest: str, generation: bytes) -> None:
        admission = await self._database.run(selectors.admission_by_digest, digest)
        key = digest.encode()
        names = (self._credential + key, self._generation + key, self._pending)
        conf = settings.GATEWAY
        if admission is None:
            await self._link.run(FILL, names, (generation, conf["negative_cache_seconds"] * 1000, b"u"))
            return
        found, limits = admission.credential, admission.limits
        if found.revoked or found.held:
            kind = b"r" if found.revoked else b"h"
            await self._link.run(FILL, names, (generation, conf["cache_seconds"] * 1000, kind))
            return
        claimed_for = 0
        if found.device_id and found.device_seen_at is not None and limits.seats == 1:
            idle = time() - found.device_seen_at.timestamp()
            claimed_for = max(0, round((settings.DEVICE_IDLE_SECONDS - idle) * 1000))
        await self._link.run(
            FILL,
            names,
            (
                generation,
                conf["cache_seconds"] * 1000,
                b"c",
                str(found.token_id),
                str(found.user_id),
                found.scope,
                found.duration_seconds * 1000,
                milliseconds(found.activated_at) or b"",
                milliseconds(found.expires_at) or b"",
                int(found.owner_active),
                int(found.owner_is_superuser) + (2 if limits != NONE else 0),
                self._prefix,
                found.device_id,
                claimed_for,
                _packed(found.successor),
                *(self._rules_of(admission) if limits != NONE else ()),
            ),
        )

    def _rules_of(self, admission: Admission) -> Iterator[Any]:
        """Yield what ``lua/fill.lua`` takes for a token with rules of its own."""
        limits, token_id = admission.limits, admission.credential.token_id
        yield from (limits.rate or b"", limits.pack(), network_ranges(limits.networks), self._idle)
        yield len(admission.devices)
        for device, seen_at in admission.devices:
            yield from (device, milliseconds(seen_at))
        if admission.today is not None and admission.this_month is not None:
            now = clock.now()
            for name, usage in (
                (keys.day_usage(token_id, day_number(now)), admission.today),
                (keys.month_usage(token_id, month_number(now)), admission.this_month),
            ):
                yield from (name, usage.requests, usage.bytes_in, usage.bytes_out)

    async def activate(self, digest: str, decision: Decision) -> bool:
        """Start the token's clock unless it runs; fills in ``activated`` and ``expires`` of the decision.

        Returns ``False`` when the token was revoked or given away meanwhile. The moment is certain in Redis before
        this returns, and normally in PostgreSQL as well; while PostgreSQL is away a task writes it later.
        """
        key = digest.encode()
        names = (self._credential + key, self._generation + key, self._pending)
        lifetime = keys.TOMBSTONE_SECONDS
        in_redis = False
        activated = int(time() * 1000)
        if self._link.up:
            try:
                reply = await self._link.run(ACTIVATE, names, (decision.token_id, decision.duration, digest, lifetime))
            except RedisAway:
                pass
            else:
                if reply[0] < 0:
                    return False
                activated = int(reply[1])
                decision.activated, decision.expires = activated, int(reply[2])
                if reply[0] == 0:
                    return True
                in_redis = True
        try:
            stored = await self._database.run(
                tokens_services.activate_token,
                token_id=UUID(decision.token_id.decode()),
                at=moment(activated),
                owner_id=UUID(decision.user_id.decode()),
            )
        except TokenNotUsable:
            if in_redis:
                # What Redis noted must not start the clock later, of a token that may have another owner by now.
                try:
                    await self._link.run(SETTLE, names, (decision.token_id, b"", b"", lifetime))
                except RedisAway:
                    pass
            return False
        except DatabaseAway:
            if not in_redis:
                # Neither could note it. The request has passed; the next one starts the clock.
                logger.error("A first use could not be recorded anywhere", extra={"token_id": decision.token_id})
            return True
        decision.activated = milliseconds(stored.activated_at)
        decision.expires = milliseconds(stored.expires_at)
        self._fallback.forget(digest)
        if in_redis:
            try:
                await self._link.run(SETTLE, names, (decision.token_id, decision.activated, decision.expires, lifetime))
            except RedisAway:
                pass
        return True

    def has_spare_questions(self) -> bool:
        """Whether PostgreSQL may be asked about more than new requests while Redis is away."""
        return self._fallback.has_spare()

    async def renew(self, exchange: Exchange) -> Renewal:
        """Keep an open exchange's claim and lease alive. Raises :class:`RedisAway`."""
        prefix, token_id, limits = self._prefix, exchange.token_id, exchange.limits
        claim = b"dev:" if limits.seats == 1 else b"seat:"
        if exchange.lease.startswith(LOCAL_LEASE):
            # Admitted while Redis was away, which knows of it from now on.
            exchange.lease = b"%d" % (time() * 1_000_000)
        reply = await self._link.run(
            RENEW,
            (
                self._generation + exchange.digest.encode(),
                self._gate,
                prefix + claim + token_id,
                prefix + b"lease:" + token_id,
                prefix + b"pace:" + token_id,
            ),
            (
                exchange.device,
                self._idle,
                limits.seats,
                b"" if exchange.ended else exchange.lease,
                self._lease,
                self._name if limits.bandwidth else b"",
            ),
        )
        return Renewal(reply[0], bool(reply[1]), bool(reply[2]), reply[3])

    def give_back(self, exchange: Exchange) -> None:
        """Free what an exchange held, without waiting. What Redis does not hear of ends by itself.

        A request that did not reach the upstream is given back to the quotas, too.
        """
        if not self._link.up:
            return
        token_id = exchange.token_id
        if exchange.lease and not exchange.lease.startswith(LOCAL_LEASE):
            self._link.tell(b"ZREM", self._prefix + b"lease:" + token_id, exchange.lease)
        if not exchange.reached:
            self.give_back_request(token_id, exchange.limits)

    def give_back_request(self, token_id: bytes, limits: Limits) -> None:
        """Take a request that no server was asked about off the quotas, without waiting."""
        if self._link.up and (limits.requests_per_day or limits.requests_per_month):
            now = clock.now()
            self._link.tell(b"HINCRBY", b"%bday:%b:%d" % (self._prefix, token_id, day_number(now)), b"admitted", -1)
            self._link.tell(b"HINCRBY", b"%bmonth:%b:%d" % (self._prefix, token_id, month_number(now)), b"admitted", -1)


@dataclass(frozen=True, slots=True)
class Renewal:
    """What an open exchange must know each second."""

    #: The credential's generation.
    generation: bytes
    #: Other devices hold the token now.
    taken: bool
    closed: bool
    #: Processes that slow this token's streams down, this one included.
    workers: int
