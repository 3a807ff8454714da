"""manage.py reconcile: silent on a sound ledger, and it finds the row of each way to be wrong."""

from __future__ import annotations

import io
from decimal import Decimal
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction

from tests.money import activate_so_that, token_of_new_user, user_with
from tests.threads import run_at_once
from tokens.services import purchase_token, revoke_token
from wallet import reconciliation
from wallet.models import Account, Transfer
from wallet.reconciliation import reconcile
from wallet.services import SystemAccount, TransferKind, claw_back, open_account, top_up_mock, transfer

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def ledger() -> dict[str, Any]:
    """A bit of everything: top-ups, purchases, refunds, a transfer between users, a debt partly paid."""
    buyer = user_with("100.00")
    kept = purchase_token(owner=buyer, duration_hours=24).token
    unused = purchase_token(owner=buyer, duration_hours=24).token
    revoke_token(token_id=unused.id, actor=buyer, refund=True)
    used = token_of_new_user(24).token
    activate_so_that(used, seconds_left=43_224)
    revoke_token(token_id=used.id, actor=None, refund=True)
    debtor = user_with("1.00")
    with transaction.atomic():
        claw_back(
            account=open_account(debtor),
            counterparty=SystemAccount.GATEWAY_MOCK,
            amount=Decimal("6.00"),
            kind=TransferKind.CHARGEBACK,
            source="payment:1",
        )
        transfer(
            debit_account=open_account(buyer),
            credit_account=open_account(debtor),
            amount=Decimal("2.00"),
            kind=TransferKind.ADJUSTMENT,
            source="test:1",
        )
    top_up_mock(user=debtor, amount=Decimal("10.00"))
    return {"buyer": open_account(buyer), "kept": kept, "unused": unused}


def run() -> tuple[int, str]:
    out = io.StringIO()
    try:
        call_command("reconcile", stdout=out, stderr=out)
    except SystemExit as exit_:
        return int(exit_.code or 0), out.getvalue()
    return 0, out.getvalue()


