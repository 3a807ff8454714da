"""What customers were promised in figures, each told from the first top-up on."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from django.apps import apps

from bundles.services import purchase_bundle
from tests.ledger.world import drifts
from tests.money import activate_so_that, user_with
from tokens.exceptions import TokenAlreadyRevoked
from tokens.models import AccessToken, TokenPrice
from tokens.services import purchase_token, revoke_token
from wallet.models import ExchangeRate, Payment
from wallet.payments import services as payments
from wallet.payments.providers.base import DisputeState, ProviderState, Told
from wallet.selectors import balance_of
from wallet.services import SystemAccount, TransferKind, debit, open_account
from zenzefi.lib import clock

pytestmark = pytest.mark.django_db
RETURN_URL = "http://localhost:61000/paid"


@pytest.fixture(autouse=True)
def _time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = clock.now()
    monkeypatch.setattr(clock, "now", lambda: moment)


def standing(user: Any) -> str:
    balance = balance_of(user)
    return f"{balance.balance}, {balance.owed} owed" if balance.owed else str(balance.balance)


def revoke(token: AccessToken) -> Decimal:
    return revoke_token(token_id=token.id, actor=None, refund=True).refund_amount


def refunded(hours: int, seconds_left: int) -> str:
    token = purchase_token(owner=user_with("300.00"), duration_hours=hours).token
    activate_so_that(token, seconds_left=seconds_left)
    return str(revoke(token))


def revoked_twice() -> str:
    user = user_with("18.00")
    token = purchase_token(owner=user, duration_hours=24).token
    revoke(token)
    with pytest.raises(TokenAlreadyRevoked):
        revoke(token)
    return standing(user)


def starter_pack_revoked_unused() -> str:
    pack = apps.get_model("bundles.Bundle").objects.get(name="Starter Pack")
    bought = purchase_bundle(buyer=user_with("81.00"), bundle_id=pack.pk)
    return str(sum(revoke(one.token) for one in bought.tokens))


def first_purchase_brings(price: str) -> str:
    TokenPrice.objects.filter(duration_hours=24).update(price=Decimal(price))
    referrer = user_with()
    purchase_token(owner=user_with("300.00", referred_by=referrer), duration_hours=24)
    return standing(referrer)


def euros_buy(amount: str) -> str:
    """The rate changes between the agreement and the payment."""
    user = user_with()
    payment = payments.start_payment(user=user, amount=Decimal(amount), currency="EUR", return_url=RETURN_URL)
    ExchangeRate.objects.create(
        currency_id="EUR", znc_amount=Decimal(1), currency_amount=Decimal(1), effective_from=clock.now()
    )
    paid(payment)
    return standing(user)


def disputed(*outcomes: str) -> str:
    """A top-up of 1000.00 of which 950.00 are spent."""
    user = user_with()
    payment = payments.start_payment(user=user, amount_znc=Decimal("1000.00"), return_url=RETURN_URL)
    paid(payment)
    debit(
        account=open_account(user),
        counterparty=SystemAccount.REVENUE,
        amount=Decimal("950.00"),
        kind=TransferKind.ADJUSTMENT,
        source="test:spent",
    )
    for outcome in outcomes:
        dispute = DisputeState(id="dp_1", outcome=outcome, amount=payment.amount)
        state = ProviderState(told=Told.UNSAID, disputes=(dispute,))
        payments.apply_provider_state(payment_id=payment.pk, state=state)
    return standing(user)


def paid(payment: Payment) -> None:
    payments.settle_mock_payment(payment_id=payment.pk, succeed=True)


EXAMPLES: list[tuple[str, Callable[[], str], str]] = [
    ("24 h at 18.00, 43,224 s left", partial(refunded, 24, 43_224), "9.00"),
    ("24 h at 18.00, 43,272 s left", partial(refunded, 24, 43_272), "9.01"),
    ("30 d at 300.00, 1,699,200 s left", partial(refunded, 720, 1_699_200), "196.66"),
    ("7 d at 100.00, one second used", partial(refunded, 168, 168 * 3600 - 1), "99.99"),
    ("a second revocation", revoked_twice, "18.00"),
    ("Starter Pack revoked unused", starter_pack_revoked_unused, "81.00"),
    ("a first purchase of 100.00", partial(first_purchase_brings, "100.00"), "0.00"),
    ("a first purchase of 100.01", partial(first_purchase_brings, "100.01"), "10.00"),
    ("a first purchase of 300.00", partial(first_purchase_brings, "300.00"), "30.00"),
    ("25.00 EUR at 10.8375", partial(euros_buy, "25.00"), "270.93"),
    ("1000.00 topped up, 950.00 spent", disputed, "50.00"),
    ("and disputed", partial(disputed, "open"), "0.00, 950.00 owed"),
    ("and won", partial(disputed, "open", "won"), "50.00"),
    ("and lost", partial(disputed, "open", "lost"), "0.00, 950.00 owed"),
]


@pytest.mark.parametrize(("tell", "figure"), [row[1:] for row in EXAMPLES], ids=[row[0] for row in EXAMPLES])
def test_worked_examples(tell, figure):
    assert tell() == figure
    assert drifts() == []
