"""Finding and locking tokens, and telling the gateway that one changed."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.db import transaction

from tokens.exceptions import TokenAlreadyRevoked, TokenExpired, TokenHeld, TokenNotFound
from tokens.models import AccessToken
from tokens.signals import credentials_changed


def find_token(token_id: uuid.UUID, *, owner: Any | None = None) -> AccessToken:
    """Return a token, of this owner when one is given, without locking it. Raises :class:`TokenNotFound`."""
    tokens = AccessToken.objects.all() if owner is None else AccessToken.objects.owned_by(owner)
    token = tokens.filter(pk=token_id).first()
    if token is None:
        raise TokenNotFound
    return token


def lock_token(token_id: uuid.UUID, *, owner: Any | None = None) -> AccessToken:
    """Lock a token for the rest of the transaction and return it as it is now. Raises :class:`TokenNotFound`.

    Accounts are locked before tokens: see :func:`wallet.services.lock_accounts_of`.
    """
    tokens = AccessToken.objects.all() if owner is None else AccessToken.objects.owned_by(owner)
    token = tokens.select_for_update(of=("self",), no_key=True).filter(pk=token_id).first()
    if token is None:
        raise TokenNotFound
    return token


def demand_usable(token: AccessToken, at: datetime | None = None) -> None:
    """Refuse a token that lets nobody in.

    Raises :class:`TokenAlreadyRevoked`, :class:`TokenExpired`, :class:`TokenHeld`.
    """
    status = token.status(at)
    if status is AccessToken.Status.REVOKED:
        raise TokenAlreadyRevoked
    if status is AccessToken.Status.EXPIRED:
        raise TokenExpired
    if status is AccessToken.Status.GIFTED:
        raise TokenHeld


def tell_after_commit(credentials: Iterable[tuple[uuid.UUID, str]], *, revoked: bool) -> None:
    """Send ``credentials_changed`` for pairs of token id and digest once the transaction is committed.

    A receiver that fails is logged, not raised: the change is committed, and the gateway's sweep repairs it.
    """
    pairs = list(credentials)
    transaction.on_commit(
        lambda: credentials_changed.send_robust(
            sender=AccessToken,
            digests=[digest for _token_id, digest in pairs],
            token_ids=[token_id for token_id, _digest in pairs],
            revoked=revoked,
        )
    )
