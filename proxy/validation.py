"""Decides on requests: one Lua call each in Redis, filled from PostgreSQL on a miss, PostgreSQL alone without Redis."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from time import monotonic, time
from typing import Any
from uuid import UUID, uuid4

from django.conf import settings

from proxy import keys, selectors
from proxy.database import Database, DatabaseAway
from proxy.limits import (
    NONE,
    QUOTAS,
    Limits,
    address_key,
    day_number,
    is_inside,
    month_number,
    network_ranges,
    unpack,
)
from proxy.redis_link import RedisAway, RedisLink, Script
from proxy.scopes import FULL
from proxy.selectors import Admission
from proxy.streams import Exchange
from tokens import services as tokens_services
from tokens.exceptions import TokenNotUsable
from tokens.selectors import Successor
from zenzefi.lib import clock
from zenzefi.settings.env import RatePolicy

logger = logging.getLogger(__name__)


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

DECIDE = Script("decide")
FILL = Script("fill")
ACTIVATE = Script("activate")
SETTLE = Script("settle")
RENEW = Script("renew")
FLUSH = Script("flush")
SCRIPTS = (DECIDE, FILL, ACTIVATE, SETTLE, RENEW, FLUSH)


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


@dataclass(slots=True)
class _Remembered:
    admission: Admission | None
    until: float


class Fallback:
    """Decisions without Redis: PostgreSQL, sparingly, and a memory of a second or two.

    ``fallback_rate`` bounds the questions to PostgreSQL per second and process, so that an outage of Redis does
    not become one of PostgreSQL. Rates, requests at once and devices beyond the first are kept per process, the
    first device in PostgreSQL; quotas are what PostgreSQL has counted so far.
    """

    #: Seconds. A revocation elsewhere is noticed after at most this long.
    REMEMBER = 1.0

    def __init__(self, database: Database, open_of: Callable[[bytes], int]) -> None:
        self._database = database
        self._open_of = open_of
        self._known: dict[str, _Remembered] = {}
        self._claims: dict[UUID, tuple[str, float]] = {}
        self._seats: dict[UUID, dict[str, float]] = {}
        self._windows: dict[UUID, deque[float]] = {}
        self._budget = float(settings.GATEWAY["fallback_rate"])
        self._budget_at = monotonic()

    def forget(self, digest: str) -> None:
        self._known.pop(digest, None)

    def _refill(self) -> None:
        rate = settings.GATEWAY["fallback_rate"]
        now = monotonic()
        self._budget = min(float(rate), self._budget + (now - self._budget_at) * rate)
        self._budget_at = now

    def has_spare(self) -> bool:
        self._refill()
        return self._budget > settings.GATEWAY["fallback_rate"] / 2

    def _spend(self) -> None:
        self._refill()
        if self._budget < 1:
            raise ValidationAway
        self._budget -= 1

    async def _admission(self, digest: str) -> Admission | None:
        known = self._known.get(digest)
        now = monotonic()
        if known is not None and known.until > now:
            return known.admission
        self._spend()
        try:
            admission = await self._database.run(selectors.admission_by_digest, digest)
        except DatabaseAway as exc:
            raise ValidationAway from exc
        if len(self._known) >= 10_000:
            self._known.clear()
        self._known[digest] = _Remembered(admission, monotonic() + self.REMEMBER)
        return admission

    async def decide(
        self,
        digest: str,
        device: bytes,
        device_state: bytes,
        open_scopes: bytes | None,
        address: str,
        *,
        mode: bytes,
    ) -> Decision:
        """As :meth:`Validator.decide`, in the same order."""
        let_go = mode == LET_GO
        if let_go:
            mode = ADMIT
        admission = await self._admission(digest)
        if admission is None:
            return Decision(Outcome.UNKNOWN)
        found, limits = admission.credential, admission.limits
        if found.revoked:
            return Decision(Outcome.REVOKED)
        if found.held:
            return Decision(Outcome.HELD)
        now = int(time() * 1000)
        ended = found.expires_at is not None and now >= milliseconds(found.expires_at)
        meant = found.successor if ended and found.successor is not None else found
        decision = Decision(
            Outcome.OK,
            b"",
            str(meant.token_id).encode(),
            str(found.user_id).encode(),
            meant.scope.encode(),
            milliseconds(meant.activated_at),
            milliseconds(meant.expires_at),
            meant.duration_seconds * 1000,
            limits=limits,
        )
        if decision.expires and now >= decision.expires:
            decision.outcome = Outcome.EXPIRED
        elif not found.owner_active:
            decision.outcome = Outcome.OWNER_DISABLED
        elif mode == LOOK:
            pass
        elif mode == ADMIT and device_state == DEVICE_MISSING:
            decision.outcome = Outcome.DEVICE_MISSING
        elif mode == ADMIT and device_state == DEVICE_MALFORMED:
            decision.outcome = Outcome.DEVICE_MALFORMED
        elif not is_inside(address, limits.networks):
            decision.outcome = Outcome.ADDRESS_FORBIDDEN
        elif meant.scope != FULL and open_scopes is None:
            decision.outcome = Outcome.PATH_AMBIGUOUS
        elif meant.scope != FULL and b"," + decision.scope + b"," not in (open_scopes or b""):
            decision.outcome = Outcome.SCOPE_FORBIDDEN
        elif let_go and limits.needs_gateway:
            decision.outcome = Outcome.GATEWAY_ONLY
        elif mode == RECHECK:
            self._measure(admission, decision, quotas=("bytes_per_day", "bytes_per_month"))
        elif not await self._claim_all(found.token_id, meant.token_id, device.decode("ascii"), limits.seats):
            decision.outcome = Outcome.DEVICE_CONFLICT
        elif not found.owner_is_superuser:
            self._measure(admission, decision, quotas=QUOTAS)
            if decision.outcome == Outcome.OK and limits.concurrency:
                decision.lease = LOCAL_LEASE
                if self._open_of(decision.token_id) >= limits.concurrency:
                    decision.outcome, decision.rule = Outcome.CONCURRENCY_LIMITED, "concurrency"
                    decision.limit, decision.reset_ms = limits.concurrency, 1000
            if decision.outcome == Outcome.OK:
                self._count(meant.token_id, decision)
        return decision

    @staticmethod
    def _measure(admission: Admission, decision: Decision, *, quotas: Iterable[str]) -> None:
        """Refuse when PostgreSQL has counted as much as a quota allows."""
        for rule in quotas:
            limit = getattr(admission.limits, rule)
            usage = admission.today if rule.endswith("_day") else admission.this_month
            if not limit or usage is None:
                continue
            used = usage.requests if rule.startswith("requests") else usage.bytes_in + usage.bytes_out
            if used >= limit:
                decision.outcome, decision.rule, decision.limit = Outcome.QUOTA_EXCEEDED, rule, limit
                return

    def _sit_down(self, token_id: UUID, device: str, seats: int) -> bool:
        if len(self._seats) >= 10_000:
            self._seats.clear()
        now = monotonic()
        taken = self._seats.setdefault(token_id, {})
        for other, seen in list(taken.items()):
            if now - seen >= settings.DEVICE_IDLE_SECONDS:
                del taken[other]
        if device not in taken and len(taken) >= seats:
            return False
        taken[device] = now
        return True

    async def _claim_all(self, token_id: UUID, meant_id: UUID, device: str, seats: int) -> bool:
        """Claim a token, and the one that it renews: whoever held that must have been idle for the other, too."""
        if seats > 1:
            return self._sit_down(token_id, device, seats)
        for one in {token_id, meant_id}:
            if not await self._claim(one, device):
                return False
        return True

    async def _claim(self, token_id: UUID, device: str) -> bool:
        holder, until = self._claims.get(token_id, ("", 0.0))
        if until > monotonic():
            return holder == device
        self._spend()
        try:
            won = await self._database.run(
                tokens_services.claim_device,
                token_id=token_id,
                device_id=device,
                idle_seconds=settings.DEVICE_IDLE_SECONDS,
            )
        except DatabaseAway as exc:
            raise ValidationAway from exc
        if won:
            if len(self._claims) >= 10_000:
                self._claims.clear()
            self._claims[token_id] = (device, monotonic() + self.REMEMBER)
        return won

    def _count(self, token_id: UUID, decision: Decision) -> None:
        own = decision.limits.rate
        policy = RatePolicy(own, 60) if own else settings.RATE_LIMITS["proxy"]
        if len(self._windows) >= 10_000:
            self._windows.clear()
        window = self._windows.setdefault(token_id, deque())
        now = monotonic()
        while window and now - window[0] >= policy.seconds:
            window.popleft()
        if len(window) >= policy.limit:
            decision.outcome, decision.rule, decision.limit = Outcome.RATE_LIMITED, "rate", policy.limit
            decision.window = policy.seconds
        else:
            window.append(now)
            decision.remaining = policy.limit - len(window)
        decision.reset_ms = max(1, math.ceil((policy.seconds - (now - window[0])) * 1000))
