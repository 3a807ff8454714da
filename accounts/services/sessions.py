"""Signing in and out, and the rotation of refresh tokens.

A refresh token is spent by its use and answered with its successor. The same token again within
``REFRESH_REUSE_GRACE`` gets that same successor, as the first answer may have been lost. Later, or once the
successor has been used as well, it can only be a copy, and the whole family ends.

Order of locks in every flow: user, then session.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import uuid
from dataclasses import dataclass
from datetime import timedelta

from django.conf import settings
from django.contrib.auth.hashers import check_password, make_password
from django.db.models import Q

from accounts import access_tokens, selectors
from accounts.exceptions import InvalidCredentials, InvalidRefreshToken, RefreshReused, SessionNotFound
from accounts.models import RefreshToken, SignInSession, User
from notifications.services import record
from zenzefi.lib import clock
from zenzefi.lib.transactions import in_transaction, run_in_transaction

_PREFIX = "zrt_"
#: Ended sessions stay visible to staff this long.
_KEEP_ENDED = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A pair of tokens, both secret; ``expires_in`` is the access token's lifetime in seconds."""

    session: SignInSession
    access_token: str
    refresh_token: str
    expires_in: int


def sign_in(*, email: str, password: str, address: str = "", user_agent: str = "") -> SignedIn:
    """Open a session for the user with this address, in any case, and password.

    Raises :class:`InvalidCredentials` for an unknown address, a wrong password and a disabled user alike.
    """
    user = selectors.user_by_email(email)
    if user is None:
        # As much work as for a known address, or the time would tell which ones are registered.
        make_password(password)
        raise InvalidCredentials
    if not user.check_password(password) or not user.is_active:
        raise InvalidCredentials
    return run_in_transaction(lambda: _open_session(user, password, address, user_agent))


def _open_session(user: User, password: str, address: str, user_agent: str) -> SignedIn:
    # A change of password or the user's disabling, committed while we were hashing, has ended the sessions there
    # were; this one must not survive it.
    locked = User.objects.select_for_update(no_key=True).get(pk=user.pk)
    if not locked.is_active:
        raise InvalidCredentials
    if locked.password != user.password and not check_password(password, locked.password):
        raise InvalidCredentials
    now = clock.now()
    session = SignInSession.objects.create(
        user=locked,
        address=address or None,
        user_agent=user_agent[:255],
        last_used_at=now,
        expires_at=now + settings.REFRESH_TOKEN_LIFETIME,
    )
    token = _add_refresh_token(session, generation=0)
    User.objects.filter(pk=locked.pk).update(last_login=now)
    return _signed_in(session, token)


def refresh_session(*, refresh_token: str, address: str = "", user_agent: str = "") -> SignedIn:
    """Spend a refresh token and return the next pair.

    Raises :class:`InvalidRefreshToken` when it is unknown or its session has ended, and :class:`RefreshReused` when
    it was spent before; that ends the session and records ``session.refresh_reused``.
    """
    signed_in = _rotate(_digest(refresh_token), address, user_agent)
    if signed_in is None:
        # Raised out here: the end of the session had to be committed first.
        raise RefreshReused
    return signed_in


@in_transaction
def _rotate(digest: bytes, address: str, user_agent: str) -> SignedIn | None:
    """Return the next pair, or ``None`` after ending the family of a token that was reused."""
    session = _lock_session_of(digest)
    if session is None or not session.is_alive or not session.user.is_active:
        raise InvalidRefreshToken
    token = RefreshToken.objects.get(digest=digest)
    now = clock.now()
    if token.spent_at is None:
        token.spent_at = now
        token.save(update_fields=["spent_at"])
        successor = _add_refresh_token(session, generation=token.generation + 1)
        session.last_used_at = now
        session.expires_at = now + settings.REFRESH_TOKEN_LIFETIME
        session.address = address or None
        session.user_agent = user_agent[:255]
        session.save(update_fields=["last_used_at", "expires_at", "address", "user_agent"])
        return _signed_in(session, successor)
    successor = RefreshToken.objects.get(session=session, generation=token.generation + 1)
    if successor.spent_at is None and now - token.spent_at <= settings.REFRESH_REUSE_GRACE:
        return _signed_in(session, successor)
    SignInSession.objects.filter(pk=session.pk).end(SignInSession.EndReason.REFRESH_REUSED)
    record("session.refresh_reused", session.user, {"session_id": str(session.pk)})
    return None


def _lock_session_of(digest: bytes) -> SignInSession | None:
    """Lock the family: whoever comes second sees what the first has done."""
    found = RefreshToken.objects.filter(digest=digest).values("session")
    return (
        SignInSession.objects.select_for_update(of=("self",), no_key=True)
        .select_related("user")
        .filter(pk__in=found)
        .first()
    )


@in_transaction
def sign_out(*, session: SignInSession, refresh_token: str = "") -> None:
    """End the session, and that of the refresh token if it is another one of the same user.

    A token that is unknown or somebody else's is ignored: signing out always works.
    """
    of_token = RefreshToken.objects.filter(digest=_digest(refresh_token)).values("session")
    SignInSession.objects.filter(Q(pk=session.pk) | Q(pk__in=of_token), user_id=session.user_id).end(
        SignInSession.EndReason.SIGNED_OUT
    )


@in_transaction
def end_session(*, user: User, session_id: uuid.UUID) -> None:
    """End one of the user's own sessions.

    Raises :class:`SessionNotFound` when it is not theirs or has ended already.
    """
    ended = SignInSession.objects.alive().filter(pk=session_id, user=user).end(SignInSession.EndReason.ENDED_BY_USER)
    if not ended:
        raise SessionNotFound


def end_sessions_of(user: User, reason: SignInSession.EndReason, *, keep: SignInSession | None = None) -> None:
    """End every session of the user but the one to keep, inside the caller's transaction."""
    sessions = SignInSession.objects.filter(user=user)
    if keep is not None:
        sessions = sessions.exclude(pk=keep.pk)
    sessions.end(reason)


def forget_ended_sessions() -> int:
    """Delete sessions that ended or expired 30 days ago, with their tokens; returns how many there were."""
    horizon = clock.now() - _KEEP_ENDED
    old = SignInSession.objects.filter(ended_at__lt=horizon) | SignInSession.objects.filter(expires_at__lt=horizon)
    _total, by_model = old.delete()
    return by_model.get("accounts.SignInSession", 0)


def _add_refresh_token(session: SignInSession, *, generation: int) -> RefreshToken:
    token = RefreshToken(session=session, generation=generation, nonce=secrets.token_bytes(16))
    token.digest = _digest(_secret(token))
    token.save(force_insert=True)
    return token


def _secret(token: RefreshToken) -> str:
    """Return the refresh token of a row: a MAC that nobody can compute from the database alone."""
    message = b"|".join(
        (b"accounts:refresh-token", token.session_id.bytes, str(token.generation).encode(), bytes(token.nonce))
    )
    mac = hmac.digest(settings.SECRET_KEY.encode(), message, "sha256")
    return _PREFIX + base64.urlsafe_b64encode(mac).rstrip(b"=").decode()


def _digest(refresh_token: str) -> bytes:
    return hashlib.sha256(refresh_token.encode()).digest()


def _signed_in(session: SignInSession, token: RefreshToken) -> SignedIn:
    return SignedIn(
        session=session,
        access_token=access_tokens.issue(session),
        refresh_token=_secret(token),
        expires_in=int(settings.ACCESS_TOKEN_LIFETIME.total_seconds()),
    )
