"""What callers are told of limits: headers of draft-ietf-httpapi-ratelimit-headers, and the body of a refusal."""

from __future__ import annotations

import functools
import math
from datetime import timedelta
from typing import Any

from proxy.decisions import Decision
from proxy.limits import QUOTAS, Limits, next_period
from zenzefi.lib import clock
from zenzefi.settings.env import RatePolicy

Header = tuple[bytes, bytes]


@functools.lru_cache(maxsize=1024)
def _policy(limit: int, seconds: int) -> Header:
    return b"ratelimit-policy", b'"proxy";q=%d;w=%d' % (limit, seconds)


class LimitHeaders:
    """Headers and bodies about limits; ``platform`` is the rate of tokens without their own."""

    def __init__(self, platform: RatePolicy) -> None:
        self._platform = platform
        self._platform_policy = _policy(platform.limit, platform.seconds)

    def _rate(self, own: int) -> tuple[int, int]:
        return (own, 60) if own else (self._platform.limit, self._platform.seconds)

    def of(self, decision: Decision) -> tuple[Header, ...]:
        """Return the headers of a request that was admitted."""
        reset = -(-decision.reset_ms // 1000) or 1
        own = decision.limits.rate
        return (
            _policy(own, 60) if own else self._platform_policy,
            (b"ratelimit", b'"proxy";r=%d;t=%d' % (decision.remaining, reset)),
        )

    def of_refusal(self, decision: Decision) -> tuple[tuple[Header, ...], dict[str, Any]]:
        """Return headers and body of a request that a limit refused: the rule, its value, when it is worth trying."""
        now = clock.now()
        rule, limit = decision.rule, decision.limit
        if rule in QUOTAS:
            reset_at = next_period(rule, now)
            seconds = max(1, math.ceil((reset_at - now).total_seconds()))
            unit = b"" if QUOTAS[rule] == b"requests" else b';qu="%b"' % QUOTAS[rule]
            # Months differ in length; the draft lets a policy be silent about its window.
            window = b";w=86400" if rule.endswith("_day") else b""
            name, policy = rule.encode(), b'"%b";q=%d%b%b' % (rule.encode(), limit, window, unit)
        else:
            reset_at = now + timedelta(milliseconds=decision.reset_ms)
            seconds = max(1, math.ceil(decision.reset_ms / 1000))
            if rule == "concurrency":
                name, policy = b"concurrency", b'"concurrency";q=%d;qu="concurrent-requests"' % limit
            else:
                name, policy = b"proxy", b'"proxy";q=%d;w=%d' % (limit, decision.window)
        headers = (
            (b"ratelimit-policy", policy),
            (b"ratelimit", b'"%b";r=0;t=%d' % (name, seconds)),
            (b"retry-after", b"%d" % seconds),
        )
        details = {
            "rule": rule,
            "limit": limit,
            "reset_at": reset_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "retry_after": seconds,
        }
        return headers, details

    def shown(self, limits: Limits) -> dict[str, Any]:
        """Return a token's limits as its status shows them; ``null`` where there is none."""
        requests, seconds = self._rate(limits.rate)
        return {
            "requests": requests,
            "window_seconds": seconds,
            "seats": limits.seats,
            "concurrent_requests": limits.concurrency or None,
            "bandwidth": limits.bandwidth or None,
            **{name: getattr(limits, name) or None for name in QUOTAS},
        }
