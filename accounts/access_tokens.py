"""Access tokens: JWTs (RFC 7519), signed with HS256, good for ``ACCESS_TOKEN_LIFETIME``.

Claims: ``sub`` user id, ``sid`` session id, ``jti``, ``iat``, ``exp``, ``iss``, ``token_type``.
"""

from __future__ import annotations

import hmac
import uuid
from dataclasses import dataclass
from functools import lru_cache

from django.conf import settings
from rest_framework_simplejwt.backends import TokenBackend
from rest_framework_simplejwt.exceptions import TokenBackendError, TokenBackendExpiredToken

from accounts.exceptions import AccessTokenExpired, InvalidAccessToken
from accounts.models import SignInSession
from zenzefi.lib import clock

_ISSUER = "zenzefi"
_TYPE = "access"


@dataclass(frozen=True, slots=True)
class Claims:
    user_id: uuid.UUID
    session_id: uuid.UUID


@lru_cache(maxsize=4)
def _backend(secret_key: str) -> TokenBackend:
    # A key of its own: what other parts sign with SECRET_KEY can never pass for an access token.
    key = hmac.digest(secret_key.encode(), b"accounts:access-token", "sha256").hex()
    return TokenBackend("HS256", signing_key=key, issuer=_ISSUER)


def issue(session: SignInSession) -> str:
    """Return a new access token of the session."""
    now = clock.now()
    return _backend(settings.SECRET_KEY).encode(
        {
            "token_type": _TYPE,
            "sub": str(session.user_id),
            "sid": str(session.pk),
            "jti": uuid.uuid4().hex,
            "iat": int(now.timestamp()),
            "exp": int((now + settings.ACCESS_TOKEN_LIFETIME).timestamp()),
        }
    )


def verify(token: str) -> Claims:
    """Return what the token says, its signature and lifetime checked; whether its session lives is not.

    Raises :class:`AccessTokenExpired` and :class:`InvalidAccessToken`.
    """
    try:
        payload = _backend(settings.SECRET_KEY).decode(token)  # type: ignore[arg-type]  # takes the encoded text
    except TokenBackendExpiredToken:
        raise AccessTokenExpired from None
    except TokenBackendError:
        raise InvalidAccessToken from None
    if payload.get("token_type") != _TYPE or "exp" not in payload:
        raise InvalidAccessToken
    try:
        return Claims(user_id=uuid.UUID(payload["sub"]), session_id=uuid.UUID(payload["sid"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InvalidAccessToken from None
