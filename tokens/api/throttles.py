"""How often tokens' routes may be called, beyond what holds for all."""

from __future__ import annotations

from typing import Any

from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from zenzefi.lib.network import client_network
from zenzefi.lib.ratelimit import enforce


class GiftClaimRateThrottle(BaseThrottle):
    """Class ``gift_claim``: per user and per client address, so that nobody guesses codes. Fails closed."""

    def allow_request(self, request: Request, view: Any) -> bool:
        user = request.user
        assert user.is_authenticated
        if request.method == "POST" and not user.is_superuser:
            for subject in (f"user:{user.pk}", f"addr:{client_network(request._request)}"):
                enforce(request._request, "gift_claim", subject, announce=False)
        return True
