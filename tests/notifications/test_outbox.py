"""The outbox records events with their cause, or not at all."""

from __future__ import annotations

import pytest
from django.contrib.auth import get_user_model
from django.db import transaction
from django.db.transaction import TransactionManagementError

from notifications.models import OutboxEvent
from notifications.services import record


@pytest.mark.django_db(transaction=True)
def test_an_event_outside_a_transaction_is_refused():
    with pytest.raises(TransactionManagementError):
        record("token.purchased", None, {})

    assert OutboxEvent.objects.count() == 0


@pytest.mark.django_db(transaction=True)
def test_an_event_is_stored_with_its_cause():
    with transaction.atomic():
        user = get_user_model().objects.create_user("ada@example.com", "ada", "secret-enough")
        record("user.registered", user, {"user_id": str(user.pk)})

    event = OutboxEvent.objects.get()
    assert (event.event, event.user, event.data) == ("user.registered", user, {"user_id": str(user.pk)})
    assert event.processed_at is None


@pytest.mark.django_db(transaction=True)
def test_an_event_vanishes_with_its_cause():
    class Refused(Exception):
        pass

    with pytest.raises(Refused), transaction.atomic():
        record("token.purchased", None, {})
        raise Refused

    assert OutboxEvent.objects.count() == 0
