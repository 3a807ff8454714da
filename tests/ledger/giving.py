"""Rules of gifts: a token changes hands, and its money does not."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from tests.ledger.model import Gift, Token
from tests.ledger.selling import HOURS, Selling
from tests.ledger.world import WHICH
from tokens.services import approve_gift, cancel_gift, claim_gift, offer_gift, reject_gift
from tokens.tasks import return_expired_gifts


class Giving(Selling):
    """People offer tokens, claim, cancel; staff approve and reject; time runs out."""

    @rule(who=WHICH, hours=HOURS, claimed_by=WHICH, revoked=st.booleans())
    def someone_buys_to_give(self, who: int, hours: int, claimed_by: int, revoked: bool) -> None:
        """And whoever got it may not want it."""
        if (person := self.buyer(who)) and (token := self.buy(person, hours)):
            self.offer(token, claimed_by)
            if revoked:
                self.revoke(token)

    @precondition(lambda self: self.model.tokens)
    @rule(which=WHICH, claimed_by=st.one_of(st.none(), WHICH))
    def an_owner_offers_a_token(self, which: int, claimed_by: int | None) -> None:
        self.offer(self.one_of(self.model.tokens, which), claimed_by)

    def offer(self, token: Token, claimed_by: int | None) -> None:
        """Offer, and let somebody claim at once, after staff have approved it where they must."""
        offered = self.call(
            "offer",
            lambda: offer_gift(token_id=self.ids[token], giver=self.users[token.owner]),
            lambda: self.model.offer(token, ""),
        )
        if not offered:
            return
        gift, made = offered
        gift.code = made.code
        self.ids[gift] = made.gift.pk
        if claimed_by is not None:
            if gift.status == "awaiting_approval":
                self.approve(gift)
            self.claim(gift, claimed_by)

    @precondition(lambda self: self.model.gifts)
    @rule(which=WHICH, who=WHICH)
    def someone_claims_a_gift(self, which: int, who: int) -> None:
        self.claim(self.one_of(self.model.gifts, which), who)

    def claim(self, gift: Gift, who: int) -> None:
        person = self.model.people[who % len(self.model.people)]
        claimed = self.call(
            "claim",
            lambda: claim_gift(code=gift.code, claimer=self.users[person]),
            lambda: self.model.claim(gift, person),
        )
        if claimed:
            self.secrets[gift.token] = claimed[1].secret

    @precondition(lambda self: self.model.gifts)
    @rule(which=WHICH)
    def a_giver_cancels(self, which: int) -> None:
        gift: Gift = self.one_of(self.model.gifts, which)
        self.call(
            "cancel gift",
            lambda: cancel_gift(gift_id=self.ids[gift], giver=self.users[gift.giver]),
            lambda: self.model.take_back_gift(gift, "cancelled"),
        )

    @precondition(lambda self: self.model.gifts)
    @rule(which=WHICH, approve=st.booleans())
    def staff_review_a_gift(self, which: int, approve: bool) -> None:
        gift: Gift = self.one_of(self.model.gifts, which)
        if approve:
            self.approve(gift)
        else:
            self.call(
                "reject gift",
                lambda: reject_gift(gift_id=self.ids[gift], actor=self.staff, reason="test"),
                lambda: self.model.take_back_gift(gift, "rejected"),
            )

    def approve(self, gift: Gift) -> None:
        self.call(
            "approve gift",
            lambda: approve_gift(gift_id=self.ids[gift], actor=self.staff, reason="test"),
            lambda: self.model.approve_gift(gift),
        )

    def jobs_ran(self) -> None:
        super().jobs_ran()
        return_expired_gifts()
        self.model.return_expired_gifts()

    @invariant()
    def the_gifts_agree(self) -> None:
        gifts: Any = apps.get_model("tokens.Gift")._default_manager
        assert {pk: tuple(state) for pk, *state in gifts.values_list("pk", "status", "expires_at")} == {
            self.ids[gift]: (gift.status, gift.expires) for gift in self.model.gifts
        }
