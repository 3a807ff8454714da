"""Exact sliding-window rate limits in Redis, one atomic script a check, on Redis's own clock.

The window is a list of admission times, oldest first, at most ``limit`` long: a check pops what has left the
window, then admits if fewer than ``limit`` remain. Exact at any concurrency, O(1) amortised, bounded memory.
The gateway's script applies the same rule inside its single round trip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import redis.exceptions
from django.conf import settings
from django.http import HttpRequest
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from zenzefi.lib import redis as redis_client
from zenzefi.lib.errors import RateLimited, ServiceUnavailable
from zenzefi.lib.network import client_network
from zenzefi.settings.env import RatePolicy

# KEYS[1] the window; ARGV: limit, window in ms. Returns {allowed, remaining, ms until the oldest leaves}.
_SCRIPT = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local limit, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local oldest = redis.call('LINDEX', KEYS[1], 0)
while oldest and now - tonumber(oldest) >= window do
  redis.call('LPOP', KEYS[1])
  oldest = redis.call('LINDEX', KEYS[1], 0)
end
local used = redis.call('LLEN', KEYS[1])
if used >= limit then
  return {0, 0, window - (now - tonumber(oldest))}
end
redis.call('RPUSH', KEYS[1], now)
redis.call('PEXPIRE', KEYS[1], window)
return {1, limit - used - 1, window - (now - tonumber(oldest or now))}
"""


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of one check. ``reset_seconds`` is when the oldest counted request leaves the window."""

    policy_name: str
    policy: RatePolicy
    allowed: bool
    remaining: int
    reset_seconds: int

    def headers(self) -> dict[str, str]:
        """Return the fields of draft-ietf-httpapi-ratelimit-headers, and ``Retry-After`` on refusal."""
        fields = {
            "RateLimit-Policy": f'"{self.policy_name}";q={self.policy.limit};w={self.policy.seconds}',
            "RateLimit": f'"{self.policy_name}";r={self.remaining};t={self.reset_seconds}',
        }
        if not self.allowed:
            fields["Retry-After"] = str(self.reset_seconds)
        return fields


def check(policy_name: str, subject: str, policy: RatePolicy | None = None) -> Decision:
    """Count one request of ``subject`` under a policy of ``RATE_LIMITS`` and say whether it may pass.

    Raises :class:`redis.exceptions.RedisError` when Redis does not answer; the caller decides open or closed.
    """
    policy = policy or settings.RATE_LIMITS[policy_name]
    script = redis_client.client().register_script(_SCRIPT)
    allowed, remaining, reset_ms = script(
        keys=[redis_client.key("rate", policy_name, subject)], args=[policy.limit, policy.seconds * 1000]
    )
    return Decision(policy_name, policy, bool(allowed), int(remaining), max(1, math.ceil(reset_ms / 1000)))


def enforce(
    request: HttpRequest,
    policy_name: str,
    subject: str,
    *,
    fail_open: bool = False,
    announce: bool = True,
    policy: RatePolicy | None = None,
) -> None:
    """Count the request, remember the outcome for its answer's headers, and refuse when over the limit.

    ``policy`` takes the place of the one in ``RATE_LIMITS``. Without ``announce`` the headers go on telling of the
    limit that was asked before, unless this one refuses.

    Raises :class:`RateLimited`, or :class:`ServiceUnavailable` when Redis is away and the class fails closed.
    """
    try:
        decision = check(policy_name, subject, policy)
    except redis.exceptions.RedisError as exc:
        if not redis_client.is_away(exc):
            raise
        if fail_open:
            return
        raise ServiceUnavailable from None
    if announce or not decision.allowed:
        request.rate_limit = decision  # type: ignore[attr-defined]
    if not decision.allowed:
        raise RateLimited(headers=decision.headers())


class ApiRateThrottle(BaseThrottle):
    """Class ``api``: per user, or per client address where nobody is signed in; superusers bypass.

    A user's tier may set another number of requests a minute; it comes with the user, without a query of its own.
    While Redis is away reads go on unlimited and everything that changes state answers 503.
    """

    def allow_request(self, request: Request, view: Any) -> bool:
        user = request.user
        if user.is_authenticated and user.is_superuser:
            return True
        subject, policy = f"addr:{client_network(request._request)}", None
        if user.is_authenticated:
            subject = f"user:{user.pk}"
            if limit := user.tier.api_requests_per_minute:
                policy = RatePolicy(limit, 60)
        enforce(request._request, "api", subject, fail_open=request.method in {"GET", "HEAD", "OPTIONS"}, policy=policy)
        return True


class AuthRateThrottle(BaseThrottle):
    """Class ``auth``: per client address, for register, login and password reset. Fails closed."""

    def allow_request(self, request: Request, view: Any) -> bool:
        enforce(request._request, "auth", f"addr:{client_network(request._request)}")
        return True
