"""Rules of what is sold: tokens, bundles, prices, refunds, bonuses."""

from __future__ import annotations

import uuid
from datetime import timedelta
from decimal import Decimal

from django.apps import apps
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from bundles.services import create_bundle, edit_bundle
from referrals.services import approve_bonus, reject_bonus
from tests.ledger.model import Pack, Person, Token
from tests.ledger.world import WHICH, World, cents, code_of, decimal, money
from tokens.services import activate_token, revoke_token, schedule_price

#: Few durations, so that prices change under purchases and refunds of the same one.
HOURS = st.sampled_from([1, 24, 168, 720, 720])
#: Which part of its time a token was used for right after it was bought, if it was.
USED = st.one_of(st.none(), st.floats(0, 1.1))


class Selling(World):
    """People buy, use and give back; staff change prices and decide about bonuses."""

    def opened(self) -> None:
        super().opened()
        bundles = apps.get_model("bundles.Bundle").objects
        for name, count, hours, base, total in (
            ("Starter Pack", 5, 24, 9_000, 8_100),
            ("Developer Pack", 10, 168, 100_000, 85_000),
        ):
            pack = Pack(name, count, hours, base, total)
            self.model.packs.append(pack)
            self.ids[pack] = bundles.get(name=name).pk
        odd = Pack("Odd Pack", 7, 720, 210_000, 20_003)
        made = create_bundle(
            actor=self.staff,
            name=odd.name,
            token_count=odd.count,
            duration_hours=odd.hours,
            discount_percent=Decimal(0),
            total_price=decimal(odd.total),
            override_reason="a price that cannot be split evenly",
        )
        self.model.packs.append(odd)
        self.ids[odd] = made.pk

    def buyer(self, which: int) -> Person | None:
        """Return somebody who may act: the disabled are refused before any money is looked at."""
        person: Person = self.model.people[which % len(self.model.people)]
        return person if person.active else None

    @rule(who=WHICH, amount=st.integers(1, 60_000))
    def someone_tops_up(self, who: int, amount: int) -> None:
        if person := self.buyer(who):
            self.top_up(person, amount)

    def top_up(self, person: Person, amount: int) -> None:
        self.post(
            person,
            "currency/mock-purchase",
            {"amount": money(amount)},
            lambda: self.model.top_up(person, amount),
            other=("currency/mock-purchase", {"amount": money(amount + 1)}),
        )

    @rule(who=WHICH)
    def someone_spends_all_they_have(self, who: int) -> None:
        if person := self.buyer(who):
            self.spend_all(person)

    def spend_all(self, person: Person) -> None:
        """What is taken back from them afterwards is owed."""
        if person.balance:
            self.price(12, person.balance)
            self.buy(person, 12)

    @rule(who=WHICH, hours=HOURS, used=USED)
    def someone_buys_a_token(self, who: int, hours: int, used: float | None) -> None:
        if (person := self.buyer(who)) and (token := self.buy(person, hours)) and used is not None:
            self.use(token, used)

    def buy(self, person: Person, hours: int) -> Token | None:
        sold = self.post(
            person,
            "tokens/purchase",
            {"duration_hours": hours},
            lambda: self.model.buy(person, hours),
            other=("tokens/purchase", {"duration_hours": 13}),
        )
        if not sold:
            return None
        token, answer = sold
        self.ids[token] = uuid.UUID(answer["id"])
        self.secrets[token] = answer["token"]
        assert answer["auto_renew"] is token.renews
        assert cents(answer["cost_znc"]) == token.paid
        assert cents(answer["new_balance"]) == person.balance
        return token

    @rule(who=WHICH, which=WHICH, used=USED)
    def someone_buys_a_bundle(self, who: int, which: int, used: float | None) -> None:
        if not (person := self.buyer(who)):
            return
        pack, another = self.one_of(self.model.packs, which), self.one_of(self.model.packs, which + 1)
        sold = self.post(
            person,
            f"bundles/{self.ids[pack]}/purchase",
            None,
            lambda: self.model.buy_pack(person, pack),
            other=(f"bundles/{self.ids[another]}/purchase", None),
        )
        if sold:
            tokens, answer = sold
            assert cents(answer["cost_znc"]) == pack.total
            assert cents(answer["new_balance"]) == person.balance
            for token, shown in zip(tokens, answer["tokens"], strict=True):
                self.ids[token] = uuid.UUID(shown["id"])
                self.secrets[token] = shown["token"]
                assert cents(shown["cost_znc"]) == token.paid
            if used is not None:
                self.use(tokens[0], used)

    @precondition(lambda self: self.model.tokens)
    @rule(which=WHICH, used=st.floats(0, 1.1))
    def a_token_is_used(self, which: int, used: float) -> None:
        self.use(self.one_of(self.model.tokens, which), used)

    def use(self, token: Token, used: float) -> None:
        """Say that the first use was a while ago: up to more than all of the token's time."""
        at = self.model.now - timedelta(seconds=int(used * token.hours * 3600))
        done = self.call(
            "activate",
            lambda: activate_token(token_id=self.ids[token], at=at),
            lambda: self.model.activate(token, at),
        )
        if done:
            now, activation = done
            assert (activation.activated_now, activation.expires_at) == (now, token.expires)

    @precondition(lambda self: self.model.tokens)
    @rule(which=WHICH, times=st.integers(1, 2))
    def an_owner_revokes(self, which: int, times: int) -> None:
        for _ in range(times):
            self.revoke(self.one_of(self.model.tokens, which))

    @precondition(lambda self: self.model.tokens)
    @rule(which=WHICH)
    def an_owner_revokes_all_of_a_purchase(self, which: int) -> None:
        """The shares of a bundle, or of its bonus, must add up."""
        chosen: Token = self.one_of(self.model.tokens, which)
        for token in [token for token in self.model.tokens if token.purchase is chosen.purchase]:
            self.revoke(token)

    def revoke(self, token: Token) -> None:
        answer = self.signed_in(self.users[token.owner]).delete(f"/api/v1/tokens/{self.ids[token]}")
        before = len(token.payer.history)
        scheduled = token.is_scheduled(self.model.now)
        agreed = self.agree("revoke", code_of(answer), lambda: self.model.revoke(token, refund=True))
        if agreed:
            body = answer.json()
            received = sum(amount for one, amount in agreed.said if one.payer is token.owner)
            assert (cents(body["refund_amount"]), cents(body["new_balance"])) == (received, token.owner.balance)
            if token.payer is not token.owner:
                self.did("given token revoked")
            if token.predecessor is not None:
                self.did(f"successor revoked {'before its start' if scheduled else 'in use'}")
            if len(agreed.said) > 1:
                self.did("token revoked with its successor")
            refunded = "refunded" if len(token.payer.history) > before else "not refunded"
            self.did(f"{'unused' if token.activated is None else 'used'} token {refunded}")

    @precondition(lambda self: self.model.tokens)
    @rule(which=WHICH, refund=st.booleans())
    def staff_revoke(self, which: int, refund: bool) -> None:
        token: Token = self.one_of(self.model.tokens, which)
        self.call(
            "revoke by staff",
            lambda: revoke_token(token_id=self.ids[token], actor=self.staff, refund=refund, reason="test"),
            lambda: self.model.revoke(token, refund=refund),
        )

    @rule(
        hours=HOURS,
        price=st.one_of(st.integers(1, 60_000), st.sampled_from([9_999, 10_000, 10_001, 10_009, 10_010])),
        later=st.integers(0, 72),
    )
    def a_price_changes(self, hours: int, price: int, later: int) -> None:
        self.price(hours, price, later)

    def price(self, hours: int, price: int, later: int = 0) -> None:
        moment = self.model.now + timedelta(hours=later)
        schedule_price(
            duration_hours=hours,
            price=decimal(price),
            effective_at=moment if later else None,
            actor=self.staff,
        )
        self.model.prices[hours].append((moment, price))
        self.did("price changed")

    @rule(which=WHICH, percent=st.integers(0, 95))
    def a_bundle_is_repriced(self, which: int, percent: int) -> None:
        pack: Pack = self.one_of(self.model.packs, which)
        edit_bundle(actor=self.staff, bundle_id=self.ids[pack], discount_percent=Decimal(percent))
        self.model.reprice_pack(pack, percent)
        self.did("bundle repriced")

    @precondition(lambda self: self.model.bonuses)
    @rule(which=WHICH, approve=st.booleans())
    def staff_review_a_bonus(self, which: int, approve: bool) -> None:
        bonus = self.one_of(self.model.bonuses, which)
        bonuses = apps.get_model("referrals.ReferralBonus").objects
        stored = bonuses.get(referee=self.users[bonus.referee]).pk
        review, theirs = (approve_bonus, self.model.approve) if approve else (reject_bonus, self.model.reject)
        self.call(
            "approve" if approve else "reject",
            lambda: review(bonus_id=stored, actor=self.staff, reason="test"),
            lambda: theirs(bonus),
        )
