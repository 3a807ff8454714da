"""Decides on requests while Redis is away."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import monotonic, time
from uuid import UUID

from django.conf import settings

from proxy import selectors
from proxy.database import Database, DatabaseAway
from proxy.decisions import (
    ADMIT,
    DEVICE_MALFORMED,
    DEVICE_MISSING,
    LET_GO,
    LOCAL_LEASE,
    LOOK,
    RECHECK,
    Decision,
    Outcome,
    ValidationAway,
    milliseconds,
)
from proxy.limits import QUOTAS, is_inside
from proxy.scopes import FULL
from proxy.selectors import Admission
from tokens import services as tokens_services
from zenzefi.settings.env import RatePolicy


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
