"""Rules of top-ups through payment providers, whose messages come late, twice and in any order."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any

from django.apps import apps
from django.test import Client
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from tests.ledger.model import FINALITY, Facts, Payment, Person, Refused
from tests.ledger.world import WHICH, World, code_of, decimal, money
from tests.wallet.providers import StripeServer, stripe_event
from wallet.payments import services
from wallet.payments.providers import mock

RETURN_URL = "http://localhost:61000/paid"
PAGE_LIFETIME_HOURS = 24
ATTEMPTS = 20
#: Whether a message arrives at once; it may be delivered later in any case, and again.
ARRIVES = st.booleans()


@dataclass(eq=False)
class News:
    """A message of a provider: sent once, delivered as often as the machine likes."""

    payment: Payment
    provider: str
    body: bytes
    headers: dict[str, str]
    facts: Facts
    done: bool = False
    attempts: int = 0
    #: Stored, not carried out, and not given up.
    waits: bool = False


@dataclass(eq=False)
class Bank:
    """What Stripe knows of a payment, whether it was told or not. Minor units."""

    session: str
    paid: bool = False
    refunded: int = 0
    disputes: dict[str, tuple[str, int]] = field(default_factory=dict)

    def facts(self, payment: Payment) -> Facts:
        if not self.paid:
            return Facts("pending")
        disputes = tuple((name, *state) for name, state in self.disputes.items())
        return Facts("succeeded", payment.amount, self.refunded, disputes)


THEN: list[tuple[str, ...]] = [
    ("paid", "refunds cross"),
    ("paid", "disputes cross"),
    ("paid", "spent", "open"),
    ("paid", "open", "won"),
    ("paid", "refunded"),
    ("paid",),
    ("canceled",),
    (),
]


@dataclass(frozen=True)
class Walk:
    """What usually happens to a payment."""

    who: int
    provider: str
    currency: str
    znc: bool
    amount: int
    then: tuple[str, ...]


WALK = st.builds(
    Walk,
    who=WHICH,
    provider=st.sampled_from(["mock", "stripe"]),
    currency=st.sampled_from(["RUB", "USD", "EUR"]),
    znc=st.booleans(),
    amount=st.one_of(st.integers(1, 200_000), st.just(2_500)),
    then=st.sampled_from(THEN),
)


class Paying(World):
    """People pay; providers tell, take back, dispute; staff refund; rates change."""

    stripe: StripeServer
    #: Speaks for the providers, who do not sign in.
    providers: Client

    def opened(self) -> None:
        super().opened()
        self.news: list[News] = []
        self.banks: dict[Payment, Bank] = {}

    @rule(walk=WALK)
    def someone_starts_a_payment(self, walk: Walk) -> None:
        self.pay(walk)

    @initialize(walk=WALK)
    def somebody_has_paid(self, walk: Walk) -> None:
        """In each example, so that few of them see every outcome."""
        self.pay(self.first_of(walk, THEN))

    def pay(self, walk: Walk) -> None:
        provider, currency, znc, amount = walk.provider, walk.currency, walk.znc, walk.amount
        # Elena's account is almost full: what of her payments is polled first would decide which one fits in.
        people = [person for person in self.model.people if person.active and person.name != "elena"]
        if not people:
            return
        person = people[walk.who % len(people)]
        body = {"return_url": RETURN_URL, "provider": provider, "currency": currency}
        field = "amount_znc" if znc else "amount"
        started = self.post(
            person,
            "currency/purchase",
            {**body, field: money(amount)},
            lambda: self.model.agree(
                person, provider, currency, znc=amount if znc else None, amount=None if znc else amount
            ),
            other=("currency/purchase", {**body, field: money(amount + 1)}),
        )
        if started:
            payment, answer = started
            assert (answer["amount_znc"], answer["amount"]) == (money(payment.cents), money(payment.amount))
            self.ids[payment] = uuid.UUID(answer["payment_id"])
            if provider == "stripe":
                stored = self._stored(payment)
                self.banks[payment] = Bank(stored.provider_payment_id)
            for step in walk.then:
                self.goes_on(payment, step)

    def goes_on(self, payment: Payment, step: str) -> None:
        """Take a usual walk a step further; its messages arrive at once."""
        self.did(step)
        if step == "paid":
            self.paid(payment, arrives=True)
        elif step == "canceled":
            self.canceled(payment, arrives=True)
        elif step == "refunded":
            self.paid_back(payment, Fraction(2, 3), arrives=True)
        elif step == "refunds cross":
            older = len(self.news)
            self.paid_back(payment, Fraction(1, 3), arrives=False)
            self.paid_back(payment, Fraction(3, 4), arrives=True)
            self.deliver(self.news[older])
        elif step == "disputes cross":
            older = len(self.news)
            self.disputed(payment, 1, "open")
            self.disputed(payment, 1, "won")
            self.deliver_if(True)
            self.deliver(self.news[older])
        elif step == "spent":
            self.spend_all(payment.person)
        else:
            self.disputed(payment, 1, step)
            self.deliver_if(True)

    def spend_all(self, person: Person) -> None:
        """Leave nothing that could be taken back; how is for the part that sells."""

    def _stored(self, payment: Payment) -> Any:
        return apps.get_model("wallet.Payment").objects.get(pk=self.ids[payment])

    @precondition(lambda self: self.model.payments)
    @rule(which=WHICH, succeed=st.booleans())
    def a_mock_page_is_used(self, which: int, succeed: bool) -> None:
        payment: Payment = self.one_of(self.model.payments, which)

        def theirs() -> None:
            if payment.provider != "mock":
                raise Refused("not_found")
            if payment.status != "pending":
                raise Refused("payment_not_pending")
            self.model.learn(payment, Facts("succeeded" if succeed else "canceled"))

        self.call(
            "mock page",
            lambda: services.settle_mock_payment(payment_id=self.ids[payment], succeed=succeed),
            theirs,
        )

    # What providers have to tell

    @precondition(lambda self: self.model.payments)
    @rule(which=WHICH, off=st.sampled_from([0, 0, 0, -1, 1]), arrives=ARRIVES)
    def the_provider_has_been_paid(self, which: int, off: int, arrives: bool) -> None:
        """Now and then the message tells another amount than was agreed on."""
        self.paid(self.one_of(self.model.payments, which), off=off, arrives=arrives)

    def paid(self, payment: Payment, *, off: int = 0, arrives: bool) -> None:
        told = payment.amount + off
        if payment.provider == "mock":
            self._mock_says(payment, mock.SUCCEEDED, Facts("succeeded", told), amount=money(told))
        else:
            bank = self.banks[payment]
            session = self.stripe.sessions[bank.session] if bank.paid else self.stripe.pay(bank.session)
            bank.paid = True
            session = {**session, "amount_total": told}
            self._stripe_says(payment, "checkout.session.completed", session, Facts("succeeded", told))
        self.deliver_if(arrives)

    @precondition(lambda self: self.model.payments)
    @rule(which=WHICH, arrives=ARRIVES)
    def the_provider_cancels(self, which: int, arrives: bool) -> None:
        self.canceled(self.one_of(self.model.payments, which), arrives=arrives)

    def canceled(self, payment: Payment, *, arrives: bool) -> None:
        if payment.provider == "mock":
            self._mock_says(payment, mock.CANCELED, Facts("canceled"))
        elif not self.banks[payment].paid:
            session = {**self.stripe.sessions[self.banks[payment].session], "status": "expired"}
            self._stripe_says(payment, "checkout.session.expired", session, Facts("canceled"))
        self.deliver_if(arrives)

    @precondition(lambda self: self.model.payments)
    @rule(which=WHICH, share=st.fractions(0, 1), arrives=ARRIVES)
    def the_provider_pays_back(self, which: int, share: Fraction, arrives: bool) -> None:
        self.paid_back(self.one_of(self.model.payments, which), share, arrives=arrives)

    def paid_back(self, payment: Payment, share: Fraction, *, arrives: bool) -> None:
        """Cumulative amounts; an older message tells a smaller one."""
        if payment.provider == "mock":
            refunded = int(payment.amount * share)
            self._mock_says(payment, mock.REFUNDED, Facts(refunded=refunded), refunded=money(refunded))
        elif self.banks[payment].paid:
            bank = self.banks[payment]
            bank.refunded += int((payment.amount - bank.refunded) * share)
            charge = self.stripe.charge(bank.session, refunded=bank.refunded)
            self._stripe_says(payment, "charge.refunded", charge, Facts(refunded=bank.refunded))
        self.deliver_if(arrives)

    @precondition(lambda self: self.model.payments)
    @rule(
        which=WHICH,
        number=st.integers(1, 2),
        outcomes=st.one_of(st.just(["open", "won"]), st.lists(st.sampled_from(FINALITY), min_size=1, max_size=3)),
        arrives=ARRIVES,
    )
    def a_customer_disputes(self, which: int, number: int, outcomes: list[str], arrives: bool) -> None:
        """The first dispute is about the whole payment, the second about a third."""
        payment: Payment = self.one_of(self.model.payments, which)
        for outcome in outcomes:
            self.disputed(payment, number, outcome)
            self.deliver_if(arrives)

    def disputed(self, payment: Payment, number: int, outcome: str) -> None:
        amount = payment.amount if number == 1 else max(1, payment.amount // 3)
        if payment.provider == "mock":
            name = f"dp_{number}"
            facts = Facts(disputes=((name, outcome, amount),))
            self._mock_says(payment, mock.DISPUTED, facts, dispute=name, outcome=outcome, amount=money(amount))
        elif self.banks[payment].paid:
            bank = self.banks[payment]
            status = {"open": "needs_response"}.get(outcome, outcome)
            dispute = self.stripe.dispute(bank.session, status=status, amount=amount, number=number)
            bank.disputes[dispute["id"]] = (outcome, amount)
            self._stripe_says(
                payment, "charge.dispute.updated", dispute, Facts(disputes=((dispute["id"], outcome, amount),))
            )

    def _mock_says(self, payment: Payment, kind: str, facts: Facts, **extra: Any) -> None:
        event_id = f"news {len(self.news)}"
        message = mock.notification(self._stored(payment), kind, event_id=event_id, **extra)
        body = json.dumps(message.payload).encode()
        self.news.append(News(payment, "mock", body, {mock.SIGNATURE_HEADER: mock.sign(body)}, facts))

    def _stripe_says(self, payment: Payment, kind: str, subject: dict[str, Any], facts: Facts) -> None:
        body, headers = stripe_event(kind, subject, event_id=f"evt_{len(self.news)}")
        self.news.append(News(payment, "stripe", body, headers, facts))

    @precondition(lambda self: self.news)
    @rule(which=WHICH, times=st.integers(1, 3))
    def news_arrive(self, which: int, times: int) -> None:
        for _ in range(times):
            self.deliver(self.one_of(self.news, which))

    def deliver_if(self, arrives: bool) -> None:
        if arrives and self.news:
            self.deliver(self.news[-1])

    def deliver(self, news: News) -> None:
        answer = self.providers.post(
            f"/api/v1/webhooks/payment/{news.provider}", news.body, "application/json", headers=news.headers
        )
        self.did("news again" if news.done else "news")
        assert code_of(answer) == ("" if self._carried_out(news) else "notification_not_processed")

    def _carried_out(self, news: News) -> bool:
        """Say to the model what a message says, unless that was done; return whether it is done."""
        if news.done:
            return True
        before = news.payment.status
        try:
            self.model.learn(news.payment, news.facts)
        except Refused as refusal:
            self.did(f"news: {refusal.code}")
            news.waits = news.attempts < ATTEMPTS
            news.attempts += 1
            return False
        news.done, news.waits = True, False
        self.did(f"payment {before} -> {news.payment.status}")
        if news.payment.person.owed:
            self.did("owed")
        return True

    @precondition(lambda self: self.model.payments)
    @rule(which=WHICH)
    def staff_ask_the_provider(self, which: int) -> None:
        payment: Payment = self.one_of(self.model.payments, which)
        self.call(
            "ask",
            lambda: services.ask_provider(payment_id=self.ids[payment]),
            lambda: self._asked(payment),
        )

    def _asked(self, payment: Payment) -> None:
        if payment.provider == "stripe":
            self.model.learn(payment, self.banks[payment].facts(payment))
        elif (self.model.now - payment.created).total_seconds() > PAGE_LIFETIME_HOURS * 3600:
            # The mock knows what it has told, and that its page has closed.
            self.model.learn(payment, Facts("canceled"))

    def jobs_ran(self) -> None:
        super().jobs_ran()
        for payment in self.model.payments:
            if payment.status == "pending":
                self._asked(payment)
        for news in self.news:
            if news.waits:
                self._carried_out(news)

    @precondition(lambda self: any(payment.paid for payment in self.model.payments))
    @rule(which=WHICH, share=st.one_of(st.none(), st.fractions(Fraction(1, 50), Fraction(3, 2))))
    def staff_refund(self, which: int, share: Fraction | None) -> None:
        payment: Payment = self.one_of([one for one in self.model.payments if one.paid], which)
        asked = None if share is None else max(1, int(payment.amount * share))

        def theirs() -> None:
            wanted = self.model.may_refund(payment, asked)
            if payment.provider == "mock":
                self.model.learn(payment, Facts(refunded=payment.refunded + wanted))
                return
            bank = self.banks[payment]
            if bank.refunded + wanted > payment.amount:
                raise Refused("payment_provider_refused")
            bank.refunded += wanted
            self.model.learn(payment, bank.facts(payment))

        self.call(
            "staff refund",
            lambda: services.refund_payment(
                payment_id=self.ids[payment],
                reason="test",
                actor=self.staff,
                amount=None if asked is None else decimal(asked),
            ),
            theirs,
        )

    @rule(
        currency=st.sampled_from(["RUB", "USD", "EUR"]),
        znc=st.integers(1, 10**9),
        cost=st.integers(1, 10**6),
        direction=st.booleans(),
    )
    def a_rate_changes(self, currency: str, znc: int, cost: int, direction: bool) -> None:
        """Between a hundredth and a hundred of ZNC for one of the currency, in either form."""
        pair = (Fraction(1), Fraction(cost, 10**4)) if direction else (Fraction(max(znc, 10**6), 10**7), Fraction(1))
        apps.get_model("wallet.ExchangeRate").objects.create(
            currency_id=currency,
            znc_amount=_exactly(pair[0]),
            currency_amount=_exactly(pair[1]),
            effective_from=self.model.now,
        )
        self.model.rates[currency] = pair
        self.did("rate changed")

    @invariant()
    def the_payments_agree(self) -> None:
        payments = apps.get_model("wallet.Payment").objects
        stored = {
            pk: values
            for pk, *values in payments.values_list("pk", "status", "amount_znc", "refunded_amount", "reversed_znc")
        }
        assert stored == {
            self.ids[payment]: [
                payment.status,
                *(decimal(part) for part in (payment.cents, payment.refunded, payment.held_back)),
            ]
            for payment in self.model.payments
        }


def _exactly(number: Fraction) -> Decimal:
    return Decimal(number.numerator) / Decimal(number.denominator)
