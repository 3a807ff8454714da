"""``Authorization: Bearer`` with an access token (RFC 6750)."""

from __future__ import annotations

from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.request import Request

from accounts import access_tokens, selectors
from accounts.exceptions import InvalidAccessToken
from accounts.models import SignInSession, User


class AccessTokenAuthentication(BaseAuthentication):
    """Signs a request in by its access token; ``request.auth`` is the session.

    One query: the session must be alive and its user active, so that signing out and disabling act at once and
    not when the token runs out.
    """

    def authenticate(self, request: Request) -> tuple[User, SignInSession] | None:
        """Return user and session, or ``None`` for another scheme.

        Raises :class:`AccessTokenExpired` and :class:`InvalidAccessToken`.
        """
        scheme, _, credentials = get_authorization_header(request).partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        try:
            token = credentials.strip().decode("ascii")
        except UnicodeDecodeError:
            raise InvalidAccessToken from None
        claims = access_tokens.verify(token)
        session = selectors.live_session(session_id=claims.session_id, user_id=claims.user_id)
        if session is None:
            raise InvalidAccessToken
        return session.user, session

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"
