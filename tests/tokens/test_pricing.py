"""Prices with dates: scheduled by staff or from a file, in effect from their moment on, history after it."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from bundles.models import Bundle
from bundles.services import purchase_bundle
from tests.money import api, staff_client, user_with
from tests.threads import run_at_once
from tokens.exceptions import (
    DurationNotSold,
    InvalidPriceList,
    PriceChangeExists,
    PriceChangeInPast,
    PriceChangeNotFound,
)
from tokens.models import AccessToken, PriceChange, TokenPrice
from tokens.price_lists import PriceList, plan_of, read_price_list
from tokens.services import (
    apply_price_list,
    cancel_price_change,
    list_price,
    purchase_token,
    refund_due,
    revoke_token,
    schedule_price,
)
from zenzefi.lib import clock

pytestmark = pytest.mark.django_db
ADMIN = "/admin/tokens/pricechange/"


@pytest.fixture
def at(monkeypatch):
    """Move the clock by which business rules go."""

    def move(moment: datetime) -> None:
        monkeypatch.setattr(clock, "now", lambda: moment)

    return move


def in_hours(hours: float) -> datetime:
    return clock.now() + timedelta(hours=hours)


def shown_price(hours: int = 24) -> str:
    [row] = [row for row in api().get("/api/v1/tokens/prices").json()["items"] if row["duration_hours"] == hours]
    return row["price"]


def test_a_price_holds_from_its_moment_on(at):
    moment = in_hours(5)
    schedule_price(duration_hours=24, price=Decimal("20.00"), effective_at=moment)
    assert (list_price(24), shown_price()) == (Decimal("18.00"), "18.00")
    at(moment - timedelta(microseconds=1))
    assert list_price(24) == Decimal("18.00")
    at(moment)
    assert (list_price(24), shown_price(), list_price(168)) == (Decimal("20.00"), "20.00", Decimal("100.00"))


def test_the_last_one_in_effect_counts_in_whatever_order_they_were_scheduled(at):
    start = clock.now()
    for hours, price in ((3, "23.00"), (1, "21.00"), (2, "22.00")):
        schedule_price(duration_hours=24, price=Decimal(price), effective_at=start + timedelta(hours=hours))
    prices = []
    for hours in range(5):
        at(start + timedelta(hours=hours))
        prices.append(str(list_price(24)))
    assert prices == ["18.00", "21.00", "22.00", "23.00", "23.00"]


def test_at_once():
    schedule_price(duration_hours=24, price=Decimal("19.00"))
    assert list_price(24) == Decimal("19.00")


def test_what_was_bought_keeps_its_price():
    user = user_with("100.00")
    before = purchase_token(owner=user, duration_hours=24).token
    schedule_price(duration_hours=24, price=Decimal("20.00"))
    after = purchase_token(owner=user, duration_hours=24)
    assert (after.token.list_price, after.token.paid, after.balance) == (
        Decimal("20.00"),
        Decimal("20.00"),
        Decimal("62.00"),
    )
    assert refund_due(before, clock.now()) == Decimal("18.00")
    assert revoke_token(token_id=before.id, actor=user, refund=True).refund_amount == Decimal("18.00")


def test_bundles_keep_their_prices_and_tokens_the_list_price_of_the_moment():
    schedule_price(duration_hours=24, price=Decimal("20.00"))
    pack = Bundle.objects.get(name="Starter Pack")
    assert pack.total_price == Decimal("81.00")
    bought = purchase_bundle(buyer=user_with("81.00"), bundle_id=pack.pk)
    assert {one.token.list_price for one in bought.tokens} == {Decimal("20.00")}
    staff = api(user_with(is_staff=True))
    new = {"name": "New", "token_count": 2, "duration_hours": 24, "discount_percent": "0"}
    assert staff.post("/api/v1/bundles", new, format="json").json()["total_price"] == "40.00"


def test_a_duration_that_is_switched_off_is_not_sold_at_any_price():
    TokenPrice.objects.filter(duration_hours=24).update(is_active=False)
    schedule_price(duration_hours=24, price=Decimal("20.00"))
    with pytest.raises(DurationNotSold):
        list_price(24)


def test_the_price_takes_one_query_however_many_changes_there_are():
    for hours in range(1, 6):
        schedule_price(duration_hours=24, price=Decimal(hours), effective_at=in_hours(hours))
    with CaptureQueriesContext(connection) as queries:
        list_price(24)
    assert len(queries) == 1


def test_what_cannot_be_scheduled():
    moment = in_hours(1)
    schedule_price(duration_hours=24, price=Decimal("20.00"), effective_at=moment)
    with pytest.raises(DurationNotSold):
        schedule_price(duration_hours=25, price=Decimal("1.00"), effective_at=moment)
    with pytest.raises(PriceChangeInPast):
        schedule_price(duration_hours=24, price=Decimal("1.00"), effective_at=in_hours(-1))
    with pytest.raises(PriceChangeExists):
        schedule_price(duration_hours=24, price=Decimal("1.00"), effective_at=moment)
    for price in ("0.00", "-1.00"):
        with pytest.raises(IntegrityError), transaction.atomic():
            schedule_price(duration_hours=24, price=Decimal(price), effective_at=in_hours(2))
    [change] = PriceChange.objects.all()
    assert change.price == Decimal("20.00")


def test_a_change_is_recorded_with_who_scheduled_it():
    staff = user_with(is_staff=True)
    change = schedule_price(duration_hours=24, price=Decimal("20.00"), effective_at=in_hours(1), actor=staff)
    cancel_price_change(change_id=change.pk, actor=staff)
    events = apps.get_model("notifications.OutboxEvent").objects.filter(event__startswith="price.").order_by("event")
    assert [(event.event, event.data["actor_id"], event.data["price"]) for event in events] == [
        ("price.cancelled", str(staff.pk), "20.00"),
        ("price.scheduled", str(staff.pk), "20.00"),
    ]


def test_only_what_is_not_in_effect_is_cancelled(at):
    staff = user_with(is_staff=True)
    first = schedule_price(duration_hours=24, price=Decimal("20.00"), effective_at=in_hours(1))
    cancel_price_change(change_id=first.pk, actor=staff)
    with pytest.raises(PriceChangeNotFound):
        cancel_price_change(change_id=first.pk, actor=staff)
    second = schedule_price(duration_hours=24, price=Decimal("21.00"))
    with pytest.raises(PriceChangeInPast):
        cancel_price_change(change_id=second.pk, actor=staff)
    assert list_price(24) == Decimal("21.00")


@pytest.mark.parametrize("statement", ["SET price = 1", "SET effective_at = now() + interval '1 day'", None])
def test_the_database_keeps_history(statement):
    schedule_price(duration_hours=24, price=Decimal("20.00"))
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"UPDATE tokens_pricechange {statement}" if statement else "DELETE FROM tokens_pricechange")
    assert PriceChange.objects.get().price == Decimal("20.00")


@pytest.mark.django_db(transaction=True)
def test_twenty_at_once_for_one_moment_schedule_one():
    moment = in_hours(1)
    outcomes = run_at_once(
        20, lambda number: schedule_price(duration_hours=24, price=Decimal(number + 1), effective_at=moment)
    )
    assert sum(isinstance(outcome, PriceChangeExists) for outcome in outcomes) == 19
    assert PriceChange.objects.count() == 1


# --- From a file


def plan_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def run(action: str, path: Path) -> str:
    out = io.StringIO()
    call_command("pricing", action, str(path), no_input=True, stdout=out)
    return out.getvalue()


@pytest.fixture
def last_month() -> Any:
    """Last month: three tokens of a day, one of a week, and a bundle; a token of a day this month and one before."""
    first = clock.now().astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    before = (first - timedelta(days=1)).replace(day=1)
    user = user_with("1000.00")
    moments = [before, first - timedelta(microseconds=1), first - timedelta(days=5), first]
    for moment in [*moments, before - timedelta(microseconds=1)]:
        token = purchase_token(owner=user, duration_hours=24).token
        AccessToken.objects.filter(pk=token.pk).update(created_at=moment)
    week = purchase_token(owner=user, duration_hours=168).token
    AccessToken.objects.filter(pk=week.pk).update(created_at=before)
    pack = purchase_bundle(buyer=user, bundle_id=Bundle.objects.get(name="Starter Pack").pk)
    AccessToken.objects.filter(purchase_source=pack.purchase.source).update(created_at=before)
    return user


def test_a_plan_shows_the_difference_and_last_months_sales_and_changes_nothing(last_month, tmp_path):
    text = run("plan", plan_file(tmp_path, 'prices:\n  24: 20.10\n  168: "95.00"\n  720: 300\n'))
    rows = [line.split() for line in text.splitlines()]
    assert rows[1:6] == [
        ["hours", "price", "new", "difference", "sold", "paid", "would", "be"],
        ["24", "18.00", "20.10", "+2.10", "3", "54.00", "60.30"],
        ["168", "100.00", "95.00", "-5.00", "1", "100.00", "95.00"],
        ["720", "300.00", "300.00", "unchanged", "0", "0.00", "0.00"],
        ["all", "4", "154.00", "155.30"],
    ]
    assert "Difference of that month: +1.30 ZNC." in text
    assert not PriceChange.objects.exists()
    assert list_price(24) == Decimal("18.00")


def test_a_list_is_applied_once(tmp_path, at):
    moment = in_hours(24).replace(microsecond=0)
    path = plan_file(tmp_path, f"effective_at: {moment.isoformat()}\nprices:\n  24: 20.10\n  168: 100\n")
    assert "Scheduled: 24 h: 20.10 ZNC" in run("apply", path)
    assert "nothing was changed" in run("apply", path)
    [change] = PriceChange.objects.all()
    assert (change.duration_id, change.price, change.effective_at) == (24, Decimal("20.10"), moment)
    assert list_price(24) == Decimal("18.00")
    at(moment)
    assert list_price(24) == Decimal("20.10")


def test_a_list_without_a_moment_holds_at_once(tmp_path):
    run("apply", plan_file(tmp_path, "prices: {1: 2}"))
    assert list_price(1) == Decimal("2.00")


@pytest.mark.parametrize("answer", ["no", "y", ""])
def test_without_a_yes_nothing_is_applied(tmp_path, monkeypatch, answer):
    monkeypatch.setattr("builtins.input", lambda _: answer)
    with pytest.raises(CommandError, match="Nothing was changed"):
        call_command("pricing", "apply", str(plan_file(tmp_path, "prices: {1: 2}")), stdout=io.StringIO())
    assert not PriceChange.objects.exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must have prices"),
        ("prices: {}", "must have prices"),
        ("prices: [1]", "must have prices"),
        ("- 1", "must have prices"),
        ("prices: {24: 18", "not YAML"),
        ("prices: {24: 0}", "not a price"),
        ("prices: {24: -1}", "not a price"),
        ("prices: {24: 1.005}", "not a price"),
        ("prices: {24: .nan}", "not a price"),
        ("prices: {24: 'NaN'}", "not a price"),
        ("prices: {24: cheap}", "not a price"),
        ("prices: {24: .inf}", "not a price"),
        ("prices: {24: 010}", "not a price"),
        ("prices: {24: 1:30}", "not a price"),
        ("prices: {24: yes}", "not a price"),
        ("prices: {24: null}", "not a price"),
        ("prices: {24: 100000000}", "not a price"),
        ("prices: {24: [1]}", "not a price"),
        ("prices: {24: 1, 24: 2}", "given twice"),
        ("prices: {24.5: 1}", "given twice or cannot be a name"),
        ("prices: {day: 1}", "not a duration"),
        ("prices: {-24: 1}", "not a duration"),
        ("prices: {24: 1}\nprice: 1", "not price"),
        ("prices: {24: 1}\neffective_at: 2099-01-01", "with its offset"),
        ("prices: {24: 1}\neffective_at: 2099-01-01T00:00:00", "with its offset"),
        ("prices: {24: 1}\neffective_at: soon", "with its offset"),
        ("a: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_a_file_that_is_no_price_list_says_what_is_wrong(tmp_path, text, problem):
    with pytest.raises(InvalidPriceList, match=problem):
        read_price_list(text)
    with pytest.raises(CommandError, match=problem):
        run("apply", plan_file(tmp_path, text))
    assert not PriceChange.objects.exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("prices: {24: 20, 25: 1}", "Not on the price list: 25 h"),
        ("prices: {24: 20}\neffective_at: 2001-01-01T00:00:00Z", "only change from now on"),
    ],
)
def test_a_list_that_cannot_be_applied_changes_nothing(tmp_path, text, problem):
    with pytest.raises(CommandError, match=problem):
        run("apply", plan_file(tmp_path, text))
    assert not PriceChange.objects.exists()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CommandError, match="cannot be read"):
        run("plan", tmp_path / "none.yaml")


def test_all_of_a_list_or_nothing():
    moment = in_hours(1)
    schedule_price(duration_hours=168, price=Decimal("90.00"), effective_at=moment)
    with pytest.raises(PriceChangeExists):
        apply_price_list(price_list=PriceList({24: Decimal("20.00"), 168: Decimal("95.00")}, moment))
    with pytest.raises(DurationNotSold):
        apply_price_list(price_list=PriceList({24: Decimal("20.00"), 25: Decimal("1.00")}, moment))
    assert list(PriceChange.objects.values_list("duration_id", flat=True)) == [168]


def test_a_plan_compares_with_the_price_of_its_moment():
    schedule_price(duration_hours=24, price=Decimal("25.00"), effective_at=in_hours(1))
    [now] = plan_of(PriceList({24: Decimal("20.00")})).lines
    [later] = plan_of(PriceList({24: Decimal("20.00")}, in_hours(2))).lines
    assert (now.difference, later.difference) == (Decimal("2.00"), Decimal("-5.00"))


@pytest.mark.django_db(transaction=True)
def test_a_list_applied_by_twenty_at_once_is_applied_once():
    price_list = PriceList({24: Decimal("20.00"), 168: Decimal("95.00")}, in_hours(1))
    outcomes = run_at_once(20, lambda _: apply_price_list(price_list=price_list))
    assert sorted(map(len, outcomes)) == [0] * 19 + [2]
    assert PriceChange.objects.count() == 2


# --- In the back office


@pytest.fixture
def staff() -> Any:
    return staff_client(user_with(is_staff=True, is_superuser=True))


def form(moment: datetime, price: str = "20.00") -> dict[str, Any]:
    entry = TokenPrice.objects.get(duration_hours=24)
    return {
        "duration": entry.duration_hours,
        "price": price,
        "effective_at_0": f"{moment:%Y-%m-%d}",
        "effective_at_1": f"{moment:%H:%M:%S}",
    }


def test_staff_schedule_and_cancel(staff):
    assert staff.post(f"{ADMIN}add/", form(in_hours(2))).status_code == 302
    [change] = PriceChange.objects.all()
    assert (change.price, change.scheduled_by is None) == (Decimal("20.00"), False)
    assert "20.00" in staff.get("/admin/tokens/tokenprice/").content.decode()
    assert staff.get(ADMIN).status_code == 200
    assert staff.post(f"{ADMIN}{change.pk}/change/", form(in_hours(3), "1.00")).status_code == 403
    assert staff.post(f"{ADMIN}{change.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not PriceChange.objects.exists()


@pytest.mark.parametrize(("hours", "price"), [(-1, "20.00"), (1, "0"), (1, "-1"), (1, "1.001"), (1, "x")])
def test_staff_cannot_schedule_what_is_wrong(staff, hours, price):
    assert staff.post(f"{ADMIN}add/", form(in_hours(hours), price)).status_code == 200
    assert not PriceChange.objects.exists()


def test_staff_cannot_take_history_away(staff):
    change = schedule_price(duration_hours=24, price=Decimal("20.00"))
    assert staff.post(f"{ADMIN}{change.pk}/delete/", {"post": "yes"}).status_code == 403
    staff.post(ADMIN, {"action": "delete_selected", "_selected_action": [str(change.pk)], "post": "yes"})
    assert PriceChange.objects.filter(pk=change.pk).exists()
