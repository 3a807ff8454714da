"""Finding and locking tokens, and telling the gateway that one changed."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import Q, Subquery

from notifications.services import record
from tokens import secrets
from tokens.exceptions import TokenAlreadyRevoked, TokenExpired, TokenHeld, TokenNotFound
from tokens.models import AccessToken
from tokens.signals import credentials_changed
from zenzefi.lib import clock


def find_token(token_id: uuid.UUID, *, owner: Any | None = None) -> AccessToken:
    """Return a token, of this owner when one is given, without locking it. Raises :class:`TokenNotFound`."""
    tokens = AccessToken.objects.all() if owner is None else AccessToken.objects.owned_by(owner)
    token = tokens.filter(pk=token_id).first()
    if token is None:
        raise TokenNotFound
    return token


def lock_token(token_id: uuid.UUID, *, owner: Any | None = None) -> AccessToken:
    """Lock a token for the rest of the transaction and return it as it is now. Raises :class:`TokenNotFound`.

    The token that it renews and the one that renews it are locked with it, in the order of their primary keys. A
    successor whose time has come takes its predecessor's secret over first, so that whoever holds the lock sees the
    token that the secret stands for. Accounts are locked before tokens: see :func:`wallet.services.lock_accounts_of`.
    """
    tokens = AccessToken.objects.all() if owner is None else AccessToken.objects.owned_by(owner)
    renewed = Subquery(AccessToken.objects.filter(pk=token_id).values("predecessor"))
    family = tokens.filter(Q(pk=token_id) | Q(pk=renewed) | Q(predecessor=token_id))
    locked = {token.pk: token for token in family.order_by("pk").select_for_update(of=("self",), no_key=True)}
    token = locked.get(token_id)
    if token is None:
        raise TokenNotFound
    if token.predecessor_id is not None and token.taken_over_at is None and token.revoked_at is None:
        take_over(token, locked[token.predecessor_id])
    return token


def take_over(token: AccessToken, predecessor: AccessToken) -> None:
    """Give a successor that runs its predecessor's secret and device; before its time nothing happens.

    Both are locked. The gateway has let the successor in since ``activated_at`` already: this is what keeps the two
    rows in step with it, however late.
    """
    now = clock.now()
    assert token.activated_at is not None and token.expires_at is not None
    if token.activated_at > now:
        return
    # The predecessor keeps the digest of a secret that nobody has seen.
    digest, predecessor.digest = predecessor.digest, secrets.digest(secrets.generate())
    predecessor.save(update_fields=["digest"])
    token.digest = digest
    token.last_four = predecessor.last_four
    if token.device_seen_at is None:
        token.device_id, token.device_seen_at = predecessor.device_id, predecessor.device_seen_at
    token.taken_over_at = token.changed_at = now
    token.save(update_fields=["digest", "last_four", "device_id", "device_seen_at", "taken_over_at", "changed_at"])
    record(
        "token.activated",
        token.owner,
        {
            "token_id": str(token.id),
            "activated_at": token.activated_at.isoformat(),
            "expires_at": token.expires_at.isoformat(),
            "renews": str(predecessor.id),
        },
    )
    tell_after_commit([(token.id, digest)], revoked=False)


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
