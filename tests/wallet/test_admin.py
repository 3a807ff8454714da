"""The ledger in the back office: everything to see, nothing to change."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.money import staff_client, token_of_new_user, user_with
from wallet.models import Account, Transfer
from wallet.services import SystemAccount, TransferKind, claw_back, open_account

pytestmark = pytest.mark.django_db

ACCOUNTS = "/admin/wallet/account/"
TRANSFERS = "/admin/wallet/transfer/"


@pytest.fixture
def superuser() -> Any:
    return staff_client(user_with(is_staff=True, is_superuser=True))


def text(client: Any, url: str, **query: str) -> str:
    answer = client.get(url, query)
    assert answer.status_code == 200
    return answer.content.decode()


def test_accounts_are_listed_found_and_filtered(superuser):
    rich, debtor = user_with("123.45"), user_with()
    claw_back(
        account=open_account(debtor),
        counterparty=SystemAccount.GATEWAY_MOCK,
        amount=Decimal("6.78"),
        kind=TransferKind.CHARGEBACK,
        source="payment:1",
    )
    everything = text(superuser, ACCOUNTS)
    for shown in (rich.username, "123.45", debtor.username, "6.78", "revenue"):
        assert shown in everything
    assert debtor.username not in text(superuser, ACCOUNTS, q=rich.email)
    assert rich.username not in text(superuser, ACCOUNTS, owing="yes")
    assert debtor.username in text(superuser, ACCOUNTS, owing="yes")
    assert rich.username not in text(superuser, ACCOUNTS, owner="system")
    assert "gateway:mock" not in text(superuser, ACCOUNTS, owner="user")


def test_a_transfer_leads_to_its_accounts_and_back(superuser):
    bought = token_of_new_user(24)
    account = open_account(bought.token.owner)
    other = token_of_new_user(24).token.owner
    posted = Transfer.objects.get(source=f"token:{bought.token.id}")
    page = text(superuser, f"{TRANSFERS}{posted.pk}/change/")
    assert f"/admin/wallet/account/{account.pk}/change/" in page
    assert "18.00" in page
    assert str(posted.public_id) in page
    assert f"{TRANSFERS}?account={account.pk}" in text(superuser, f"{ACCOUNTS}{account.pk}/change/")
    listed = text(superuser, TRANSFERS, account=str(account.pk))
    assert bought.token.owner.username in listed
    assert other.username not in listed
    assert other.username in text(superuser, TRANSFERS)
    assert bought.token.owner.username not in text(superuser, TRANSFERS, q=other.email)


def test_a_malformed_account_filter_is_dropped(superuser):
    assert superuser.get(TRANSFERS, {"account": "x"}).status_code == 302


def test_lists_take_a_fixed_number_of_queries(superuser):
    counts = []
    for _ in range(2):
        token_of_new_user(24)
        with CaptureQueriesContext(connection) as queries:
            text(superuser, ACCOUNTS)
            text(superuser, TRANSFERS)
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_not_even_a_superuser_changes_anything(superuser):
    user = user_with("10.00")
    account, posted = open_account(user), Transfer.objects.latest("id")
    before = list(Account.objects.order_by("pk").values()), list(Transfer.objects.values())
    for url in (
        f"{ACCOUNTS}add/",
        f"{ACCOUNTS}{account.pk}/change/",
        f"{ACCOUNTS}{account.pk}/delete/",
        f"{TRANSFERS}add/",
        f"{TRANSFERS}{posted.pk}/change/",
        f"{TRANSFERS}{posted.pk}/delete/",
    ):
        assert superuser.post(url, {"balance": "1000000", "amount": "1"}).status_code == 403
    for url in (ACCOUNTS, TRANSFERS):
        superuser.post(url, {"action": "delete_selected", "_selected_action": [str(account.pk)], "post": "yes"})
    assert (list(Account.objects.order_by("pk").values()), list(Transfer.objects.values())) == before


def test_others_do_not_see_it():
    for client in (staff_client(user_with()), staff_client(user_with(is_staff=True))):
        for url in (ACCOUNTS, TRANSFERS):
            assert client.get(url).status_code in {302, 403}
