"""Users with money and tokens, made through the services the platform itself uses."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

from django.test import Client
from rest_framework.test import APIClient

from tests.factories import UserFactory
from tokens.services import PurchasedToken, activate_token, purchase_token
from wallet.services import top_up_mock
from zenzefi.lib import clock


def user_with(balance: str = "0.00", **extra: Any) -> Any:
    """Return a new user with this many ZNC."""
    user = UserFactory(**extra)
    if Decimal(balance):
        top_up_mock(user=user, amount=Decimal(balance))
    return user


def token_of_new_user(duration_hours: int = 24, balance: str = "1000.00", **purchase: Any) -> PurchasedToken:
    return purchase_token(owner=user_with(balance), duration_hours=duration_hours, **purchase)


def activate_so_that(token: Any, *, seconds_left: float) -> None:
    """Activate a token at the moment that leaves it this much time from now on."""
    activated_at = clock.now() - timedelta(hours=token.duration_hours) + timedelta(seconds=seconds_left)
    activate_token(token_id=token.id, at=activated_at)
    token.refresh_from_db()


def api(user: Any = None) -> APIClient:
    """Return an API client signed in as the user."""
    client = APIClient()
    if user is not None:
        client.force_authenticate(user)
    return client


def staff_client(user: Any) -> Client:
    client = Client()
    client.force_login(user)
    return client
