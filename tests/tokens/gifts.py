"""Gifts for tests, and what must stay as it is when one is refused."""

from __future__ import annotations

from typing import Any

from django.apps import apps

from tests.money import user_with
from tokens.models import AccessToken, Gift
from tokens.services import OfferedGift, offer_gift, purchase_token
from wallet.models import Transfer


def offered(giver: Any = None, *, duration_hours: int = 24, **gift: str) -> OfferedGift:
    """Let a user, a new one unless given, buy a token and offer it."""
    giver = giver or user_with("1000.00")
    token = purchase_token(owner=giver, duration_hours=duration_hours).token
    return offer_gift(token_id=token.pk, giver=giver, **gift)


def state() -> tuple[list[dict[str, Any]], ...]:
    """Every row that a gift may touch."""
    models = (AccessToken, Gift, Transfer, apps.get_model("notifications.OutboxEvent"))
    return tuple(list(model._default_manager.order_by("pk").values()) for model in models)


def events(name: str) -> list[Any]:
    return list(apps.get_model("notifications.OutboxEvent").objects.filter(event=name).order_by("created_at"))
