"""What the back office shows of the gateway."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from proxy.models import ScopeRule, Session
from tests.money import token_of_new_user, user_with


@pytest.fixture
def back_office(client: Client, db: None) -> Client:
    client.force_login(user_with(is_staff=True, is_superuser=True))
    return client


@pytest.mark.django_db
def test_staff_see_sessions_without_a_query_for_each(back_office: Client, django_assert_max_num_queries):
    now = timezone.now()
    for number in range(12):
        token = token_of_new_user(24).token
        Session.objects.create(
            token=token,
            user=token.owner,
            device_id=f"device-{number:04}",
            requests=3,
            bytes_in=2048,
            bytes_out=1_048_576,
            started_at=now - timedelta(minutes=5),
            last_activity_at=now,
        )

    with django_assert_max_num_queries(12):
        page = back_office.get("/admin/proxy/session/?state=open")

    text = page.content.decode().replace("\xa0", " ")
    assert page.status_code == 200
    assert "device-0011" in text
    assert "2.0 KB / 1.0 MB" in text
    assert back_office.get("/admin/proxy/session/add/").status_code == 403
    assert "device-0011" not in back_office.get("/admin/proxy/session/?state=ended").content.decode()


@pytest.mark.django_db
def test_a_rule_that_cannot_be_matched_is_refused(back_office: Client):
    before = ScopeRule.objects.count()

    page = back_office.post(
        "/admin/proxy/scoperule/add/", {"scope": "certificates_only", "pattern": "a/../b", "description": ""}
    )

    assert page.status_code == 200
    assert ScopeRule.objects.count() == before
