"""POST, PATCH and DELETE of bundles by staff: prices that follow, and prices set by hand with a reason."""

from __future__ import annotations

import uuid
from decimal import Decimal
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import Permission
from django.db import IntegrityError, transaction

from bundles.models import Bundle
from bundles.services import save_edited_bundle
from tests.money import api, staff_client, user_with
from tokens.models import Scope, TokenPrice

pytestmark = pytest.mark.django_db
URL = "/api/v1/bundles"
NEW = {"name": "Week Pack", "token_count": 7, "duration_hours": 24, "discount_percent": "12.5"}


@pytest.fixture
def staff() -> Any:
    return api(user_with(is_staff=True))


def starter() -> Bundle:
    return Bundle.objects.get(name="Starter Pack")


def patch(staff: Any, body: dict[str, Any], bundle: Bundle | None = None) -> Any:
    return staff.patch(f"{URL}/{(bundle or starter()).pk}", body, format="json")


def events(name: str) -> list[Any]:
    return list(apps.get_model("notifications.OutboxEvent").objects.filter(event=name))


def test_a_bundle_is_priced_from_the_list(staff):
    answer = staff.post(URL, NEW, format="json")
    assert answer.status_code == 201
    body = answer.json()
    # 7 × 18.00 = 126.00; 12.5 % of it is 15.75.
    assert {name: body[name] for name in body if name not in {"id", "created_at", "updated_at"}} == {
        "name": "Week Pack",
        "description": "",
        "token_count": 7,
        "duration_hours": 24,
        "scope": "full",
        "discount_percent": "12.50",
        "base_price": "126.00",
        "total_price": "110.25",
        "savings": "15.75",
        "price_per_token": "15.75",
        "is_active": True,
        "list_price": "18.00",
        "override_reason": "",
    }
    [event] = events("bundle.created")
    assert event.data["bundle_id"] == body["id"]
    assert api().get(f"{URL}/{body['id']}").json()["total_price"] == "110.25"


@pytest.mark.parametrize(
    ("price", "discount", "total"),
    # Half a cent of discount rounds up, as in the database: 0.05 × 10 % is 0.005.
    [("0.05", "10", "0.04"), ("0.01", "50", None), ("33.33", "33.33", "22.22"), ("18.00", "0", "18.00")],
)
def test_the_discount_is_rounded_as_the_database_does(staff, price, discount, total):
    TokenPrice.objects.filter(duration_hours=24).update(price=Decimal(price))
    answer = staff.post(URL, {**NEW, "token_count": 1, "discount_percent": discount}, format="json")
    if total is None:
        assert (answer.status_code, answer.json()["code"]) == (400, "price_out_of_range")
    else:
        assert (answer.status_code, answer.json()["total_price"]) == (201, total)


@pytest.mark.parametrize("prices", [{"base_price": "130.00"}, {"total_price": "99.00"}])
def test_prices_set_by_hand_need_a_reason_which_is_kept(staff, prices):
    answer = staff.post(URL, {**NEW, **prices}, format="json")
    assert (answer.status_code, answer.json()["code"]) == (400, "reason_required")
    assert Bundle.objects.count() == 7
    answer = staff.post(URL, {**NEW, **prices, "override_reason": "Launch week"}, format="json")
    assert answer.status_code == 201
    body = answer.json()
    assert {name: body[name] for name in prices} == prices
    assert body["override_reason"] == "Launch week"
    assert events("bundle.created")[0].data["reason"] == "Launch week"
    assert "override_reason" not in api().get(f"{URL}/{body['id']}").json()


