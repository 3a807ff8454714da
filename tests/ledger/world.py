"""What every part of the machine shares: the clock, the people, a way to call the API, and the comparison of books.

The parts add rules; each rule does something to the platform and says the same to the model, and after every rule both
must tell the same of every account, transfer, token, payment and bonus.
"""

from __future__ import annotations

import io
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

from django.core.management import call_command
from django.db import connection, transaction
from django.test import TransactionTestCase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from rest_framework.test import APIClient

from accounts.services import set_user_active
from tests.factories import UserFactory
from tests.ledger import model
from tests.ledger.model import Model, Person, Refused, Token
from tokens.tasks import expire_tokens
from wallet import reconciliation, tasks
from wallet.reconciliation import Drift
from wallet.services import open_account, system_account_id, top_up_mock
from zenzefi.lib.errors import DomainError

#: Chooses one of what there is, mostly of the newest: see :meth:`World.one_of`.
WHICH = st.one_of(st.integers(0, 4), st.integers(0, 40))
START = datetime(2030, 1, 30, 22, 15, 7, 250_000, tzinfo=UTC)


def cents(amount: Decimal | str) -> int:
    return int(Decimal(amount).scaleb(2))


def decimal(amount: int) -> Decimal:
    return Decimal(amount).scaleb(-2)


def money(amount: int) -> str:
    return str(decimal(amount))


def prove() -> None:
    """Run ``manage.py reconcile`` as an operator does."""
    out = io.StringIO()
    try:
        call_command("reconcile", stdout=out, stderr=out)
    except SystemExit:
        raise AssertionError(out.getvalue()) from None
    assert "drift 0.00" in out.getvalue()


def drifts() -> list[Drift]:
    """Run every check of ``manage.py reconcile`` in the present transaction."""
    found = []
    with connection.cursor() as cursor:
        for check in reconciliation._CHECKS:
            cursor.execute(check.query)
            found += [Drift(f"{check.name}: {row}", problem) for row, problem in cursor.fetchall()]
    return found


class Clock:
    """Stands in for ``django.utils.timezone.now``; never stands still, so that no two moments are the same."""

    def __init__(self) -> None:
        self.moment = START

    def now(self) -> datetime:
        return self.moment

    def pass_by(self, **time: float) -> datetime:
        self.moment += timedelta(**time) + timedelta(microseconds=1)
        return self.moment


@dataclass
class Request:
    """A request that the platform carried out, and one with another body that must not pass for it."""

    user: Any
    key: str
    path: str
    body: dict[str, Any] | None
    other: tuple[str, dict[str, Any] | None]
    status: int
    answer: dict[str, Any]


@dataclass
class Agreed:
    """Both have done it; this is what the model said."""

    said: Any


