"""Users with money and tokens, made through the services the platform itself uses."""

from __future__ import annotations

import uuid
from datetime import timedelta
from decimal import Decimal
from typing import Any

from django.db import transaction
from django.test import Client
from rest_framework.test import APIClient

from tests.factories import UserFactory
from tokens.services import PurchasedToken, activate_token, purchase_token, set_auto_renew
from wallet.selectors import balance_of
from wallet.services import SystemAccount, TransferKind, credit, debit, lock_accounts_of, top_up_mock
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


def renewing_token(
    duration_hours: int = 24, *, balance: str = "100.00", seconds_left: float, **purchase: Any
) -> PurchasedToken:
    """Return a new user's token that renews itself, with this much time left and this many ZNC after its purchase."""
    bought = token_of_new_user(duration_hours, **purchase)
    token = bought.token
    set_auto_renew(token_id=token.id, owner=token.owner, enabled=True)
    activate_so_that(token, seconds_left=seconds_left)
    leave(token.owner, balance)
    return bought


def leave(user: Any, balance: str) -> None:
    """Give or take by an adjustment so that the user has exactly this many ZNC."""
    difference = Decimal(balance) - balance_of(user).balance
    with transaction.atomic():
        [account] = lock_accounts_of(user)
        move = credit if difference > 0 else debit
        if difference:
            move(
                account=account,
                counterparty=SystemAccount.ADJUSTMENTS,
                amount=abs(difference),
                kind=TransferKind.ADJUSTMENT,
                source=f"test:{uuid.uuid4()}",
            )


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
