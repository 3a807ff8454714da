"""The nightly reconciliation: its verdict reaches /metrics, and drift is counted and logged."""

from __future__ import annotations

import logging
from decimal import Decimal

import pytest
from django.db import connection
from django.test import Client

from tests.money import user_with
from tests.redis_server import own_redis  # noqa: F401 - a fixture
from wallet.models import Account
from wallet.tasks import reconcile_ledger
from zenzefi.runtime.redis_server import RedisServer

pytestmark = pytest.mark.django_db(transaction=True)

BALANCES = 'zenzefi_ledger_drift_rows{check="cached balances equal their transfers"}'


def metrics(client: Client) -> str:
    return client.get("/metrics").content.decode()


def test_before_the_first_night_there_is_no_verdict(client: Client):
    assert "zenzefi_ledger_" not in metrics(client)


def test_a_sound_ledger_shows_no_drift_and_when_that_was(client: Client):
    user_with("18.00")

    assert reconcile_ledger() == 0

    page = metrics(client)
    assert f"{BALANCES} 0.0" in page
    assert "zenzefi_ledger_reconciled_timestamp_seconds" in page


def test_drift_is_counted_and_its_row_is_logged(client: Client, caplog: pytest.LogCaptureFixture):
    user = user_with("18.00")
    with connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        Account.objects.filter(user=user).update(balance=Decimal("19.00"))
        cursor.execute("SET session_replication_role = DEFAULT")

    with caplog.at_level(logging.ERROR, logger="wallet.tasks"):
        assert reconcile_ledger() > 0

    assert f"{BALANCES} 1.0" in metrics(client)
    assert str(Account.objects.get(user=user).pk) in caplog.text


def test_without_redis_the_other_metrics_are_still_served(client: Client, own_redis: RedisServer):  # noqa: F811 - the fixture
    own_redis.stop()

    assert "process_" in metrics(client) or "python_" in metrics(client)