class World(RuleBasedStateMachine):
    """One example: some people who referred each other; Elena's account is almost full."""

    clock: Clock
    #: One for all, as each new one builds the middleware anew.
    client: APIClient
    #: Whether each example is committed, and its rows deleted before the next; else it is rolled back.
    commits = False
    #: Which of the usual walks each example begins with, counted round; of no matter which, when none.
    begins: int | None = None
    #: Over all examples: how often what happened.
    tally: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.tally["examples"] += 1
        self.tally["steps"] -= 1  # the books are compared once before the first
        if self.commits:
            # As pytest-django does it after each test that commits: see tests/database.py.
            cast("Any", TransactionTestCase)._fixture_teardown(self)
        else:
            self._undone = transaction.atomic()
            self._undone.__enter__()
        self.clock.moment = START
        self.model = Model(START)
        self.users: dict[Person, Any] = {}
        self.ids: dict[Any, uuid.UUID] = {}
        self.secrets: dict[Token, str] = {}
        self.requests: list[Request] = []
        self.seen: dict[Person, int] = {}
        self._arrives("anna", None, 1)
        self._arrives("boris", "anna", 50_000)
        self._arrives("clara", "anna", 120_000)
        self._arrives("dmitri", "boris", 50_000)
        self._arrives("elena", None, model.MOST - 2_000)
        self._arrives("felix", "elena", 50_000)
        self.staff = UserFactory(username="staff", is_staff=True, password="!")
        self.opened()

    def opened(self) -> None:
        """Prepare what a part needs."""

    def _arrives(self, name: str, referrer: str | None, held: int) -> None:
        known = {person.name: person for person in self.users}
        person = Person(name, referrer=known[referrer] if referrer else None)
        referred_by = self.users[known[referrer]] if referrer else None
        user = UserFactory(username=name, email=f"{name}@example.com", password="!", referred_by=referred_by)
        self.users[person] = user
        self.ids[person] = open_account(user).pk
        self.model.people.append(person)
        top_up_mock(user=user, amount=decimal(held))
        self.model.top_up(person, held)

    def teardown(self) -> None:
        try:
            if self.commits:
                prove()
            else:
                connection.check_constraints()
                assert drifts() == []
        finally:
            if not self.commits:
                transaction.set_rollback(True)
                self._undone.__exit__(None, None, None)

    # Means of the rules

    def one_of(self, things: list[Any], which: int) -> Any:
        return things[-1 - which % len(things)]

    def first_of(self, walk: Any, usual: Sequence[Any]) -> Any:
        """Return the walk that an example begins with."""
        return walk if self.begins is None else replace(walk, then=usual[self.begins % len(usual)])

    def did(self, what: str) -> None:
        self.tally[what] += 1

    def post(
        self,
        person: Person,
        path: str,
        body: dict[str, Any] | None,
        theirs: Callable[[], Any],
        *,
        other: tuple[str, dict[str, Any] | None] | None = None,
    ) -> tuple[Any, dict[str, Any]] | None:
        """Send a POST under a key of its own; return what the model said and the platform's answer, if not refused."""
        key = f"key {len(self.requests)} {self.tally['sent']}"
        self.tally["sent"] += 1
        answer = self.send(self.users[person], path, body, key)
        name = path.split("/")[0] + " " + path.split("/")[-1]
        agreed = self.agree(name, code_of(answer), theirs)
        if agreed is None:
            return None
        if other is not None:
            self.requests.append(Request(self.users[person], key, path, body, other, answer.status_code, answer.json()))
        return agreed.said, answer.json()

    def send(self, user: Any, path: str, body: dict[str, Any] | None, key: str) -> Any:
        headers = {"Idempotency-Key": key}
        return self.signed_in(user).post(f"/api/v1/{path}", body or {}, format="json", headers=headers)

    def signed_in(self, user: Any) -> APIClient:
        self.client.force_authenticate(user)
        return self.client

    def call(self, what: str, ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[Any, Any] | None:
        """Call a service and the model; return what both said, ``None`` when both refused with the same code."""
        answer, refused = None, ""
        try:
            answer = ours()
        except DomainError as exc:
            refused = exc.code
        agreed = self.agree(what, refused, theirs)
        return None if agreed is None else (agreed.said, answer)

    def agree(self, what: str, refused: str, theirs: Callable[[], Any]) -> Agreed | None:
        """Ask the model too; the platform has refused with this code, or has not when it is empty."""
        try:
            said = theirs()
        except Refused as refusal:
            assert refused == refusal.code, f"{what}: {refused or 'done'} instead of {refusal.code}"
            self.did(f"{what}: {refused}")
            return None
        assert not refused, f"{what}: refused with {refused}"
        self.did(what)
        return Agreed(said)

    # Rules that any part needs

    @rule(seconds=st.one_of(st.integers(1, 7_200), st.integers(1, 40 * 24 * 3600)), fraction=st.integers(0, 999_999))
    def time_passes(self, seconds: int, fraction: int) -> None:
        self.model.now = self.clock.pass_by(seconds=seconds, microseconds=fraction)
        self.did("time passes")

    @rule(hours=st.integers(7, 200))
    def jobs_run_after_a_while(self, hours: int) -> None:
        """Longer than any delay between two attempts, so that all that is pending is due."""
        self.model.now = self.clock.pass_by(hours=hours)
        tasks.poll_payments()
        tasks.retry_payment_events()
        tasks.resume_payment_refunds()
        expire_tokens()
        self.jobs_ran()
        self.did("jobs run")

    def jobs_ran(self) -> None:
        """Say to the model what the jobs have done."""

    @rule(which=WHICH)
    def a_request_is_repeated(self, which: int) -> None:
        if not self.requests:
            return
        request = self.one_of(self.requests, which)
        again = self.send(request.user, request.path, request.body, request.key)
        assert again.status_code == request.status, again.content
        if request.path == "currency/purchase":
            # Kept on the payment, which is shown as it is now.
            assert again.json()["payment_id"] == request.answer["payment_id"]
        else:
            assert (again.json(), again["Idempotent-Replayed"]) == (request.answer, "true")
        path, body = request.other
        reused = self.send(request.user, path, body, request.key)
        assert (reused.status_code, reused.json()["code"]) == (422, "idempotency_key_reused")
        self.did("request repeated")

    @rule(which=WHICH)
    def someone_is_disabled_or_enabled(self, which: int) -> None:
        person = self.model.people[which % len(self.model.people)]
        person.active = not person.active
        user = self.users[person]
        set_user_active(user_id=user.pk, active=person.active, actor=self.staff, reason="test")
        user.refresh_from_db()

    # The comparison

    @invariant()
    def the_books_agree(self) -> None:
        self.tally["steps"] += 1
        self.model.now = self.clock.pass_by()
        assert list(self.model.must_hold()) == []
        history, system = _books()
        standing = dict(rows("SELECT id, (balance, owed, postings)::text FROM wallet_account WHERE user_id NOTNULL"))
        for person in self.model.people:
            self.tally.update(kind.lower() for kind, _signed, _after in person.history[self.seen.get(person, 0) :])
            self.seen[person] = len(person.history)
            self.tally["owes"] += person.owed > 0
            account = self.ids[person]
            assert history[account] == person.history, person
            expected = f"({money(person.balance)},{money(person.owed)},{len(person.history)})"
            assert standing[account] == expected, person
        assert system == {name: total for name, total in self.model.system.items() if total}

    @invariant()
    def the_tokens_agree(self) -> None:
        stored = {
            token_id: values
            for token_id, *values in rows(
                "SELECT id, owner_id, coalesce(payer_id, owner_id), paid, refunded, revoked_at, held_at NOTNULL,"
                " activated_at, expires_at, predecessor_id, renewed_at, auto_renew, renewal_paused, renew_at"
                " FROM tokens_accesstoken"
            )
        }
        expected = {
            self.ids[token]: [
                self.users[token.owner].pk,
                self.users[token.payer].pk,
                decimal(token.paid),
                decimal(token.refunded),
                token.revoked_at,
                token.held,
                token.activated,
                token.expires,
                token.predecessor and self.ids[token.predecessor],
                token.successor and token.successor.bought,
                token.renews,
                token.paused,
                token.renewal_due,
            ]
            for token in self.model.tokens
        }
        assert stored == expected

    @invariant()
    def the_bonuses_agree(self) -> None:
        stored = rows(
            "SELECT referee_id, referrer_id, status, amount, refunded, paid_out, taken_back"
            " FROM referrals_referralbonus"
        )
        expected = [
            (
                self.users[bonus.referee].pk,
                self.users[bonus.referrer].pk,
                "held" if bonus.held else "rejected" if bonus.rejected else "paid",
                *(
                    Decimal(part).scaleb(-2)
                    for part in (bonus.amount, bonus.refunded, bonus.paid_out, bonus.taken_back)
                ),
            )
            for bonus in self.model.bonuses
        ]
        assert sorted(stored) == sorted(expected)


def code_of(answer: Any) -> str:
    """Return why a request was refused, nothing when it was not."""
    return str(answer.json()["code"]) if answer.status_code >= 400 else ""


def rows(statement: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


_SYSTEM = {
    system_account_id(name): name
    for name in ("revenue", "promotions", "adjustments", "gateway:mock", "gateway:stripe", "gateway:yookassa")
}


def _books() -> tuple[dict[uuid.UUID, list[tuple[str, int, int]]], dict[str, int]]:
    """Return each account's history as the model keeps it, and what each system account has, from the transfers."""
    history: dict[uuid.UUID, list[tuple[str, int, int]]] = {}
    system: Counter[str] = Counter()
    for kind, amount, *sides in rows(
        "SELECT kind, amount, debit_account_id, debit_balance_after - debit_owed_after,"
        " credit_account_id, credit_balance_after - credit_owed_after FROM wallet_transfer ORDER BY id"
    ):
        for account, after, signed in ((sides[0], sides[1], -amount), (sides[2], sides[3], amount)):
            if account in _SYSTEM:
                system[_SYSTEM[account]] += cents(signed)
            else:
                history.setdefault(account, []).append((kind, cents(signed), cents(after)))
    return history, {name: total for name, total in system.items() if total}
