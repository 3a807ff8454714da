"""GET /currency/balance."""

from __future__ import annotations

from decimal import Decimal

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.money import api, user_with
from wallet.models import Account
from wallet.services import SystemAccount, TransferKind, claw_back, open_account

pytestmark = pytest.mark.django_db
URL = "/api/v1/currency/balance"


def test_balance_is_a_string_with_two_places():
    answer = api(user_with("82.5")).get(URL)
    assert answer.status_code == 200
    assert answer.json() == {"balance": "82.50", "currency": "ZNC", "owed": "0.00"}


def test_a_user_without_an_account_has_nothing_and_reading_opens_none():
    user = user_with()
    with CaptureQueriesContext(connection) as queries:
        answer = api(user).get(URL)
    assert answer.json() == {"balance": "0.00", "currency": "ZNC", "owed": "0.00"}
    assert len(queries) == 1
    assert not Account.objects.filter(user=user).exists()


def test_what_is_owed_is_shown():
    user = user_with("1.00")
    claw_back(
        account=open_account(user),
        counterparty=SystemAccount.GATEWAY_MOCK,
        amount=Decimal("5.00"),
        kind=TransferKind.CHARGEBACK,
        source="payment:1",
    )
    assert api(user).get(URL).json() == {"balance": "0.00", "currency": "ZNC", "owed": "4.00"}


def test_nobody_signed_in_sees_nothing():
    answer = api().get(URL)
    assert answer.status_code in {401, 403}
    assert answer.json()["code"] == "not_authenticated"


def test_other_methods_are_refused():
    assert api(user_with()).post(URL, {}, format="json").status_code == 405
