"""The gateway in the back office."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest
from django.test import Client

from proxy import services
from proxy.models import ScopeRule, Session
from tests.factories import SuperuserFactory
from tokens.models import Scope


@pytest.fixture
def back_office(db):
    client = Client()
    client.force_login(SuperuserFactory())
    return client


def test_sessions_are_listed_searched_and_never_changed(back_office, issue, django_assert_max_num_queries):
    issued = issue()
    now = round(datetime.now(UTC).timestamp() * 1000)
    rows = [
        [str(issued.token.pk), str(issued.token.owner_id), f"device-{n:03d}", "10.0.0.1", "a", 1, 2048, 20, now, now]
        for n in range(30)
    ]
    services.apply_batches([(uuid.uuid4(), rows)])

    with django_assert_max_num_queries(12):
        page = back_office.get("/admin/proxy/session/")
    assert page.status_code == 200
    assert "device-007" in page.text
    assert issued.token.digest not in page.text
    assert "device-007" not in back_office.get("/admin/proxy/session/?q=device-008&state=open").text
    session = Session.objects.get(device_id="device-007")
    detail = back_office.get(f"/admin/proxy/session/{session.pk}/change/")
    assert detail.status_code == 200
    assert back_office.post(f"/admin/proxy/session/{session.pk}/delete/", {"post": "yes"}).status_code == 403
    assert back_office.get("/admin/proxy/session/add/").status_code == 403


def test_rules_are_edited_and_bad_ones_refused(back_office, transactional_db):
    back_office.force_login(SuperuserFactory())
    scope = Scope.objects.get(slug="certificates_only")
    before = ScopeRule.objects.count()

    data = {"scope": scope.pk, "action": "allow", "description": "", "reason": "needed"}
    bad = back_office.post("/admin/proxy/scoperule/add/", {**data, "pattern": "a/../b"})
    assert bad.status_code == 200
    assert ScopeRule.objects.count() == before

    good = back_office.post("/admin/proxy/scoperule/add/", {**data, "pattern": "a/b/…"})
    assert good.status_code == 302
    assert ScopeRule.objects.filter(pattern="a/b/…").exists()
