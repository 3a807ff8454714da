"""Rules of tiers: paid by the month, changed to the cent, over when the balance is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.apps import apps
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from tests.ledger.model import Person
from tests.ledger.selling import Selling
from tests.ledger.world import WHICH, cents, decimal, rows
from tokens.services import grant_tier, renew_subscription
from tokens.tasks import renew_tiers

TIER = st.sampled_from(["premium", "enterprise"])
#: How much of a month has passed: little, much, all, and more than one.
PASSED = st.one_of(st.floats(0, 1), st.sampled_from([1.0, 1.0, 1.01, 2.5]))


THEN = ["changed", "cancelled", "resumed", "broke", "given", ""]


@dataclass(frozen=True)
class Walk:
    """What usually happens to a tier."""

    who: int
    tier: str
    passed: float
    then: str


WALK = st.builds(
    Walk,
    who=WHICH,
    tier=TIER,
    passed=PASSED,
    then=st.sampled_from(THEN),
)


class Subscribing(Selling):
    """People buy tiers, change and cancel them; months begin; staff give and take away."""

    @rule(walk=WALK)
    def someone_buys_a_tier(self, walk: Walk) -> None:
        self.subscribe(walk)

    @initialize(walk=WALK)
    def somebody_has_bought_a_tier(self, walk: Walk) -> None:
        """In each example, so that few of them see every outcome."""
        self.subscribe(self.first_of(walk, THEN))

    def subscribe(self, walk: Walk) -> None:
        if not (person := self.buyer(walk.who)) or not self.choose(person, walk.tier):
            return
        if walk.then in {"cancelled", "resumed"}:
            self.choose(person, "free")
        if walk.then == "resumed":
            self.choose(person, walk.tier)
        if walk.then == "broke":
            self.spend_all(person)
        self.some_of_a_month_passes(person, walk.passed)
        if walk.then == "changed":
            self.choose(person, "premium" if walk.tier == "enterprise" else "enterprise")
        if walk.then == "given":
            self.give(person, walk.tier)

    @rule(who=WHICH, tier=st.sampled_from(["free", "premium", "enterprise", "gold"]))
    def someone_chooses_a_tier(self, who: int, tier: str) -> None:
        if person := self.buyer(who):
            self.model.tiers_not_sold.add("gold")
            self.choose(person, tier)

    def choose(self, person: Person, tier: str) -> bool:
        had = self.model.subscription(person)
        chosen = self.post(
            person,
            "users/me/tier",
            {"tier": tier},
            lambda: self.model.choose_tier(person, tier),
            other=("users/me/tier", {"tier": f"{tier}-2"}),
        )
        if not chosen:
            return False
        shown = chosen[1]
        current = self.model.subscription(person)
        assert (shown["tier"], cents(shown["new_balance"])) == (self.model.tier(person), person.balance)
        assert shown["renews"] is (current is not None and current.end is not None and current.cancelled is None)
        if had is not None and had.reason == "changed":
            self.did(f"tier changed {'with' if had.refunded else 'without'} a credit")
        return True

    @precondition(lambda self: any(one.ended is None for one in self.model.subscriptions))
    @rule(which=WHICH, passed=PASSED, off_sale=st.sampled_from([False, False, False, True]), spent=st.booleans())
    def a_month_ends(self, which: int, passed: float, off_sale: bool, spent: bool) -> None:
        current = self.one_of([one for one in self.model.subscriptions if one.ended is None], which)
        if spent and current.person.active:
            self.spend_all(current.person)
        if off_sale:
            self.sell_tier(current.tier, False)
        self.some_of_a_month_passes(current.person, passed)
        if off_sale:
            self.sell_tier(current.tier, True)

    def some_of_a_month_passes(self, person: Person, part: float) -> None:
        """Run what is due then, twice, and again as a worker that comes late."""
        current = self.model.subscription(person)
        if current is None or current.end is None:
            return
        until = current.start + (current.end - current.start) * part
        if until > self.model.now:
            self.model.now = self.clock.pass_by(seconds=(until - self.model.now).total_seconds())
        before = current.month
        self.tiers_were_renewed()
        if current.month > before:
            self.did("tier renewed" if current.month == before + 1 else "tier renewed after a month was missed")

    def tiers_were_renewed(self) -> None:
        assert (renew_tiers(), renew_tiers()) == (self.model.renew_tiers(), 0)

    def sell_tier(self, tier: str, sold: bool) -> None:
        self._tiers().filter(slug=tier).update(is_active=sold)
        (self.model.tiers_not_sold.discard if sold else self.model.tiers_not_sold.add)(tier)

    def _tiers(self) -> Any:
        return apps.get_model("accounts.Tier")._default_manager

    @rule(tier=TIER, price=st.integers(1, 20_000))
    def a_tier_changes_its_price(self, tier: str, price: int) -> None:
        self._tiers().filter(slug=tier).update(monthly_price=decimal(price))
        self.model.tiers[tier] = price

    @rule(who=WHICH, tier=st.sampled_from(["free", "premium", "enterprise"]))
    def staff_set_a_tier(self, who: int, tier: str) -> None:
        self.give(self.model.people[who % len(self.model.people)], tier)

    def give(self, person: Person, tier: str) -> None:
        self.call(
            "tier given" if tier != "free" else "tier taken away",
            lambda: grant_tier(user=self.users[person], tier=tier, reason="test", actor=self.staff),
            lambda: self.model.grant_tier(person, tier),
        )

    @precondition(lambda self: self.model.subscriptions)
    @rule(which=WHICH)
    def a_worker_comes_back_to_a_month(self, which: int) -> None:
        """Of a subscription that has ended, or whose month is paid: no other is paid then."""
        self.tiers_were_renewed()
        stored = [pk for [pk] in rows("SELECT id FROM tokens_tiersubscription ORDER BY started_at")]
        assert renew_subscription(subscription_id=self.one_of(stored, which)) is False

    def jobs_ran(self) -> None:
        super().jobs_ran()
        self.tiers_were_renewed()

    @invariant()
    def the_tiers_agree(self) -> None:
        stored = rows(
            "SELECT user_id, tier_id, price, refunded, month, started_at, period_start, period_end,"
            " CASE WHEN ended_at IS NULL THEN due_at END, cancelled_at, ended_at, end_reason"
            " FROM tokens_tiersubscription"
        )
        expected = [
            (
                self.users[one.person].pk,
                one.tier,
                decimal(one.price),
                decimal(one.refunded),
                one.month,
                one.started,
                one.start,
                one.end,
                None if one.ended else one.end,
                one.cancelled,
                one.ended,
                one.reason,
            )
            for one in self.model.subscriptions
        ]
        assert sorted(stored, key=str) == sorted(expected, key=str)
        tiers = dict(rows("SELECT id, tier_id FROM accounts_user WHERE NOT is_staff"))
        assert tiers == {self.users[person].pk: self.model.tier(person) for person in self.model.people}
