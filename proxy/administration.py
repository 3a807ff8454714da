"""What staff change about the gateway: limits of tokens and tiers, and the switch that closes it."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import redis.exceptions
from django.db import transaction

from notifications.services import record
from proxy import keys, services
from proxy.exceptions import UnknownLimit
from proxy.limits import COLUMNS
from proxy.models import GatewaySwitch, TierLimits, TokenLimits
from tokens import selectors as tokens_selectors
from tokens import services as tokens_services
from zenzefi.lib import clock
from zenzefi.lib import redis as redis_client
from zenzefi.lib.transactions import in_transaction

logger = logging.getLogger(__name__)

_OF_TOKENS = ("requests_per_minute", *COLUMNS)


@in_transaction
def set_token_limits(
    *,
    token_id: uuid.UUID,
    limits: Mapping[str, int | None],
    actor: Any | None,
    reason: str,
    allowed_ips: Iterable[str] | None = None,
) -> TokenLimits:
    """Set limits of a token by name, ``None`` for its tier's; those not named stay. They act on the next request.

    ``allowed_ips``, if given, replaces the networks that the token may be used from. A new number of seats frees
    those that are taken. Raises :class:`~tokens.exceptions.TokenNotFound`,
    :class:`~tokens.exceptions.InvalidNetwork`, :class:`~tokens.exceptions.TooManyNetworks` and
    :class:`~proxy.exceptions.UnknownLimit`.
    """
    _demand_known(limits, _OF_TOKENS)
    token = tokens_services.update_token(token_id=token_id, owner=None, allowed_ips=allowed_ips)
    row, _ = TokenLimits.objects.select_for_update().get_or_create(token_id=token_id)
    changed = _assign(row, limits)
    row.save()
    successor = tokens_selectors.successor_of(token_id)
    if successor is not None:
        carry_limits_over(predecessor_id=token_id, successor_id=successor)
    record(
        "token.limits_changed",
        token.owner,
        {
            "token_id": str(token_id),
            "limits": changed,
            **({} if allowed_ips is None else {"allowed_ips": token.allowed_ips}),
            "actor_id": str(actor.pk) if actor else None,
            "reason": reason,
        },
    )
    _evict_after_commit(lambda: [token.digest], freed=[token_id] if "seats" in changed else [])
    return row


def carry_limits_over(*, predecessor_id: uuid.UUID, successor_id: uuid.UUID) -> None:
    """Give a token that goes on with another's secret the other's limits."""
    limits = TokenLimits.objects.filter(pk=predecessor_id).values(*_OF_TOKENS).first()
    if limits is not None:
        TokenLimits.objects.update_or_create(token_id=successor_id, defaults=limits)


@in_transaction
def set_tier_limits(*, tier: str, limits: Mapping[str, int | None], actor: Any | None, reason: str) -> TierLimits:
    """Set limits of all tokens whose owners have a tier; those not named stay. They act on the next request.

    Raises :class:`~proxy.exceptions.UnknownLimit`.
    """
    _demand_known(limits, COLUMNS)
    row, _ = TierLimits.objects.select_for_update().get_or_create(tier_id=tier)
    changed = _assign(row, limits)
    row.save()
    record(
        "tier.limits_changed",
        None,
        {"tier": tier, "limits": changed, "actor_id": str(actor.pk) if actor else None, "reason": reason},
    )
    evict_tier_after_commit(tier=tier)
    return row


def evict_tier_after_commit(*, tier: str) -> None:
    """Have the gateway look up every usable token again whose owner has a tier."""
    _evict_after_commit(lambda: tokens_selectors.digests_of_tier(tier), freed=[])


def _demand_known(limits: Mapping[str, int | None], names: Iterable[str]) -> None:
    if unknown := set(limits) - set(names):
        raise UnknownLimit(", ".join(sorted(unknown)))


def _assign(row: Any, limits: Mapping[str, int | None]) -> dict[str, int | None]:
    """Set the fields of a row and return those that changed."""
    changed = {name: value for name, value in limits.items() if getattr(row, name) != value}
    for name, value in changed.items():
        setattr(row, name, value)
    return changed


def _evict_after_commit(digests: Callable[[], list[str]], *, freed: list[uuid.UUID]) -> None:
    def evict() -> None:
        try:
            for token_id in freed:
                services.release_claim(token_id=token_id)
            services.evict_credentials(digests=digests(), revoked=False)
        except redis.exceptions.RedisError as exc:
            # Cached credentials end by themselves, see GATEWAY_CACHE_SECONDS.
            logger.warning("New limits act later, Redis is away: %s", exc)

    transaction.on_commit(evict)


# --- the switch


@in_transaction
def switch_gateway(*, closed: bool, actor: Any | None, reason: str) -> bool:
    """Close the gateway for everybody, or open it again; say whether that changed anything.

    Once committed, the next request is refused and what is open is ended, in every worker.
    """
    GatewaySwitch.objects.get_or_create(pk=GatewaySwitch.ONLY)
    switch = GatewaySwitch.objects.select_for_update().get(pk=GatewaySwitch.ONLY)
    if switch.is_closed == closed:
        return False
    switch.is_closed, switch.reason = closed, reason
    switch.changed_at, switch.changed_by = clock.now(), actor
    switch.save()
    record(
        "gateway.closed" if closed else "gateway.opened",
        None,
        {"actor_id": str(actor.pk) if actor else None, "reason": reason},
    )
    transaction.on_commit(_announce_switch)
    return True


def _announce_switch() -> None:
    try:
        publish_switch()
    except redis.exceptions.RedisError as exc:
        logger.warning("Workers learn of the gateway's switch from PostgreSQL, Redis is away: %s", exc)


def publish_switch() -> None:
    """Have Redis say what PostgreSQL says of the switch. Raises :class:`redis.exceptions.RedisError`.

    Also run from time to time: a Redis that was away can have forgotten it, or remember an older one.
    """
    client: Any = redis_client.client()
    # Locked, so that of two at once the later one has the last word.
    with transaction.atomic():
        switch = GatewaySwitch.objects.select_for_update().filter(pk=GatewaySwitch.ONLY).first()
        closed = switch is not None and switch.is_closed
        changed = client.set(keys.gate(), "1", nx=True) if closed else client.delete(keys.gate())
        if changed:
            client.publish(keys.changes_channel(), keys.GATE_CHANGED)
