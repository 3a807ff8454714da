"""Rules of tokens that renew themselves: once, at the price of that day, and one secret that stands for one token."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.apps import apps
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from tests.ledger.giving import Giving
from tests.ledger.model import Person, Token
from tests.ledger.selling import HOURS
from tests.ledger.world import WHICH, code_of, money, rows
from tokens.selectors import check_token, credential_by_digest
from tokens.services import renew_token, stop_renewal
from tokens.tasks import renew_tokens, take_over

#: Where the clock stands, in parts of the time between the moment a renewal is due and the token's end: before, in
#: time, after the end, and too late.
WHEN = st.one_of(st.floats(0, 0.99), st.floats(0, 0.99), st.floats(1, 1.99), st.sampled_from([-0.01, 2.1, 3]))
#: What the owner lacks, or what is taken from sale, while the renewals are run.
HINDRANCE = st.sampled_from(["", "", "", "broke", "capped", "duration", "scope"])


THEN = ["goes on", "broke", "capped", "both revoked", "successor revoked", ""]


@dataclass(frozen=True)
class Walk:
    """What usually happens to a token that renews itself."""

    who: int
    hours: int
    claimed_by: int | None
    price: int | None
    when: float
    then: str


WALK = st.builds(
    Walk,
    who=WHICH,
    hours=HOURS,
    claimed_by=st.one_of(st.none(), st.none(), WHICH),
    price=st.one_of(st.none(), st.integers(1, 20_000)),
    when=WHEN,
    then=st.sampled_from(THEN),
)


class Renewing(Giving):
    """Owners switch renewal on and off; workers buy, late and twice; the secret goes over; either token is revoked."""

    @rule(who=WHICH, enabled=st.booleans(), hours=st.one_of(st.none(), HOURS))
    def someone_sets_a_default(self, who: int, enabled: bool, hours: int | None) -> None:
        if person := self.buyer(who):
            body = {"enabled": enabled, "duration_hours": hours}
            answer = self.signed_in(self.users[person]).put("/api/v1/users/me/auto-renewal", body, format="json")
            assert answer.status_code == 200, answer.content
            self.model.set_default(person, enabled=enabled, hours=hours)
            cap = None if person.daily_cap is None else money(person.daily_cap)
            shown = answer.json()
            assert (shown["auto_renew_enabled"], shown["auto_renew_duration_hours"]) == (enabled, hours)
            assert shown["daily_cap"] == cap
            self.did("default of renewal set")

    @rule(who=WHICH, cap=st.one_of(st.none(), st.integers(1, 40_000)))
    def someone_caps_their_renewals(self, who: int, cap: int | None) -> None:
        if person := self.buyer(who):
            self.cap(person, cap)

    def cap(self, person: Person, cap: int | None) -> None:
        body = {
            "enabled": person.renews,
            "duration_hours": person.renews_hours,
            "daily_cap": None if cap is None else money(cap),
        }
        answer = self.signed_in(self.users[person]).put("/api/v1/users/me/auto-renewal", body, format="json")
        assert answer.status_code == 200, answer.content
        person.daily_cap = cap

    @rule(walk=WALK)
    def someone_buys_to_renew(self, walk: Walk) -> None:
        self.take(walk)

    @initialize(walk=WALK)
    def somebody_has_bought_to_renew(self, walk: Walk) -> None:
        """In each example, so that few of them see every outcome."""
        self.take(self.first_of(walk, THEN))

    def take(self, walk: Walk) -> None:
        """Buy or be given a token that renews itself, at another price perhaps, and go on from there."""
        if not (person := self.buyer(walk.who)):
            return
        self.top_up(person, 2 * self.model.price(walk.hours))
        if not (token := self.buy(person, walk.hours)):
            return
        if walk.claimed_by is not None:
            self.offer(token, walk.claimed_by)
        owner = token.owner
        if not owner.active:
            return
        if owner is not person:
            self.top_up(owner, 2 * self.model.price(walk.hours))
        self.switch(token, on=True)
        self.use(token, 0)
        if walk.price is not None:
            self.price(walk.hours, walk.price)
        self.renew(token, walk.when, walk.then)
        if token.paused:
            self.top_up(owner, self.model.price(walk.hours))
            if walk.then == "capped":
                # To the cent, unless something else was renewed that day.
                self.cap(owner, self.model.price(walk.hours))
            self.switch(token, on=True)
        if token.successor is None:
            return
        if walk.then == "both revoked":
            self.revoke(token)
        elif walk.then == "successor revoked":
            self.revoke(token.successor)
        elif walk.then == "goes on":
            self.cross(token, 0.25)
            self.takeovers_are_noted()
            self.revoke(token.successor)

    @precondition(lambda self: self.model.tokens)
    @rule(which=WHICH, on=st.booleans())
    def an_owner_switches_renewal(self, which: int, on: bool) -> None:
        token: Token = self.one_of(self.model.tokens, which)
        if token.owner.active:
            self.switch(token, on=on)

    def switch(self, token: Token, *, on: bool) -> None:
        paused = token.paused
        path = f"/api/v1/tokens/{self.ids[token]}"
        answer = self.signed_in(self.users[token.owner]).patch(path, {"auto_renew": on}, format="json")
        name = f"renewal switched {'on' if on else 'off'}"
        if self.agree(name, code_of(answer), lambda: self.model.switch_renewal(token, on=on)):
            self.successors_are_known()
            shown = answer.json()
            assert (shown["auto_renew"], shown["renewal"]["status"]) == (token.renews, token.renewal)
            assert shown["renewal"]["paused_reason"] == token.paused
            if paused:
                self.did(f"{name} after a pause: {token.renewal}")

    @precondition(lambda self: any(token.paused for token in self.model.tokens))
    @rule(which=WHICH, amount=st.integers(1, 60_000), times=st.integers(1, 2))
    def an_owner_ends_a_pause(self, which: int, amount: int, times: int) -> None:
        """With or without enough to pay for it, and before the end or after."""
        token: Token = self.one_of([token for token in self.model.tokens if token.paused], which)
        if token.owner.active:
            self.top_up(token.owner, amount)
            for _ in range(times):
                self.switch(token, on=True)

    @precondition(lambda self: self.model.tokens)
    @rule(which=WHICH)
    def staff_stop_a_renewal(self, which: int) -> None:
        token: Token = self.one_of(self.model.tokens, which)
        stopped = stop_renewal(token_id=self.ids[token], actor=self.staff, reason="test")
        assert stopped == self.model.stop_renewal(token)
        self.tally["renewal stopped by staff"] += stopped

    @precondition(lambda self: any(token.renewal_due for token in self.model.tokens))
    @rule(which=WHICH, when=WHEN, hindrance=HINDRANCE)
    def renewals_are_run(self, which: int, when: float, hindrance: str) -> None:
        self.renew(self.one_of([token for token in self.model.tokens if token.renewal_due], which), when, hindrance)

    def renew(self, token: Token, when: float, hindrance: str = "") -> None:
        """Go to the time when a token's renewal is due, or has been for long, and run all that is due, twice."""
        if (due := token.renewal_due) is None:
            return
        if token.owner.active and hindrance == "broke":
            self.spend_all(token.owner)
        if token.owner.active and hindrance == "capped":
            self.cap(token.owner, max(1, self.model.price(token.hours) - 1))
        self.clock_reaches(due + token.lead * when)
        self.for_sale(token.hours, hindrance, False)
        self.renewals_ran()
        self.for_sale(token.hours, hindrance, True)

    def for_sale(self, hours: int, what: str, sold: bool) -> None:
        if what == "duration":
            prices: Any = apps.get_model("tokens.TokenPrice")._default_manager
            prices.filter(duration_hours=hours).update(is_active=sold)
            (self.model.not_sold.discard if sold else self.model.not_sold.add)(hours)
        elif what == "scope":
            scopes: Any = apps.get_model("tokens.Scope")._default_manager
            scopes.filter(slug="full").update(is_active=sold)
            self.model.scope_sold = sold

    def clock_reaches(self, moment: datetime) -> None:
        """Unless it is past that."""
        if moment > self.model.now:
            self.model.now = self.clock.pass_by(seconds=(moment - self.model.now).total_seconds())

    def renewals_ran(self) -> None:
        bought = self.model.renew_due()
        assert (renew_tokens(), renew_tokens()) == (len(bought), 0)
        self.successors_are_known()

    def successors_are_known(self) -> None:
        known: Any = apps.get_model("tokens.AccessToken")._default_manager
        for token in self.model.tokens:
            if token not in self.ids:
                assert token.predecessor is not None
                self.ids[token] = known.get(predecessor=self.ids[token.predecessor]).pk
                assert token.bought is not None and token.activated is not None
                self.did("renewed late" if token.activated == token.bought else "renewed in time")
                if token.predecessor.payer is not token.owner:
                    self.did("given token renewed")
                if token.paid != token.predecessor.paid:
                    self.did("renewed at another price")

    @precondition(lambda self: self.model.tokens)
    @rule(which=WHICH)
    def a_worker_comes_back_to_a_renewal(self, which: int) -> None:
        """One that was done, or paused, or switched off, or is not due, or is."""
        token: Token = self.one_of(self.model.tokens, which)
        successor = self.model.renew_if_due(token)
        assert (renew_token(token_id=self.ids[token]) is not None) == (successor is not None)
        self.successors_are_known()

    @precondition(lambda self: any(token.successor for token in self.model.tokens))
    @rule(which=WHICH, used=st.sampled_from([-0.5, 0.0, 0.5, 1.2]), noted=st.booleans(), revoked=st.integers(0, 3))
    def an_end_is_crossed(self, which: int, used: float, noted: bool, revoked: int) -> None:
        """Or nearly; the take-over is written down then, or later; and one of the two may be revoked."""
        token: Token = self.one_of([token for token in self.model.tokens if token.successor], which)
        self.cross(token, used)
        if noted:
            self.takeovers_are_noted()
        if revoked < 2:
            self.revoke(token if revoked or token.successor is None else token.successor)

    def cross(self, token: Token, used: float) -> None:
        """Go to where a part of the successor is used, or to shortly before it starts."""
        successor = token.successor
        assert successor is not None and successor.activated is not None
        unit = token.lead if used < 0 else timedelta(hours=successor.hours)
        self.clock_reaches(successor.activated + unit * used)

    def takeovers_are_noted(self) -> None:
        """Twice; afterwards the rows say what the gateway knew."""
        self.tally["taken over"] += take_over()
        assert take_over() == 0
        for token in self.model.tokens:
            if token in self.secrets and token.successor is not None:
                meant = self.model.meant_by_secret_of(token)
                assert self.digests()[self.digest_of(token)] == self.ids[meant]

    def digest_of(self, token: Token) -> str:
        return hashlib.sha256(self.secrets[token].encode()).hexdigest()

    def digests(self) -> dict[str, Any]:
        return dict(rows("SELECT digest, id FROM tokens_accesstoken"))

    def teardown(self) -> None:
        for (event, _person, _subject, reason), count in self.model.notices.items():
            self.tally[f"{event}: {reason}" if reason else event] += count
        super().teardown()

    def jobs_ran(self) -> None:
        super().jobs_ran()
        self.renewals_ran()
        self.takeovers_are_noted()

    @invariant()
    def each_secret_stands_for_one_token(self) -> None:
        """Whatever was written down so far, for the check of a token as for the gateway."""
        for token in self.model.tokens:
            if token not in self.secrets or token.successor is None:
                continue
            meant = self.model.meant_by_secret_of(token)
            found = check_token(self.secrets[token])
            assert found is not None
            assert (found.pk, found.is_usable) == (self.ids[meant], self.model.lets_in(meant))
            credential = credential_by_digest(self.digest_of(token))
            assert credential is not None
            following = credential.successor
            goes_on = following is not None and following.activated_at <= self.model.now
            assert (following.token_id if following and goes_on else credential.token_id) == self.ids[meant]

    @invariant()
    def each_notice_was_given_once(self) -> None:
        stored = Counter(
            rows(
                "SELECT event, user_id, coalesce(data->>'token_id', data->>'tier'), coalesce(data->>'reason', '')"
                " FROM notifications_outboxevent WHERE event IN ('token.renewed', 'renewal.failed', 'renewal.stopped',"
                " 'tier.bought', 'tier.renewed', 'tier.cancelled', 'tier.resumed', 'tier.ended', 'tier.granted')"
            )
        )
        assert stored == {
            (event, self.users[person].pk, str(self.ids.get(subject, subject)), reason): count
            for (event, person, subject, reason), count in self.model.notices.items()
        }
