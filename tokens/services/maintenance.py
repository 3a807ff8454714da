"""What an owner changes on a token: its secret, its device, its label."""

from __future__ import annotations

import ipaddress
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db import transaction

from notifications.services import record
from tokens import secrets
from tokens.exceptions import InvalidNetwork, TokenHeld, TokenNotStarted, TooManyNetworks
from tokens.models import AccessToken, RotatedDigest
from tokens.services.access import demand_usable, lock_token, tell_after_commit
from tokens.services.renewal import set_auto_renew
from tokens.signals import device_released
from zenzefi.lib import clock
from zenzefi.lib.transactions import in_transaction

#: Networks that one token can be bound to.
MAX_NETWORKS = 50


@dataclass(frozen=True, slots=True)
class RotatedToken:
    """A token with its new secret, which is shown this once."""

    token: AccessToken
    secret: str

    def __repr__(self) -> str:
        return f"RotatedToken(token={self.token!r})"


@in_transaction
def rotate_token(*, token_id: uuid.UUID, owner: Any) -> RotatedToken:
    """Replace a token's secret. Price, expiry and device stay; the old secret is refused from the commit on.

    A successor that waits for the token's end takes the new secret over.

    Raises :class:`~tokens.exceptions.TokenNotFound`, :class:`~tokens.exceptions.TokenAlreadyRevoked`,
    :class:`~tokens.exceptions.TokenExpired`, :class:`~tokens.exceptions.TokenHeld`, and
    :class:`~tokens.exceptions.TokenNotStarted` for a successor that has no secret yet.
    """
    token = lock_token(token_id, owner=owner)
    demand_usable(token)
    if token.status() is AccessToken.Status.SCHEDULED:
        raise TokenNotStarted
    secret = replace_secret(token)
    token.save(update_fields=["digest", "last_four", "changed_at"])
    if token.renewed_at is not None:
        AccessToken.objects.filter(predecessor=token).update(last_four=token.last_four)
    record("token.rotated", owner, {"token_id": str(token.id)})
    return RotatedToken(token=token, secret=secret)


def replace_secret(token: AccessToken) -> str:
    """Give a locked token a new secret and return it; the caller saves digest, last four and moment of change.

    The old secret is refused from the commit on.
    """
    now = clock.now()
    replaced = token.digest
    RotatedDigest.objects.create(digest=replaced, token=token, rotated_at=now)
    secret = secrets.generate()
    token.digest = secrets.digest(secret)
    token.last_four = secret[-4:]
    token.changed_at = now
    tell_after_commit([(token.id, replaced)], revoked=False)
    return secret


@in_transaction
def release_device(
    *,
    token_id: uuid.UUID,
    owner: Any | None = None,
    device_id: str = "",
    actor: Any | None = None,
    reason: str = "owner",
) -> AccessToken:
    """Let another device claim the token at once: in the place of one device, or of all.

    A device that holds nothing is none to release; that is no error. With ``owner`` a token of anyone else is not
    found; staff pass none. Raises :class:`~tokens.exceptions.TokenNotFound`.
    """
    token = lock_token(token_id, owner=owner)
    if device_id in ("", token.device_id):
        token.device_id = ""
        token.device_seen_at = clock.now()
        token.save(update_fields=["device_id", "device_seen_at"])
    record(
        "token.device_released",
        token.owner,
        {
            "token_id": str(token.id),
            "device_id": device_id or None,
            "reason": reason,
            "actor_id": None if actor is None else str(actor.pk),
        },
    )
    transaction.on_commit(
        lambda: device_released.send_robust(sender=AccessToken, token_id=token.id, device_id=device_id)
    )
    return token


@in_transaction
def update_token(
    *,
    token_id: uuid.UUID,
    owner: Any | None,
    label: str | None = None,
    allowed_ips: Iterable[str] | None = None,
    auto_renew: bool | None = None,
) -> AccessToken:
    """Change what the owner may edit; what is not given stays. Staff pass no owner.

    ``allowed_ips`` are the networks (CIDR) that the gateway lets clients of the token come from; an empty list is
    every network. They count from the next request on, and for a successor that is bought already.

    Raises :class:`~tokens.exceptions.TokenNotFound`, :class:`TokenHeld` (never to staff),
    :class:`~tokens.exceptions.InvalidNetwork`, :class:`~tokens.exceptions.TooManyNetworks`, and what
    :func:`~tokens.services.renewal.set_auto_renew` raises.
    """
    if auto_renew is not None:
        set_auto_renew(token_id=token_id, owner=owner, enabled=auto_renew)
    token = lock_token(token_id, owner=owner)
    if token.held_at is not None and owner is not None:
        raise TokenHeld
    if label is not None:
        token.label = label
    if allowed_ips is not None:
        networks = as_networks(allowed_ips)
        if networks != token.allowed_ips:
            token.allowed_ips = networks
            token.changed_at = clock.now()
            AccessToken.objects.filter(predecessor=token).update(allowed_ips=networks)
            tell_after_commit([(token.id, token.digest)], revoked=False)
    token.save(update_fields=["label", "allowed_ips", "changed_at"])
    return token


def as_networks(texts: Iterable[str]) -> list[str]:
    """Return networks in their canonical form, each once, in their order.

    An address stands for itself alone; bits behind the prefix are cleared, as ``10.1.2.3/8`` is often written.
    Raises :class:`~tokens.exceptions.InvalidNetwork` and :class:`~tokens.exceptions.TooManyNetworks`.
    """
    found: dict[str, None] = {}
    for text in texts:
        try:
            network = ipaddress.ip_network(text.strip(), strict=False)
        except ValueError:
            raise InvalidNetwork from None
        # A zone (fe80::1%eth0) means something on one machine only.
        if "%" in text:
            raise InvalidNetwork
        found[str(network)] = None
    if len(found) > MAX_NETWORKS:
        raise TooManyNetworks
    return list(found)
