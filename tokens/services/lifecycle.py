"""What happens to a token in use: activation, its device, its end."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.contrib.auth import get_user_model
from django.db.models import DateTimeField, DurationField, ExpressionWrapper, F, Value

from notifications.services import record
from tokens.exceptions import TokenNotUsable
from tokens.models import AccessToken
from zenzefi.lib import clock
from zenzefi.lib.transactions import in_transaction

_HOUR = Value(timedelta(hours=1), output_field=DurationField())


@dataclass(frozen=True, slots=True)
class Activation:
    """When a token's clock started and when it stops; ``activated_now`` for the one call that started it."""

    activated_at: datetime
    expires_at: datetime
    activated_now: bool


@in_transaction
def activate_token(*, token_id: uuid.UUID, at: datetime, owner_id: uuid.UUID | None = None) -> Activation:
    """Start a token's clock at the moment its first request reached the upstream, once, whatever races.

    Every later call returns what the first one stored. With ``owner_id`` a token that has another owner is not
    started: a request of the giver may still be on its way when a gift is claimed. Raises :class:`TokenNotUsable` for
    a token that is revoked, held for a gift, that owner's no more, or not there.
    """
    tokens = AccessToken.objects.filter(pk=token_id)
    if owner_id is not None:
        tokens = tokens.filter(owner_id=owner_id)
    # A compare-and-set: who offers the token as a gift writes to the same row, so one of the two comes first.
    started = tokens.filter(activated_at__isnull=True, revoked_at__isnull=True, held_at__isnull=True).update(
        activated_at=at,
        expires_at=ExpressionWrapper(
            Value(at, output_field=DateTimeField()) + F("duration_hours") * _HOUR, output_field=DateTimeField()
        ),
    )
    token = tokens.select_related("owner").first()
    if token is None or token.revoked_at is not None or token.activated_at is None or token.expires_at is None:
        raise TokenNotUsable
    if started:
        if token.auto_renew:
            token.renew_at = token.expires_at - token.renewal_lead
            token.save(update_fields=["renew_at"])
        record(
            "token.activated",
            token.owner,
            {
                "token_id": str(token.id),
                "activated_at": token.activated_at.isoformat(),
                "expires_at": token.expires_at.isoformat(),
            },
        )
    return Activation(activated_at=token.activated_at, expires_at=token.expires_at, activated_now=started == 1)


@in_transaction
def record_device_use(rows: Iterable[tuple[uuid.UUID, str, datetime]]) -> int:
    """Store which device used which token when (token id, device, moment); return how many tokens changed.

    Only what is newer than what is stored counts, so reports may come late, twice and in any order.
    """
    latest: dict[uuid.UUID, tuple[datetime, str]] = {}
    for token_id, device_id, seen_at in rows:
        if token_id not in latest or seen_at > latest[token_id][0]:
            latest[token_id] = (seen_at, device_id)
    changed: list[AccessToken] = []
    # In the order of the primary key, as every flow that locks several tokens.
    for token in AccessToken.objects.filter(pk__in=latest).order_by("pk").select_for_update(of=("self",), no_key=True):
        seen_at, device_id = latest[token.pk]
        if token.device_seen_at is None or seen_at > token.device_seen_at:
            token.device_seen_at, token.device_id = seen_at, device_id
            changed.append(token)
    AccessToken.objects.bulk_update(changed, ["device_seen_at", "device_id"], batch_size=500)
    return len(changed)


@in_transaction
def record_expiries(*, limit: int = 500) -> int:
    """Record ``token.expired`` for tokens whose time ran out, each once; return how many of at most ``limit``.

    Rows that another worker is recording are skipped, not waited for.
    """
    now = clock.now()
    due = list(
        AccessToken.objects.newly_expired(now)
        .select_related("successor")
        .order_by("expires_at", "pk")
        .select_for_update(of=("self",), skip_locked=True, no_key=True)[:limit]
    )
    AccessToken.objects.filter(pk__in=[token.pk for token in due]).update(expiry_recorded_at=now)
    owners = get_user_model()._default_manager.in_bulk({token.owner_id for token in due})
    for token in due:
        record(
            "token.expired",
            owners[token.owner_id],
            {
                "token_id": str(token.id),
                "expires_at": token.expires_at and token.expires_at.isoformat(),
                # Whoever told the owner of an end would be wrong where another token goes on with the secret.
                "renewed_by": token.renewed_by_id and str(token.renewed_by_id),
            },
        )
    return len(due)
