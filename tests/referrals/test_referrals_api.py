"""GET /users/me/referrals."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from referrals.selectors import masked
from tests.money import api, user_with
from tokens.services import purchase_token, revoke_token

pytestmark = pytest.mark.django_db
URL = "/api/v1/users/me/referrals"


def get(user: Any, **query: Any) -> dict[str, Any]:
    answer = api(user).get(URL, query)
    assert answer.status_code == 200
    return answer.json()


def referee(referrer: Any, username: str, balance: str = "1000.00") -> Any:
    user = user_with(balance, referred_by=referrer)
    user.username = username
    user.save(update_fields=["username"])
    return user


def test_nobody_referred_yet(settings):
    settings.FRONTEND_URL = "https://app.example.com/"
    user = user_with()
    assert get(user) == {
        "referral_code": user.referral_code,
        "referral_link": f"https://app.example.com/register?ref={user.referral_code}",
        "total_referrals": 0,
        "qualifying_referrals": 0,
        "total_bonus_earned": "0.00",
        "referred_users": [],
    }


def test_referees_and_what_they_brought():
    user = user_with()
    refunded, kept, none = (referee(user, name) for name in ("refunded-one", "alexander", "bob"))
    referee(user_with(), "somebody-elses")
    purchase_token(owner=kept, duration_hours=720)
    token = purchase_token(owner=refunded, duration_hours=720).token
    revoke_token(token_id=token.id, actor=None, refund=True)
    answer = get(user)
    assert (answer["total_referrals"], answer["qualifying_referrals"], answer["total_bonus_earned"]) == (3, 2, "30.00")
    assert [(row["id"], row["username"], row["has_made_qualifying_purchase"]) for row in answer["referred_users"]] == [
        (str(none.pk), "b***", False),
        (str(kept.pk), "a***r", True),
        (str(refunded.pk), "r***e", True),
    ]
    assert set(answer["referred_users"][0]) == {"id", "username", "created_at", "has_made_qualifying_purchase"}
    text = str(answer)
    assert "@" not in text
    assert not any(name in text for name in ("alexander", "refunded-one", "bob"))


def test_the_list_is_cut_by_limit_and_offset():
    user = user_with()
    for number in range(3):
        referee(user, f"referee-{number}", "0.00")
    first, second = get(user, limit=2), get(user, limit=2, offset=2)
    assert [len(page["referred_users"]) for page in (first, second)] == [2, 1]
    assert first["total_referrals"] == second["total_referrals"] == 3
    assert api(user).get(URL, {"limit": "0"}).status_code == 400
    assert api(user).get(URL, {"offset": "-1"}).status_code == 400


def test_it_takes_a_fixed_number_of_queries():
    user = user_with()
    counts = set()
    for number in range(3):
        purchase_token(owner=referee(user, f"referee-{number}"), duration_hours=720)
        with CaptureQueriesContext(connection) as queries:
            get(user)
        counts.add(len(queries))
    assert counts == {4}


def test_only_for_who_is_signed_in():
    assert api().get(URL).status_code == 401


@pytest.mark.parametrize(
    ("username", "shown"), [("bob", "b***"), ("anna", "a***"), ("alice", "a***e"), ("Ёжик-в-тумане", "Ё***е")]
)
def test_masking(username, shown):
    assert masked(username) == shown


def test_a_bonus_in_cents():
    user = user_with()
    from tokens.models import TokenPrice

    TokenPrice.objects.filter(duration_hours=24).update(price=Decimal("100.19"))
    purchase_token(owner=referee(user, "somebody"), duration_hours=24)
    assert get(user)["total_bonus_earned"] == "10.01"
