"""Buying ZNC."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.utils.translation import gettext as _

from notifications.services import record
from wallet.exceptions import MockPaymentsDisabled
from wallet.models import Account, Transfer
from wallet.services.accounts import lock_accounts_of
from wallet.services.ledger import credit
from zenzefi.lib.transactions import in_transaction


@dataclass(frozen=True, slots=True)
class TopUp:
    """A credited amount and the balance right after, in ZNC."""

    amount: Decimal
    balance: Decimal


def demand_mock_payments() -> None:
    """Raise :class:`MockPaymentsDisabled` unless ``mock`` is among ``PAYMENT_PROVIDERS``."""
    if "mock" not in settings.PAYMENT_PROVIDERS:
        raise MockPaymentsDisabled


@in_transaction
def top_up_mock(*, user: Any, amount: Decimal, reference: str | None = None) -> TopUp:
    """Credit the user's account as if they had paid, through the mock provider.

    A ``reference`` makes the top-up happen once: repeating it raises :class:`~wallet.exceptions.AlreadyPosted`.

    Raises :class:`MockPaymentsDisabled` unless the mock provider is on, and
    :class:`~wallet.exceptions.BalanceLimitExceeded`.
    """
    demand_mock_payments()
    [account] = lock_accounts_of(user)
    posted = credit(
        account=account,
        counterparty=Account.System.GATEWAY_MOCK,
        amount=amount,
        kind=Transfer.Kind.DEPOSIT,
        source=f"mock:{reference or uuid.uuid4()}",
        description=_("Top-up"),
    )
    record(
        "payment.succeeded",
        user,
        {
            "provider": "mock",
            "transfer_id": str(posted.public_id),
            "amount": str(amount),
            "balance": str(account.balance),
        },
    )
    return TopUp(amount=amount, balance=account.balance)
