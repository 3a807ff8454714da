"""Which device holds a token, as PostgreSQL knows it."""

from __future__ import annotations

import uuid
from datetime import timedelta

from django.db.models import Q

from tokens.models import AccessToken
from zenzefi.lib import clock


def claim_device(*, token_id: uuid.UUID, device_id: str, idle_seconds: int) -> bool:
    """Claim a token for a device, unless another one used it within ``idle_seconds``; say whether it holds now.

    One compare-and-set, so that of two devices at once one wins. The gateway asks here only while Redis, where
    claims live, is away.
    """
    now = clock.now()
    free = Q(device_id__in=["", device_id]) | Q(device_seen_at__lte=now - timedelta(seconds=idle_seconds))
    claimed = AccessToken.objects.filter(free | Q(device_seen_at__isnull=True), pk=token_id)
    return claimed.update(device_id=device_id, device_seen_at=now) == 1
