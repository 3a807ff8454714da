"""The gateway's routes under a server that cannot carry it, and what the back office shows of it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from proxy.models import ScopeRule, Session
from tests.money import token_of_new_user, user_with


@pytest.mark.parametrize("method", ["get", "post", "put", "patch", "delete", "head", "options"])
@pytest.mark.parametrize("path", ["certificates/filter", "", "a/b/?q=1", "status"])
def test_without_the_data_plane_the_answer_says_how_to_start_it(client: Client, method: str, path: str):
    response = getattr(client, method)(f"/api/v1/proxy/{path}")

    assert response.status_code == 501
    if method != "head":
        assert response.json()["code"] == "gateway_not_served"
        assert "make run" in response.json()["detail"]


def test_the_schema_describes_the_gateway(client: Client):
    paths = client.get("/openapi.json").json()["paths"]

    assert set(paths["/api/v1/proxy/{path}"]) == {"get", "post", "put", "patch", "delete"}
    relayed = paths["/api/v1/proxy/{path}"]["post"]
    assert {"X-Access-Token", "X-Device-ID"} <= {parameter["name"] for parameter in relayed["parameters"]}
    assert {"400", "401", "403", "409", "429", "502", "503", "504"} <= set(relayed["responses"])
    assert "/api/v1/proxy/status" in paths


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