def test_a_reason_without_need_is_not_kept(staff):
    body = staff.post(URL, {**NEW, "total_price": "110.25", "override_reason": "x"}, format="json").json()
    assert body["override_reason"] == ""


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": None}, "name"),
        ({"token_count": 0}, "token_count"),
        ({"token_count": 501}, "token_count"),
        ({"token_count": -1}, "token_count"),
        ({"token_count": 1.5}, "token_count"),
        ({"token_count": True}, "token_count"),
        ({"duration_hours": 0}, "duration_hours"),
        ({"discount_percent": "100"}, "discount_percent"),
        ({"discount_percent": "-1"}, "discount_percent"),
        ({"discount_percent": "NaN"}, "discount_percent"),
        ({"discount_percent": "1.001"}, "discount_percent"),
        ({"total_price": "0"}, "total_price"),
        ({"total_price": "1e3"}, "total_price"),
        ({"base_price": "-1.00"}, "base_price"),
        ({"total_price": "126.01", "override_reason": "x"}, "total_price"),
        ({"total_price": "0.06", "override_reason": "x"}, "total_price"),
        ({"base_price": "99999999.99", "token_count": 2, "total_price": "0.01", "override_reason": "x"}, "total_price"),
        ({"is_active": "perhaps"}, "is_active"),
    ],
    ids=str,
)
def test_what_cannot_be_a_bundle_is_refused_by_field(staff, change, field):
    answer = staff.post(URL, {**NEW, **change}, format="json")
    assert answer.status_code == 400
    assert list(answer.json()["errors"]) == [field]
    assert Bundle.objects.count() == 7


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"duration_hours": 25}, 400, "duration_not_sold"),
        ({"scope": "nothing"}, 400, "scope_not_sold"),
        ({"name": "Starter Pack"}, 409, "bundle_name_taken"),
    ],
)
def test_what_is_not_sold_or_taken_is_refused(staff, change, status, code):
    answer = staff.post(URL, {**NEW, **change}, format="json")
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert Bundle.objects.count() == 7


def test_another_discount_takes_the_total_from_the_base(staff):
    TokenPrice.objects.filter(duration_hours=24).update(price=Decimal("20.00"))
    body = patch(staff, {"discount_percent": "20"}).json()
    assert (body["base_price"], body["total_price"], body["list_price"]) == ("90.00", "72.00", "18.00")


@pytest.mark.parametrize(
    ("change", "prices"),
    [
        ({"token_count": 6}, ("120.00", "108.00", "20.00")),
        ({"duration_hours": 168}, ("500.00", "450.00", "100.00")),
        ({"token_count": 6, "discount_percent": "0"}, ("120.00", "120.00", "20.00")),
        ({"token_count": 5}, ("90.00", "81.00", "18.00")),
        ({"description": "Same price"}, ("90.00", "81.00", "18.00")),
        ({"scope": "certificates_only"}, ("90.00", "81.00", "18.00")),
        ({}, ("90.00", "81.00", "18.00")),
    ],
    ids=str,
)
def test_another_number_or_duration_is_priced_from_today(staff, change, prices):
    TokenPrice.objects.filter(duration_hours=24).update(price=Decimal("20.00"))
    body = patch(staff, change).json()
    assert (body["base_price"], body["total_price"], body["list_price"]) == prices


def test_a_price_set_by_hand_stays_with_its_reason_until_it_is_priced_anew(staff):
    body = patch(staff, {"total_price": "70.00", "override_reason": "Autumn"}).json()
    assert (body["total_price"], body["override_reason"]) == ("70.00", "Autumn")
    body = patch(staff, {"description": "Still"}).json()
    assert (body["total_price"], body["override_reason"]) == ("70.00", "Autumn")
    answer = patch(staff, {"total_price": "60.00"})
    assert (answer.status_code, answer.json()["code"]) == (400, "reason_required")
    assert starter().total_price == Decimal("70.00")
    body = patch(staff, {"discount_percent": "20"}).json()
    assert (body["total_price"], body["override_reason"]) == ("72.00", "")
    assert [event.data["reason"] for event in events("bundle.changed")].count("Autumn") == 2


def test_another_base_takes_its_discount_and_needs_its_own_reason(staff):
    assert patch(staff, {"base_price": "100.00"}).json()["code"] == "reason_required"
    body = patch(staff, {"base_price": "100.00", "override_reason": "Support included"}).json()
    assert (body["base_price"], body["total_price"], body["list_price"]) == ("100.00", "90.00", "18.00")
    # A discount on top keeps the base, and the reason it was set for.
    body = patch(staff, {"discount_percent": "50"}).json()
    assert (body["base_price"], body["total_price"], body["override_reason"]) == (
        "100.00",
        "50.00",
        "Support included",
    )
    body = patch(staff, {"base_price": "90.00"}).json()
    assert (body["total_price"], body["override_reason"]) == ("45.00", "")


def test_a_change_is_recorded_and_nothing_changed_is_not(staff):
    patch(staff, {"description": "New"})
    patch(staff, {"description": "New"})
    [event] = events("bundle.changed")
    assert event.data["changes"] == {"description": ["Five one-day tokens to get going.", "New"]}


def test_a_name_that_is_taken(staff):
    answer = patch(staff, {"name": "Team Pack"})
    assert (answer.status_code, answer.json()["code"]) == (409, "bundle_name_taken")
    assert starter()


