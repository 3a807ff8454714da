"""Every page of the back office, for a superuser and for staff who may only look."""

from __future__ import annotations

import re
import uuid
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.utils import flatten_fieldsets
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import connection
from django.db.models import DecimalField, Model
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from bundles.models import Bundle
from tests.api import Api
from tests.factories import StaffFactory, SuperuserFactory
from tests.money import activate_so_that, staff_client, user_with
from tokens.models import Scope, TokenPrice
from tokens.services import choose_tier, offer_gift, purchase_token, set_renewal_terms
from zenzefi.lib import clock

pytestmark = pytest.mark.django_db

MODELS = sorted(admin.site._registry, key=lambda model: model._meta.label)
OURS = [model for model in MODELS if not model.__module__.startswith("django.")]
LABELS = [model._meta.label for model in OURS]
#: What :func:`fill` makes no row of; the apps' own tests look at one.
_WITHOUT_ROWS = {
    "accounts.BlockedMailDomain",
    "bundles.BundlePurchase",
    "referrals.ReferralBonus",
    "tokens.PriceChange",
    "wallet.Payment",
    "wallet.PaymentEvent",
}
WITH_ROWS = [model for model in OURS if model._meta.label not in _WITHOUT_ROWS]
#: What is refused or, as nothing is found, an empty list; never a failure.
SEARCHES = [
    "\x00",
    "'",
    '"',
    "\\",
    "%",
    "_",
    "x" * 5000,
    "🔑",
    "\ud800",
    "1e400",
    "-1",
    " ",
    "a b c d e f",
    str(uuid.uuid4()),
]


FILTERS = [
    "p",
    "o",
    "e",
    "status",
    "state",
    "account",
    "owner",
    "event",
    "kind__exact",
    "scope__slug__exact",
    "user__id",
]


def page(model: type[Model], name: str, *arguments: Any) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{name}", args=arguments)


def fill(count: int) -> None:
    """Make at least ``count`` rows of everything that staff look at."""
    session = apps.get_model("proxy", "Session")
    rule = apps.get_model("proxy", "ScopeRule")
    target = apps.get_model("proxy", "UpstreamTarget")
    version = apps.get_model("proxy", "ScopeVersion")
    outage = apps.get_model("proxy", "UpstreamOutage")
    for _ in range(count):
        user = user_with("100.00")
        Api(user)
        offer_gift(token_id=purchase_token(owner=user, duration_hours=24).token.pk, giver=user)
        token = purchase_token(owner=user, duration_hours=24).token
        activate_so_that(token, seconds_left=3600)
        set_renewal_terms(user=user, enabled=True, duration_hours=24, scope="full")
        choose_tier(user=user, tier="premium")
        mark = uuid.uuid4().hex[:8]
        scope = Scope.objects.create(slug=f"scope-{mark}", description="Certificates")
        rule.objects.create(scope=scope, pattern=f"certificates/{mark}")
        version.objects.create(scope=scope, number=1, rules=[], reason="Certificates", created_by=user)
        target.objects.create(name=f"server-{mark}", url=f"https://{mark}.invalid").scopes.add(scope)
        outage.objects.create(targets=[mark], ended_at=clock.now())
        TokenPrice.objects.create(duration_hours=1000 + TokenPrice.objects.count(), price="7.00")
        bundle = Bundle.objects.order_by("pk").first()
        assert bundle is not None
        bundle.pk, bundle.name, bundle._state.adding = uuid.uuid4(), f"Bundle {mark}", True
        bundle.save()
        session.objects.create(
            token=token,
            user=user,
            device_id=f"device-{mark}",
            client_address="198.51.100.7",
            started_at=clock.now() - timedelta(minutes=5),
            last_activity_at=clock.now(),
        )
        apps.get_model("proxy", "TokenLimits").objects.create(token=token, seats=2)
        apps.get_model("proxy", "TierLimits").objects.get_or_create(tier_id="free")
        apps.get_model("proxy", "TokenUsage").objects.create(token=token, day=clock.now().date(), requests=5)


@pytest.fixture
def office() -> Client:
    return staff_client(SuperuserFactory())


@pytest.fixture
def viewer() -> Client:
    """Staff with every permission to look, and none other."""
    staff = StaffFactory()
    staff.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    return staff_client(staff)


def test_the_models_of_every_app_are_there():
    assert {
        "accounts.User",
        "wallet.Account",
        "wallet.Transfer",
        "tokens.AccessToken",
        "bundles.Bundle",
        "proxy.Session",
        "notifications.OutboxEvent",
    } <= set(LABELS)


