"""What staff change about users."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from functools import partial

from django.db import transaction

from accounts.exceptions import OwnAccount, UserNotFound
from accounts.models import SignInSession, User
from accounts.services.sessions import end_sessions_of
from accounts.services.storing import store_user
from accounts.signals import user_access_changed
from notifications.services import record
from zenzefi.lib.transactions import in_transaction


@in_transaction
def set_user_active(*, user_id: uuid.UUID, active: bool, actor: User | None, reason: str) -> bool:
    """Disable or enable a user; returns whether that changed anything.

    A disabled user's sessions end, and :data:`~accounts.signals.user_access_changed` is sent after commit, so that
    the gateway refuses their tokens at once. ``actor`` is ``None`` for the system itself.

    Raises :class:`UserNotFound`, and :class:`OwnAccount` when staff would disable themselves.
    """
    user = User.objects.select_for_update(no_key=True).filter(pk=user_id).first()
    if user is None:
        raise UserNotFound
    if actor is not None and actor.pk == user.pk and not active:
        raise OwnAccount
    if user.is_active == active:
        return False
    user.is_active = active
    user.save(update_fields=["is_active", "updated_at"])
    if not active:
        end_sessions_of(user, SignInSession.EndReason.USER_DISABLED)
    record(
        "user.enabled" if active else "user.disabled",
        user,
        {"user_id": str(user.pk), "actor_id": str(actor.pk) if actor else None, "reason": reason},
    )
    _tell_access_changed(user)
    return True


@in_transaction
def save_edited_user(*, user: User, changed: Collection[str], actor: User) -> None:
    """Store the fields that staff edited, already checked by a form.

    A new address ends the user's sessions; a change of ``is_superuser``, which lifts limits, is told after commit.
    Raises :class:`~django.core.exceptions.ValidationError` for an address or name taken meanwhile.
    """
    stored = [field.name for field in User._meta.concrete_fields if field.name in changed]
    if not stored:
        return
    before = User.objects.select_for_update(no_key=True).get(pk=user.pk)
    store_user(user, update_fields=stored)
    if user.email != before.email:
        end_sessions_of(user, SignInSession.EndReason.CREDENTIALS_CHANGED)
    if user.is_superuser != before.is_superuser:
        _tell_access_changed(user)
    record("user.edited", user, {"user_id": str(user.pk), "actor_id": str(actor.pk), "fields": sorted(stored)})


@in_transaction
def set_tier(*, user_id: uuid.UUID, tier: str, reason: str, actor: User | None = None) -> bool:
    """Move a user to another tier, whatever it costs; returns whether that changed anything.

    Its limits hold at once: :data:`~accounts.signals.user_access_changed` is sent after commit. What is paid for a
    tier is the caller's affair. ``actor`` is who of staff did it.

    Raises :class:`UserNotFound`, and :class:`~django.db.IntegrityError` for a tier that is not there.
    """
    user = User.objects.select_for_update(no_key=True).filter(pk=user_id).first()
    if user is None:
        raise UserNotFound
    if user.tier_id == tier:
        return False
    before, user.tier_id = user.tier_id, tier
    user.save(update_fields=["tier", "updated_at"])
    record(
        "tier.changed",
        user,
        {"from": before, "to": tier, "reason": reason, "actor_id": str(actor.pk) if actor else None},
    )
    _tell_access_changed(user)
    return True


def _tell_access_changed(user: User) -> None:
    # Robust: a receiver that fails must not undo in the answer what is committed.
    transaction.on_commit(partial(user_access_changed.send_robust, sender=User, user_id=user.pk))