def test_switched_off_and_on_again(staff):
    bundle = starter()
    for _ in range(2):
        assert staff.delete(f"{URL}/{bundle.pk}").status_code == 204
    bundle.refresh_from_db()
    assert not bundle.is_active
    assert patch(staff, {"is_active": True}, bundle).json()["is_active"] is True


def test_switching_off_works_when_the_scope_or_the_duration_is_not_sold_any_more(staff):
    Scope.objects.update(is_active=False)
    TokenPrice.objects.update(is_active=False)
    assert staff.delete(f"{URL}/{starter().pk}").status_code == 204
    assert not starter().is_active


@pytest.mark.parametrize("method", ["patch", "delete"])
def test_one_that_is_not_there(staff, method):
    assert getattr(staff, method)(f"{URL}/{uuid.UUID(int=0)}", {}, format="json").status_code == 404


@pytest.mark.parametrize("signed_in", [True, False])
def test_only_staff_change_bundles(signed_in):
    client = api(user_with() if signed_in else None)
    before = list(Bundle.objects.values())
    bundle = starter()
    for method, path in (("post", URL), ("patch", f"{URL}/{bundle.pk}"), ("delete", f"{URL}/{bundle.pk}")):
        answer = getattr(client, method)(path, NEW, format="json")
        assert answer.status_code == (403 if signed_in else 401)
    assert list(Bundle.objects.values()) == before


@pytest.mark.parametrize(
    "change",
    [
        {"base_price": Decimal("100.00"), "total_price": Decimal("90.00")},
        {"list_price": Decimal("17.00")},
        {"total_price": Decimal("91.00"), "override_reason": "x"},
        {"token_count": 501, "override_reason": "x"},
    ],
    ids=str,
)
def test_the_database_keeps_prices_consistent(change):
    with pytest.raises(IntegrityError), transaction.atomic():
        Bundle.objects.filter(name="Starter Pack").update(**change)


FORM = {
    "name": "Week Pack",
    "description": "",
    "token_count": 7,
    "duration_hours": 24,
    "scope": "full",
    "discount_percent": "10",
    "base_price": "",
    "total_price": "",
    "override_reason": "",
    "is_active": "on",
}


def test_the_back_office_prices_what_is_left_empty_and_asks_for_a_reason():
    staff = staff_client(user_with(is_staff=True, is_superuser=True))
    add = "/admin/bundles/bundle/add/"
    assert staff.post(add, {**FORM, "total_price": "1.00"}).status_code == 200
    assert staff.post(add, {**FORM, "duration_hours": 25}).status_code == 200
    assert not Bundle.objects.filter(name="Week Pack").exists()
    assert staff.post(add, FORM).status_code == 302
    bundle = Bundle.objects.get(name="Week Pack")
    assert (bundle.list_price, bundle.base_price, bundle.total_price) == (
        Decimal("18.00"),
        Decimal("126.00"),
        Decimal("113.40"),
    )
    change = f"/admin/bundles/bundle/{bundle.pk}/change/"
    by_hand = {**FORM, "total_price": "100.00", "override_reason": "Autumn"}
    assert staff.post(change, by_hand).status_code == 302
    bundle.refresh_from_db()
    assert (bundle.total_price, bundle.override_reason) == (Decimal("100.00"), "Autumn")
    assert [len(events(name)) for name in ("bundle.created", "bundle.changed")] == [1, 1]
    assert staff.post(f"/admin/bundles/bundle/{bundle.pk}/delete/", {"post": "yes"}).status_code == 403


def test_a_form_that_is_wrong_for_another_reason_prices_nothing():
    staff = staff_client(user_with(is_staff=True, is_superuser=True))
    for wrong in ({"name": ""}, {"scope": "none"}, {"token_count": "x"}):
        page = staff.post("/admin/bundles/bundle/add/", {**FORM, **wrong})
        assert page.status_code == 200
        assert page.context["errors"]
    assert not Bundle.objects.filter(name="Week Pack").exists()


def test_who_may_only_look_at_bundles_changes_none():
    looking = user_with(is_staff=True)
    looking.user_permissions.add(Permission.objects.get(codename="view_bundle"))
    path = f"/admin/bundles/bundle/{starter().pk}/change/"
    assert b"Starter Pack" in staff_client(looking).get(path).content
    assert staff_client(looking).post(path, FORM).status_code == 403
    assert starter()


def test_prices_that_only_the_database_refuses_are_not_taken_for_a_name():
    bundle = starter()
    bundle.total_price = Decimal("1.00")
    with pytest.raises(IntegrityError):
        save_edited_bundle(bundle=bundle, actor=user_with(is_staff=True))
    assert starter().total_price == Decimal("81.00")
