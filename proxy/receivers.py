"""What the gateway learns from lower apps, right after their commit.

None of them raises: the change is committed, and the periodic sweep makes up for a Redis that was away.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from typing import Any

import redis.exceptions
from django.db import DatabaseError
from django.db.models.signals import m2m_changed, post_delete, post_save
from django.dispatch import receiver

from accounts.signals import user_access_changed
from proxy import administration, services
from proxy.models import ScopeRule, UpstreamTarget
from tokens import selectors as tokens_selectors
from tokens.signals import credentials_changed, device_released

logger = logging.getLogger(__name__)


@receiver(credentials_changed)
def evict_changed(
    sender: Any, *, digests: Sequence[str], token_ids: Sequence[uuid.UUID], revoked: bool, **_: Any
) -> None:
    try:
        services.evict_credentials(digests=digests, revoked=revoked)
    except redis.exceptions.RedisError as exc:
        logger.warning("Eviction of %d credentials waits for the sweep: %s", len(digests), exc)
    if revoked:
        _end_sessions(token__in=list(token_ids))


@receiver(user_access_changed)
def evict_tokens_of_user(sender: Any, *, user_id: uuid.UUID, **_: Any) -> None:
    try:
        digests = [digest for _token_id, digest in tokens_selectors.digests_of_user(user_id)]
        services.evict_credentials(digests=digests, revoked=False)
    except redis.exceptions.RedisError as exc:
        logger.warning("Eviction of a user's credentials waits for the sweep: %s", exc)
    _end_sessions(user=user_id)


def _end_sessions(**those: Any) -> None:
    try:
        services.end_refused_sessions(**those)
    except DatabaseError as exc:
        logger.warning("Sessions are ended by the sweep: %s", exc)


@receiver(device_released)
def free_device(sender: Any, *, token_id: uuid.UUID, device_id: str = "", **_: Any) -> None:
    try:
        services.release_claim(token_id=token_id, device_id=device_id)
    except redis.exceptions.RedisError as exc:
        # Nothing repeats this one: the claim then ends by itself when it has been idle.
        logger.warning("The device of token %s could not be released: %s", token_id, exc)
    services.end_sessions_of_released_device(token_id=token_id, device_id=device_id)


@receiver(post_save, sender="tokens.AccessToken")
def carry_limits_over(sender: Any, *, instance: Any, created: bool, **_: Any) -> None:
    # In the transaction that sells the successor, so that it never lets in more than the token it renews.
    if created and instance.predecessor_id is not None:
        administration.carry_limits_over(predecessor_id=instance.predecessor_id, successor_id=instance.pk)


@receiver(post_save, sender="accounts.Tier")
def evict_tokens_of_tier(sender: Any, *, instance: Any, created: bool, **_: Any) -> None:
    if not created:
        administration.evict_tier_after_commit(tier=instance.pk)


@receiver(post_save, sender=ScopeRule)
@receiver(post_delete, sender=ScopeRule)
def announce_rules(sender: Any, **_: Any) -> None:
    services.announce_scope_rules()


@receiver(post_save, sender=UpstreamTarget)
@receiver(post_delete, sender=UpstreamTarget)
@receiver(m2m_changed, sender=UpstreamTarget.scopes.through)
def announce_targets(sender: Any, **_: Any) -> None:
    services.announce_targets()