@pytest.mark.parametrize("model", WITH_ROWS, ids=lambda model: model._meta.label)
@pytest.mark.parametrize("who", ["office", "viewer"])
def test_lists_and_details_are_shown(request, who, model):
    fill(2)
    client = request.getfixturevalue(who)
    row = model._default_manager.order_by("pk").last()
    assert row is not None, "the page was not tried with a row"

    listed = client.get(page(model, "changelist"))
    detail = client.get(page(model, "change", row.pk))

    assert (listed.status_code, detail.status_code) == (200, 200)
    assert str(row.pk) in listed.content.decode()
    assert client.get(page(model, "history", row.pk)).status_code == 200


def test_lists_take_the_same_queries_for_many_rows(office):
    def queries() -> dict[str, int]:
        counts = {}
        for model in OURS:
            with CaptureQueriesContext(connection) as captured:
                assert office.get(page(model, "changelist")).status_code == 200
            counts[model._meta.label] = len(captured)
        return counts

    fill(3)
    # The first look at a page may ask what is remembered later.
    queries()
    few = queries()
    fill(27)

    assert queries() == few


@pytest.mark.parametrize("model", OURS, ids=LABELS)
def test_no_search_fails(office, model):
    fill(1)
    queries = [("q", text) for text in SEARCHES]
    queries += [(name, text) for name in FILTERS for text in ("\x00", "9" * 400)]
    for name, text in queries:
        query = f"{name}={quote(text, errors='surrogatepass')}"
        response = office.get(f"{page(model, 'changelist')}?{query}", follow=True)
        assert response.status_code in {200, 400}, query[:60]


@pytest.mark.parametrize("model", OURS, ids=LABELS)
@pytest.mark.parametrize("key", ["%00", "x", "1", "-1", "9" * 400, "%ED%A0%80", "00000000-0000-4000-8000-000000000000"])
def test_a_row_that_is_not_there(office, model, key):
    url = page(model, "changelist")
    for kind in ("change", "history", "delete"):
        response = office.get(f"{url}{key}/{kind}/", follow=True)
        assert response.status_code in {200, 400, 403, 404}


@pytest.mark.parametrize("model", WITH_ROWS, ids=lambda model: model._meta.label)
def test_whoever_may_only_look_changes_nothing(viewer, model):
    fill(1)
    row = model._default_manager.order_by("pk").last()
    assert row is not None
    before = list(model._default_manager.order_by("pk").values())
    actions = admin.site._registry[model].get_actions(request_of(SuperuserFactory()))
    before = list(model._default_manager.order_by("pk").values())

    assert viewer.post(page(model, "change", row.pk), {}).status_code == 403
    assert viewer.get(page(model, "add")).status_code == 403
    assert viewer.post(page(model, "delete", row.pk), {"post": "yes"}).status_code == 403
    for name in actions:
        data = {"action": name, "_selected_action": [str(row.pk)], "confirm": "1", "post": "yes", "reason": "x"}
        viewer.post(page(model, "changelist"), data)
    assert not re.search(r'<select name="action"', viewer.get(page(model, "changelist")).content.decode())
    assert list(model._default_manager.order_by("pk").values()) == before


def request_of(user: Any) -> Any:
    request = RequestFactory().get("/admin/")
    request.user = user
    return request


@pytest.mark.parametrize("label", ["wallet.Account", "wallet.Transfer", "tokens.AccessToken"])
def test_not_even_a_superuser_can_write_money(label):
    model = apps.get_model(label)
    model_admin = admin.site._registry[model]
    request = request_of(SuperuserFactory())
    money = {field.name for field in model._meta.get_fields() if isinstance(field, DecimalField)}

    assert money
    assert not model_admin.has_change_permission(request)
    assert not model_admin.has_add_permission(request)
    assert not model_admin.has_delete_permission(request)


def test_no_form_of_a_user_touches_money_or_shows_a_hash(office):
    fill(1)
    user = get_user_model().objects.exclude(is_superuser=True).get()
    shown = flatten_fieldsets(admin.site._registry[get_user_model()].get_fieldsets(request_of(user), user))

    assert not {"balance", "owed", "password"} & set(shown)
    assert user.password not in office.get(page(get_user_model(), "change", user.pk)).content.decode()


@pytest.mark.parametrize("model", OURS, ids=LABELS)
def test_a_user_who_is_not_staff_sees_nothing(model):
    response = staff_client(user_with()).get(page(model, "changelist"))

    assert response.status_code == 302
    assert response["Location"].startswith("/admin/login/")
