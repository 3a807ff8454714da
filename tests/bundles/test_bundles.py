"""GET /bundles and what a bundle may be."""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from bundles.models import Bundle
from tests.money import api, staff_client, user_with

pytestmark = pytest.mark.django_db
URL = "/api/v1/bundles"

# name, tokens, hours, scope, discount, base, total, savings, per token, for sale
SEVEN = [
    ("Starter Pack", 5, 24, "full", "10.00", "90.00", "81.00", "9.00", "16.20", True),
    ("Certificates Bundle", 10, 24, "certificates_only", "15.00", "180.00", "153.00", "27.00", "15.30", False),
    ("Pro Bundle", 10, 24, "full", "15.00", "180.00", "153.00", "27.00", "15.30", False),
    ("Developer Pack", 10, 168, "full", "15.00", "1000.00", "850.00", "150.00", "85.00", True),
    ("Ultimate Package", 20, 168, "full", "20.00", "2000.00", "1600.00", "400.00", "80.00", False),
    ("Team Pack", 25, 168, "full", "20.00", "2500.00", "2000.00", "500.00", "80.00", True),
    ("Enterprise Pack", 50, 720, "full", "25.00", "15000.00", "11250.00", "3750.00", "225.00", True),
]
FIELDS = (
    "name",
    "token_count",
    "duration_hours",
    "scope",
    "discount_percent",
    "base_price",
    "total_price",
    "savings",
    "price_per_token",
    "is_active",
)


def rows(page: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [tuple(item[name] for name in FIELDS) for item in page["items"]]


def test_those_for_sale_cheapest_first_for_anyone():
    page = api().get(URL).json()
    assert rows(page) == [row for row in SEVEN if row[-1]]
    assert page["total"] == 4
    assert set(page["items"][0]) == {*FIELDS, "id", "description", "created_at", "updated_at"}


def test_all_seven():
    assert rows(api().get(URL, {"active_only": "false"}).json()) == SEVEN


@pytest.mark.parametrize("path", [URL, f"{URL}/"])
def test_with_and_without_the_slash(path):
    assert api().get(path).status_code == 200


def test_one_switched_off_or_not():
    for bundle in Bundle.objects.all():
        answer = api().get(f"{URL}/{bundle.pk}")
        assert (answer.status_code, answer.json()["name"]) == (200, str(bundle))


@pytest.mark.parametrize("bundle_id", [uuid.UUID(int=0), "x", "1"])
def test_one_that_is_not_there(bundle_id):
    answer = api().get(f"{URL}/{bundle_id}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_malformed_filters_are_refused_by_name():
    assert list(api().get(URL, {"active_only": "x"}).json()["errors"]) == ["active_only"]


def test_the_list_takes_a_fixed_number_of_queries():
    with CaptureQueriesContext(connection) as queries:
        api().get(URL, {"active_only": "false"})
    assert len(queries) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"total_price": "80.99"},
        {"base_price": "91.00"},
        {"discount_percent": "11"},
        {"discount_percent": "100", "total_price": "0.00"},
        {"discount_percent": "-1", "total_price": "90.90"},
        {"token_count": 0},
        {"duration_hours": 0},
        {"base_price": "0.04", "discount_percent": "0", "total_price": "0.04"},
        {"name": "Team Pack"},
    ],
    ids=str,
)
def test_what_cannot_be_a_bundle(changes):
    before = list(Bundle.objects.values())
    with pytest.raises(IntegrityError), transaction.atomic():
        Bundle.objects.filter(name="Starter Pack").update(**changes)
    assert list(Bundle.objects.values()) == before


def test_the_price_of_one_is_cut_to_the_cent():
    bundle = Bundle(token_count=3, total_price=Decimal("50.00"), base_price=Decimal("54.00"))
    assert (bundle.price_per_token, bundle.savings) == (Decimal("16.66"), Decimal("4.00"))


def test_the_form_says_when_the_total_is_wrong():
    bundle = Bundle.objects.get(name="Starter Pack")
    bundle.total_price = Decimal("80.00")
    with pytest.raises(ValidationError, match="base price less the discount"):
        bundle.full_clean()


def test_staff_edit_bundles():
    staff = staff_client(user_with(is_staff=True, is_superuser=True))
    bundle = Bundle.objects.get(name="Starter Pack")
    assert staff.get("/admin/bundles/bundle/").status_code == 200
    form = {
        "name": bundle.name,
        "description": "",
        "token_count": 5,
        "duration_hours": 24,
        "scope": "full",
        "discount_percent": "20",
        "base_price": "90.00",
        "total_price": "72.00",
    }
    assert staff.post(f"/admin/bundles/bundle/{bundle.pk}/change/", form).status_code == 302
    bundle.refresh_from_db()
    assert (bundle.total_price, bundle.is_active) == (Decimal("72.00"), False)
    assert staff.post(f"/admin/bundles/bundle/{bundle.pk}/change/", {**form, "total_price": "1.00"}).status_code == 200
    bundle.refresh_from_db()
    assert bundle.total_price == Decimal("72.00")