def tamper(statement: str, *parameters: Any) -> None:
    """Change rows as a superuser can, with triggers off and the constraints dropped for good in this transaction."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL session_replication_role = replica")
        cursor.execute(statement, parameters)


def test_a_sound_ledger(ledger):
    code, text = run()
    assert code == 0, text
    assert "DRIFT" not in text
    assert "drift 0.00" in text


def test_an_empty_ledger():
    assert run()[0] == 0


def drifted(statement: str, *parameters: Any) -> dict[str, list[str]]:
    """Tamper, and return what each failed check names."""
    tamper(statement, *parameters)
    code, text = run()
    assert code == 1
    found = {outcome.name: [drift.row for drift in outcome.drifts] for outcome in reconcile() if outcome.drifts}
    assert found
    for rows in found.values():
        for row in rows:
            assert row in text
    return found


def test_a_changed_balance(ledger):
    account = ledger["buyer"]
    found = drifted("UPDATE wallet_account SET balance = balance + 0.01 WHERE id = %s", account.pk)
    assert found == {
        "cached balances equal their transfers": [f"account {account.pk}"],
        "cached balances equal what the last transfer left": [f"account {account.pk}"],
    }


def test_a_changed_number_of_transfers(ledger):
    account = ledger["buyer"]
    found = drifted("UPDATE wallet_account SET postings = postings + 1 WHERE id = %s", account.pk)
    assert found == {"cached numbers of transfers are right": [f"account {account.pk}"]}


def test_a_changed_amount(ledger):
    posted = Transfer.objects.get(kind="PURCHASE", source=f"token:{ledger['kept'].id}")
    found = drifted("UPDATE wallet_transfer SET amount = amount - 1 WHERE id = %s", posted.pk)
    assert found == {
        "cached balances equal their transfers": [f"account {posted.debit_account_id}"],
        "each transfer continues where the one before it ended": [f"transfer {posted.pk}"],
        "each token bought alone was paid by one posting of the same amount": [f"token {ledger['kept'].id}"],
    }


def test_a_changed_balance_after(ledger):
    posted = Transfer.objects.filter(debit_account=ledger["buyer"]).earliest("id")
    found = drifted("UPDATE wallet_transfer SET debit_balance_after = 99 WHERE id = %s", posted.pk)
    [rows] = found.values()
    assert list(found) == ["each transfer continues where the one before it ended"]
    assert f"transfer {posted.pk}" in rows


def test_a_removed_transfer(ledger):
    posted = Transfer.objects.get(kind="REFUND", source=f"token:{ledger['unused'].id}")
    found = drifted("DELETE FROM wallet_transfer WHERE id = %s", posted.pk)
    assert found["each token's refund is one posting of the same amount"] == [f"token {ledger['unused'].id}"]
    assert found["cached balances equal their transfers"] == [f"account {posted.credit_account_id}"]


def test_an_invented_transfer(ledger):
    account = ledger["buyer"]
    found = drifted(
        "INSERT INTO wallet_transfer (public_id, debit_account_id, credit_account_id, amount, kind, source,"
        " description, created_at, credit_balance_after, credit_owed_after) SELECT gen_random_uuid(),"
        " (SELECT id FROM wallet_account WHERE system = 'revenue'), %s, 5, 'REFUND', 'token:none', '', now(), 5, 0",
        account.pk,
    )
    assert found["each token's refund is one posting of the same amount"] == ["token:none"]
    assert found["cached balances equal their transfers"] == [f"account {account.pk}"]


def test_a_refund_that_was_not_posted(ledger):
    token = ledger["kept"]
    found = drifted(
        "UPDATE tokens_accesstoken SET refunded = 1, revoked_at = now() WHERE id = %s",
        token.id,
    )
    assert found == {"each token's refund is one posting of the same amount": [f"token {token.id}"]}


def test_what_constraints_would_have_refused(ledger):
    """As after a restore that left them out: they are dropped, the rows are broken, and all is put back."""
    account, token = ledger["buyer"], ledger["kept"]
    posted = Transfer.objects.filter(debit_account=account).latest("id")
    changes = [
        ("wallet_account", f"SET balance = -1 WHERE id = '{account.pk}'"),
        ("wallet_transfer", f"SET amount = -1 WHERE id = {posted.pk}"),
        ("tokens_accesstoken", f"SET refunded = paid + 1 WHERE id = '{token.id}'"),
    ]
    kept: list[tuple[str, str, str]] = []
    with transaction.atomic(), connection.cursor() as cursor:
        for table in {table for table, _change in changes}:
            cursor.execute(
                "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
                " WHERE contype = 'c' AND conrelid = %s::regclass",
                [table],
            )
            for name, definition in cursor.fetchall():
                kept.append((table, name, definition))
                cursor.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
    try:
        for table, change in changes:
            tamper(f"UPDATE {table} {change}")
        assert run()[0] == 1
        found = {outcome.name: [drift.row for drift in outcome.drifts] for outcome in reconcile() if outcome.drifts}
        assert found["no account is negative, and none both has and owes"] == [f"account {account.pk}"]
        assert found["no transfer is negative or leaves a negative balance"] == [f"transfer {posted.pk}"]
        assert found["no token was refunded above what was paid"] == [f"token {token.id}"]
    finally:
        tamper("DELETE FROM wallet_transfer")
        tamper("DELETE FROM tokens_accesstoken")
        tamper("UPDATE wallet_account SET balance = 0")
        with transaction.atomic(), connection.cursor() as cursor:
            for table, name, definition in kept:
                cursor.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")


def test_a_long_list_is_cut(ledger):
    Account.objects.bulk_create(Account(user=user_with(), balance=Decimal("1.00")) for _ in range(25))
    code, text = run()
    assert code == 1
    assert "DRIFT in 25" in text
    assert "and 5 more" in text


def test_purchases_meanwhile_are_no_drift(ledger):
    """All checks see one moment: a purchase between two of them changes nothing."""
    user = user_with("1000.00")
    bought: list[Any] = []

    class BuyingCheck:
        """Holds always, and buys a token when its query is asked for."""

        name = "buys"

        @property
        def query(self) -> str:
            bought.extend(run_at_once(1, lambda _: purchase_token(owner=user, duration_hours=24)))
            return "SELECT 'x', 'y' WHERE false"

    checks: list[Any] = reconciliation._CHECKS
    before = list(checks)
    try:
        checks[:] = [item for check in before for item in (check, BuyingCheck())]
        outcomes = reconcile()
    finally:
        checks[:] = before
    assert len(bought) == len(before)
    assert not [outcome for outcome in outcomes if outcome.drifts]
