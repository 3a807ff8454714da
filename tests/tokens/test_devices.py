"""Which device used a token, and letting it go."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.money import api, token_of_new_user, user_with
from tests.threads import run_at_once
from tokens.models import AccessToken
from tokens.services import claim_device, record_device_use
from tokens.signals import device_released
from zenzefi.lib import clock

pytestmark = pytest.mark.django_db


def stored(token: AccessToken) -> tuple[str, Any]:
    token.refresh_from_db()
    return token.device_id, token.device_seen_at


def test_the_newest_report_counts_in_whatever_order_they_come():
    token, other = token_of_new_user().token, token_of_new_user().token
    now = clock.now()
    assert record_device_use([(token.id, "new", now), (token.id, "old", now - timedelta(1))]) == 1
    assert stored(token) == ("new", now)
    assert record_device_use([(token.id, "older", now - timedelta(2)), (other.id, "o", now)]) == 1
    assert record_device_use([(token.id, "again", now)]) == 0
    assert record_device_use([(uuid.uuid4(), "nobody", now)]) == 0
    assert record_device_use([]) == 0
    assert (stored(token), stored(other)) == (("new", now), ("o", now))


def test_reports_of_many_tokens_take_a_fixed_number_of_queries():
    tokens = [token_of_new_user(1).token for _ in range(6)]
    counts = set()
    for batch in (tokens[:2], tokens):
        rows = [(token.id, "device-1", clock.now()) for token in batch]
        with CaptureQueriesContext(connection) as queries:
            assert record_device_use(rows) == len(batch)
        counts.add(len(queries))
    assert len(counts) == 1


@pytest.mark.django_db(transaction=True)
def test_reports_at_once_in_opposite_orders_do_not_block_each_other():
    tokens = [token_of_new_user(1).token for _ in range(6)]
    now = clock.now()

    def report(number: int) -> int:
        ordered = tokens if number % 2 else list(reversed(tokens))
        return record_device_use([(token.id, f"device-{number}", now + timedelta(seconds=number)) for token in ordered])

    assert all(isinstance(outcome, int) for outcome in run_at_once(10, report))
    assert {stored(token)[0] for token in tokens} == {"device-9"}


def test_the_owner_releases_the_device(django_capture_on_commit_callbacks):
    released: list[Any] = []

    def receive(*, token_id: Any, **_: Any) -> None:
        released.append(token_id)

    token = token_of_new_user().token
    used_at = clock.now()
    record_device_use([(token.id, "device-1", used_at)])
    client = api(token.owner)
    assert client.get(f"/api/v1/tokens/{token.id}").json()["device"]["id"] == "device-1"
    device_released.connect(receive)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            answer = client.post(f"/api/v1/tokens/{token.id}/release-device")
            assert released == []
    finally:
        device_released.disconnect(receive)
    assert (answer.status_code, answer.json()["device"]) == (200, None)
    assert released == [token.id]
    # A report that was on its way when the device was released does not bring it back.
    assert record_device_use([(token.id, "device-1", used_at + timedelta(microseconds=1))]) == 0
    assert stored(token)[0] == ""


def test_the_device_of_anothers_token_is_not_released():
    token = token_of_new_user().token
    now = clock.now()
    record_device_use([(token.id, "device-1", now)])
    assert api(user_with()).post(f"/api/v1/tokens/{token.id}/release-device").status_code == 404
    assert stored(token) == ("device-1", now)


def test_a_claim_holds_until_it_has_been_idle():
    token = token_of_new_user().token
    assert claim_device(token_id=token.id, device_id="one", idle_seconds=300)
    assert claim_device(token_id=token.id, device_id="one", idle_seconds=300)
    assert not claim_device(token_id=token.id, device_id="two", idle_seconds=300)
    assert stored(token)[0] == "one"
    AccessToken.objects.filter(pk=token.pk).update(device_seen_at=clock.now() - timedelta(seconds=301))
    assert claim_device(token_id=token.id, device_id="two", idle_seconds=300)
    assert not claim_device(token_id=uuid.uuid4(), device_id="one", idle_seconds=300)


@pytest.mark.django_db(transaction=True)
def test_of_many_devices_one_wins():
    token = token_of_new_user().token
    claims = run_at_once(16, lambda n: claim_device(token_id=token.id, device_id=f"device-{n}", idle_seconds=300))
    assert claims.count(True) == 1
    assert stored(token)[0] == f"device-{claims.index(True)}"
