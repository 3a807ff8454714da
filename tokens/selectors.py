"""Reads of access tokens for other apps."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime

from tokens.models import AccessToken


@dataclass(frozen=True, slots=True)
class Credential:
    """What the gateway must know of a token to decide on a request."""

    token_id: uuid.UUID
    user_id: uuid.UUID
    scope: str
    duration_seconds: int
    activated_at: datetime | None
    expires_at: datetime | None
    revoked: bool
    owner_active: bool
    owner_is_superuser: bool


def credential_by_digest(digest: str) -> Credential | None:
    """Return the credential of a token's SHA-256 (hexadecimal), revoked and expired ones included."""
    row = (
        AccessToken.objects.filter(digest=digest)
        .values_list(
            "id",
            "owner_id",
            "scope_id",
            "duration_hours",
            "activated_at",
            "expires_at",
            "revoked_at",
            "owner__is_active",
            "owner__is_superuser",
        )
        .first()
    )
    if row is None:
        return None
    token_id, user_id, scope, hours, activated_at, expires_at, revoked_at, active, superuser = row
    return Credential(
        token_id=token_id,
        user_id=user_id,
        scope=scope,
        duration_seconds=hours * 3600,
        activated_at=activated_at,
        expires_at=expires_at,
        revoked=revoked_at is not None,
        owner_active=active,
        owner_is_superuser=superuser,
    )
