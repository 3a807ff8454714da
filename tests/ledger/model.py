"""The rules of money once more, in plain Python and whole cents, without a database and without the platform's code.

What docs/ledger.md promises is said here a second time, by other means, so that the platform can be held against it.
Every method either changes the model and returns what the platform should answer, or raises :class:`Refused` with the
code the platform should give and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction

MOST = 9_999_999_999
GIFT_DAYS = 14
GIFTS_A_DAY = 10
GIFT_HOURS_WITHOUT_APPROVAL = 24
BONUS_PERCENT = 10
BONUS_ABOVE = 10_000
FINALITY = ["open", "lost", "won"]
RENEWAL_LEAD_HOURS = 24
#: What renewals of an account may cost a day of UTC, unless it has a cap of its own.
DAILY_CAP = 70_000
FIRST_TIERS = {"free": 0, "premium": 1_000, "enterprise": 5_000}
FIRST_PRICES = {1: 100, 12: 1_000, 24: 1_800, 168: 10_000, 720: 30_000}
#: How many ZNC cost how much of a currency.
FIRST_RATES = {
    "RUB": (Fraction(1), Fraction(10)),
    "USD": (Fraction("9.30"), Fraction(1)),
    "EUR": (Fraction("10.8375"), Fraction(1)),
}


class Refused(Exception):
    """The platform refuses with this code, and nothing changes."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(eq=False)
class Bonus:
    """What a first qualifying purchase brings the one who referred the buyer. Cents."""

    referee: Person
    referrer: Person
    purchase: object
    paid: int
    amount: int
    held: bool = False
    rejected: bool = False
    refunded: int = 0
    paid_out: int = 0
    taken_back: int = 0

    @property
    def due(self) -> int:
        return self.amount - self.amount * self.refunded // self.paid


@dataclass(eq=False)
class Person:
    """``net`` is what somebody holds less what they owe; ``history`` the kind, amount and net after of each posting."""

    name: str
    referrer: Person | None = None
    active: bool = True
    net: int = 0
    history: list[tuple[str, int, int]] = field(default_factory=list)
    bonus: Bonus | None = None
    #: Whether tokens bought from now on renew themselves; of which duration only.
    renews: bool = False
    renews_hours: int | None = None
    daily_cap: int | None = None

    def __repr__(self) -> str:
        return self.name

    @property
    def balance(self) -> int:
        return max(self.net, 0)

    @property
    def owed(self) -> int:
        return max(-self.net, 0)


@dataclass(eq=False)
class Token:
    """An access token; ``purchase`` is shared by all that were paid for together.

    ``payer`` is whom a refund goes to, also when the token was given away; ``held`` while it is offered. A
    successor's ``activated`` is the moment it starts, which may lie ahead.
    """

    owner: Person
    hours: int
    paid: int
    purchase: object
    refunded: int = 0
    activated: datetime | None = None
    revoked_at: datetime | None = None
    held: bool = False
    renews: bool = False
    paused: str = ""
    predecessor: Token | None = None
    successor: Token | None = None
    bought: datetime | None = None
    payer: Person = field(init=False)

    def __post_init__(self) -> None:
        self.payer = self.owner

    @property
    def expires(self) -> datetime | None:
        return None if self.activated is None else self.activated + timedelta(hours=self.hours)

    @property
    def revoked(self) -> bool:
        return self.revoked_at is not None

    def is_over(self, now: datetime) -> bool:
        return self.expires is not None and self.expires <= now

    def is_scheduled(self, now: datetime) -> bool:
        return self.predecessor is not None and not self.revoked and self.activated is not None and self.activated > now

    @property
    def lead(self) -> timedelta:
        """How long before the end a successor is bought, and how long after it at most."""
        return min(timedelta(hours=RENEWAL_LEAD_HOURS), timedelta(hours=self.hours) / 10)

    @property
    def renewal_due(self) -> datetime | None:
        if not self.renews or self.paused or self.revoked or self.successor or self.expires is None:
            return None
        return self.expires - self.lead

    @property
    def renewal(self) -> str:
        """How its owner sees the renewal."""
        if self.successor is not None:
            return "renewed"
        return ("paused" if self.paused else "waiting") if self.renews else "off"


@dataclass(eq=False)
class Gift:
    """A token that is offered, or was; ``expires`` is none until staff have approved it, if they must."""

    token: Token
    giver: Person
    code: str
    created: datetime
    status: str
    expires: datetime | None

    @property
    def is_open(self) -> bool:
        return self.status in {"pending", "awaiting_approval"}


@dataclass(eq=False)
class Subscription:
    """A tier for a while: bought by the month, or given by staff and without an ``end`` of its own. Cents."""

    person: Person
    tier: str
    price: int
    started: datetime
    start: datetime
    end: datetime | None
    month: int = 0
    cancelled: datetime | None = None
    refunded: int = 0
    ended: datetime | None = None
    reason: str = ""


@dataclass(eq=False)
class Pack:
    """A bundle as it is sold."""

    name: str
    count: int
    hours: int
    base: int
    total: int


@dataclass(frozen=True)
class Facts:
    """What a provider says at once. ``amount`` in minor units, ``None`` for what was agreed."""

    told: str = ""
    amount: int | None = None
    refunded: int = 0
    disputes: tuple[tuple[str, str, int], ...] = ()


@dataclass(eq=False)
class Payment:
    """A top-up. ``cents`` are ZNC; ``amount``, ``refunded`` and disputes are minor units of the currency."""

    person: Person
    provider: str
    cents: int
    amount: int
    created: datetime
    status: str = "pending"
    paid: bool = False
    refunded: int = 0
    disputes: dict[str, tuple[str, int]] = field(default_factory=dict)
    held_back: int = 0


class Model:
    """The whole business."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.people: list[Person] = []
        self.tokens: list[Token] = []
        self.packs: list[Pack] = []
        self.payments: list[Payment] = []
        self.bonuses: list[Bonus] = []
        self.gifts: list[Gift] = []
        self.subscriptions: list[Subscription] = []
        #: Durations, and whether the scope of all tokens, are out of sale.
        self.not_sold: set[int] = set()
        self.scope_sold = True
        self.tiers = dict(FIRST_TIERS)
        self.tiers_not_sold: set[str] = set()
        #: Event, whom it is told, the token or tier, and the reason.
        self.notices: Counter[tuple[str, Person, object, str]] = Counter()
        self.system: Counter[str] = Counter()
        self.prices = {
            hours: [(datetime.min.replace(tzinfo=now.tzinfo), price)] for hours, price in FIRST_PRICES.items()
        }
        self.rates = dict(FIRST_RATES)

    # Postings

    def _credit(self, person: Person, kind: str, amount: int, system: str) -> None:
        if max(person.net + amount, 0) > MOST:
            raise Refused("balance_limit_exceeded")
        self._post(person, kind, amount, system)

    def _debit(self, person: Person, kind: str, amount: int, system: str) -> None:
        if amount > person.balance:
            raise Refused("debt_outstanding" if person.owed else "insufficient_balance")
        self._post(person, kind, -amount, system)

    def _take_back(self, person: Person, kind: str, amount: int, system: str) -> None:
        self._post(person, kind, -amount, system)

    def _post(self, person: Person, kind: str, signed: int, system: str) -> None:
        person.net += signed
        person.history.append((kind, signed, person.net))
        self.system[system] -= signed

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Undo the postings, and what they did to bonuses, when one of them is refused."""
        people = [(person, person.net, len(person.history)) for person in self.people]
        bonuses = [(bonus, vars(bonus).copy()) for bonus in self.bonuses]
        system = self.system.copy()
        try:
            yield
        except Refused:
            for person, net, postings in people:
                person.net = net
                del person.history[postings:]
            for bonus, state in bonuses:
                vars(bonus).update(state)
            self.system = system
            raise

    # Selling

    def price(self, hours: int) -> int:
        if hours in self.not_sold:
            raise Refused("duration_not_sold")
        _since, price = max(change for change in self.prices[hours] if change[0] <= self.now)
        return price

    def top_up(self, person: Person, cents: int) -> None:
        self._credit(person, "DEPOSIT", cents, "gateway:mock")

    def buy(self, person: Person, hours: int) -> Token:
        token = self._sell(person, hours, self.price(hours))
        token.renews = person.renews and person.renews_hours in (None, hours)
        return token

    def _sell(self, person: Person, hours: int, price: int) -> Token:
        self._debit(person, "PURCHASE", price, "revenue")
        token = Token(person, hours, price, purchase=object(), bought=self.now)
        self.tokens.append(token)
        self._award(person, price, token.purchase)
        return token

    def buy_pack(self, person: Person, pack: Pack) -> list[Token]:
        self._debit(person, "PURCHASE", pack.total, "revenue")
        share, more = divmod(pack.total, pack.count)
        purchase = object()
        tokens = [Token(person, pack.hours, share + (n < more), purchase) for n in range(pack.count)]
        self.tokens += tokens
        self._award(person, pack.total, purchase)
        return tokens

    def reprice_pack(self, pack: Pack, percent: int) -> None:
        """Take a whole number of percent off the base price; half a cent is the customer's."""
        pack.total = pack.base - (pack.base * percent * 2 + 100) // 200

    def _award(self, buyer: Person, paid: int, purchase: object) -> None:
        if buyer.referrer is None or buyer.bonus is not None or paid <= BONUS_ABOVE:
            return
        bonus = Bonus(buyer, buyer.referrer, purchase, paid, paid * BONUS_PERCENT // 100)
        buyer.bonus = bonus
        self.bonuses.append(bonus)
        if not bonus.referrer.active or max(bonus.referrer.net + bonus.amount, 0) > MOST:
            bonus.held = True
        else:
            self._pay_out(bonus)

    def _pay_out(self, bonus: Bonus) -> None:
        self._credit(bonus.referrer, "REFERRAL_BONUS", bonus.due, "promotions")
        bonus.paid_out, bonus.held = bonus.due, False

    def approve(self, bonus: Bonus) -> None:
        if not bonus.held:
            raise Refused("bonus_not_held")
        if not bonus.referrer.active:
            raise Refused("referrer_disabled")
        if bonus.due <= 0:
            raise Refused("nothing_left_to_pay")
        self._pay_out(bonus)

    def reject(self, bonus: Bonus) -> None:
        if not bonus.held:
            raise Refused("bonus_not_held")
        bonus.held, bonus.rejected = False, True

    # Tokens

    def activate(self, token: Token, at: datetime) -> bool:
        """Return whether this was what started the clock."""
        if token.revoked or token.held:
            raise Refused("token_not_usable")
        if token.activated is not None:
            return False
        token.activated = at
        return True

    def revoke(self, token: Token, *, refund: bool) -> list[tuple[Token, int]]:
        """Return what is paid back for which token: a successor goes with the token that it renews."""
        self._demand_usable(token)
        together = [token]
        if token.successor is not None and not token.successor.revoked:
            together.append(token.successor)
        with self._all_or_nothing():
            back = [(one, self._pay_back(one) if refund else 0) for one in together]
        if token.is_scheduled(self.now):
            assert token.predecessor is not None
            token.predecessor.renews = False
        for one, amount in back:
            one.revoked_at, one.refunded = self.now, amount
        return back

    def _demand_usable(self, token: Token) -> None:
        if token.revoked:
            raise Refused("token_already_revoked")
        if token.is_over(self.now):
            raise Refused("token_expired")
        if token.held:
            raise Refused("token_held")

    def _pay_back(self, token: Token) -> int:
        amount = self._unused(token)
        if amount:
            self._credit(token.payer, "REFUND", amount, "revenue")
            for bonus in self.bonuses:
                if bonus.purchase is token.purchase and not bonus.rejected:
                    self._share_of_bonus_back(bonus, amount)
        return amount

    def _unused(self, token: Token) -> int:
        if token.expires is None:
            return token.paid
        # Whole seconds, a begun one being used.
        seconds = (token.expires - self.now) // timedelta(seconds=1)
        if token.is_scheduled(self.now):
            return token.paid
        return int(Fraction(token.paid) * seconds / (token.hours * 3600))

    def _share_of_bonus_back(self, bonus: Bonus, refunded: int) -> None:
        bonus.refunded += refunded
        if bonus.held:
            return
        excess = bonus.paid_out - bonus.taken_back - bonus.due
        if excess > 0:
            self._take_back(bonus.referrer, "REFERRAL_REVERSAL", excess, "promotions")
            bonus.taken_back += excess

    # Gifts

    def offer(self, token: Token, code: str) -> Gift:
        self._demand_usable(token)
        if token.activated is not None:
            raise Refused("token_activated")
        if self.gifts_today(token.owner) >= GIFTS_A_DAY:
            raise Refused("gift_limit_reached")
        gift = Gift(token, token.owner, code, self.now, "awaiting_approval", None)
        if token.hours <= GIFT_HOURS_WITHOUT_APPROVAL:
            self._offered_from_now(gift)
        token.held = True
        self.gifts.append(gift)
        return gift

    def gifts_today(self, giver: Person) -> int:
        return sum(gift.giver is giver and gift.created > self.now - timedelta(days=1) for gift in self.gifts)

    def _offered_from_now(self, gift: Gift) -> None:
        gift.status, gift.expires = "pending", self.now + timedelta(days=GIFT_DAYS)

    def claim(self, gift: Gift, claimer: Person) -> None:
        if claimer is gift.giver:
            raise Refused("own_gift")
        self._demand_open(gift)
        if gift.status == "awaiting_approval":
            raise Refused("gift_awaits_approval")
        assert gift.expires is not None
        if gift.expires <= self.now:
            raise Refused("gift_expired")
        if not (gift.giver.active and claimer.active):
            raise Refused("gift_unavailable")
        gift.status, gift.token.held, gift.token.owner = "claimed", False, claimer
        # Whoever gave it decides nothing about the claimer's money.
        gift.token.renews = False

    def take_back_gift(self, gift: Gift, status: str) -> None:
        """``cancelled`` by the giver or ``rejected`` by staff."""
        self._demand_open(gift)
        gift.status, gift.token.held = status, False

    def approve_gift(self, gift: Gift) -> None:
        if gift.status != "awaiting_approval":
            raise Refused("gift_not_awaiting_approval")
        self._offered_from_now(gift)

    def return_expired_gifts(self) -> None:
        for gift in self.gifts:
            if gift.status == "pending" and gift.expires is not None and gift.expires <= self.now:
                gift.status, gift.token.held = "expired", False

    def _demand_open(self, gift: Gift) -> None:
        if not gift.is_open:
            raise Refused(
                {"claimed": "gift_already_claimed", "expired": "gift_expired"}.get(gift.status, "gift_cancelled")
            )

    # Renewals

    def set_default(self, person: Person, *, enabled: bool, hours: int | None) -> None:
        person.renews, person.renews_hours = enabled, hours

    def switch_renewal(self, token: Token, *, on: bool) -> None:
        """Switching on ends a pause, and what is due is tried at once."""
        if not on:
            if token.held:
                raise Refused("token_held")
            token.renews, token.paused = False, ""
            return
        self._demand_usable(token)
        token.renews, token.paused = True, ""
        self.renew_if_due(token)

    def stop_renewal(self, token: Token) -> bool:
        if not token.renews:
            return False
        token.renews, token.paused = False, ""
        self.notices["renewal.stopped", token.owner, token, "test"] += 1
        return True

    def renew_due(self) -> list[Token]:
        """Return the successors that were bought; whose end is nearest to being missed comes first."""
        due = [(token.renewal_due, token) for token in self.tokens if token.renewal_due is not None]
        successors = [self.renew_if_due(token) for _when, token in sorted(due, key=lambda one: one[0])]
        return [successor for successor in successors if successor]

    def renew_if_due(self, token: Token) -> Token | None:
        if token.renewal_due is None or token.renewal_due > self.now:
            return None
        try:
            successor = self._renew(token)
        except Refused as refusal:
            token.paused = refusal.code
            self.notices["renewal.failed", token.owner, token, refusal.code] += 1
            return None
        self.notices["token.renewed", token.owner, token, ""] += 1
        return successor

    def _renew(self, token: Token) -> Token:
        owner, end = token.owner, token.expires
        assert end is not None
        if not owner.active:
            raise Refused("owner_disabled")
        if self.now > end + token.lead:
            raise Refused("token_expired")
        price = self.price(token.hours)
        if not self.scope_sold:
            raise Refused("scope_not_sold")
        cap = DAILY_CAP if owner.daily_cap is None else owner.daily_cap
        if self.renewals_cost_today(owner) + price > cap:
            raise Refused("daily_cap_reached")
        successor = self._sell(owner, token.hours, price)
        successor.activated = max(end, self.now)
        successor.renews, successor.predecessor = True, token
        token.successor = successor
        return successor

    def renewals_cost_today(self, owner: Person) -> int:
        """Also those that were paid back meanwhile."""
        return sum(
            token.paid
            for token in self.tokens
            if token.owner is owner
            and token.predecessor is not None
            and token.bought is not None
            and token.bought.date() == self.now.date()
        )

    def meant_by_secret_of(self, token: Token) -> Token:
        """Return what the secret that this token was bought with stands for now."""
        while (following := token.successor) is not None:
            assert following.activated is not None
            began = following.activated <= self.now
            if not began or (following.revoked_at is not None and following.revoked_at < following.activated):
                break
            token = following
        return token

    def lets_in(self, token: Token) -> bool:
        return not (token.revoked or token.held or token.is_over(self.now))

    # Tiers

    def subscription(self, person: Person) -> Subscription | None:
        current = [one for one in self.subscriptions if one.person is person and one.ended is None]
        return current[0] if current else None

    def tier(self, person: Person) -> str:
        current = self.subscription(person)
        return "free" if current is None else current.tier

    def choose_tier(self, person: Person, tier: str) -> None:
        if tier in self.tiers_not_sold:
            raise Refused("tier_not_sold")
        current = self.subscription(person)
        if tier == self.tier(person):
            if current is None or current.cancelled is None:
                raise Refused("tier_unchanged")
            current.cancelled = None
            self._tell("tier.resumed", current)
        elif tier == "free":
            assert current is not None
            self._cancel(current)
        else:
            chosen = Subscription(
                person, tier, self.tiers[tier], self.now, start=self.now, end=month_after(self.now, 1)
            )
            with self._all_or_nothing():
                back = self._credit_unused(current)
                self._debit(person, "SUBSCRIPTION", chosen.price, "revenue")
            self._end(current, "changed", back)
            self.subscriptions.append(chosen)
            self._tell("tier.bought", chosen)

    def _cancel(self, current: Subscription) -> None:
        """What is paid stays to the end of its month; what was given goes at once."""
        if current.end is None:
            self._end(current, "cancelled")
        elif current.cancelled is not None:
            raise Refused("tier_unchanged")
        else:
            current.cancelled = self.now
            self._tell("tier.cancelled", current)

    def grant_tier(self, person: Person, tier: str) -> None:
        """Staff give a tier, or take away what somebody has."""
        current = self.subscription(person)
        if current is None and tier == "free":
            raise Refused("tier_unchanged")
        self._end(current, "set_by_staff", self._credit_unused(current))
        if tier != "free":
            given = Subscription(person, tier, 0, self.now, start=self.now, end=None)
            self.subscriptions.append(given)
            self._tell("tier.granted", given, "test")

    def renew_tiers(self) -> int:
        """Return how many go on."""
        return sum(self._next_month(one) for one in self.subscriptions if one.ended is None)

    def _next_month(self, one: Subscription) -> bool:
        if one.end is None or one.end > self.now:
            return False
        if one.cancelled is not None:
            self._end(one, "cancelled")
        elif not one.person.active:
            self._end(one, "user_disabled")
        elif one.tier in self.tiers_not_sold:
            self._end(one, "tier_not_sold")
        else:
            try:
                self._debit(one.person, "SUBSCRIPTION", self.tiers[one.tier], "revenue")
            except Refused:
                self._end(one, "insufficient_balance")
                return False
            one.price = self.tiers[one.tier]
            # Months that nobody collected are skipped, never paid later.
            while one.end <= self.now:
                one.month += 1
                one.start, one.end = one.end, month_after(one.started, one.month + 1)
            self._tell("tier.renewed", one)
            return True
        return False

    def _credit_unused(self, one: Subscription | None) -> int:
        if one is None or one.end is None or one.end <= self.now:
            return 0
        second = timedelta(seconds=1)
        back = int(Fraction(one.price) * ((one.end - self.now) // second) / ((one.end - one.start) // second))
        if back:
            self._credit(one.person, "REFUND", back, "revenue")
        return back

    def _end(self, one: Subscription | None, reason: str, refunded: int = 0) -> None:
        if one is not None:
            one.ended, one.reason, one.refunded = self.now, reason, refunded
            self._tell("tier.ended", one, reason)

    def _tell(self, event: str, one: Subscription, reason: str = "") -> None:
        self.notices[event, one.person, one.tier, reason] += 1

    # Payments

    def agree(self, person: Person, provider: str, currency: str, *, znc: int | None, amount: int | None) -> Payment:
        """One of ``znc`` (cents) and ``amount`` (minor units) is given; every currency here has hundredths."""
        rate_znc, rate_currency = self.rates[currency]
        if znc is not None:
            amount = -int(-znc * rate_currency // rate_znc)
        else:
            assert amount is not None
            znc = int(amount * rate_znc / rate_currency)
        if znc <= 0:
            raise Refused("amount_not_payable")
        pending = sum(one.cents for one in self.payments if one.person is person and one.status == "pending")
        if person.balance + pending + znc > MOST:
            raise Refused("balance_limit_exceeded")
        payment = Payment(person, provider, znc, amount, self.now)
        self.payments.append(payment)
        return payment

    def learn(self, payment: Payment, facts: Facts) -> None:
        """Take in what a provider says, whatever was said before."""
        if facts.told == "succeeded" and not payment.paid:
            if facts.amount not in (None, payment.amount):
                raise Refused("payment_mismatch")
            self._credit(payment.person, "DEPOSIT", payment.cents, f"gateway:{payment.provider}")
            payment.paid = True
        elif facts.told == "canceled" and payment.status == "pending":
            payment.status = "canceled"
        payment.refunded = max(payment.refunded, min(facts.refunded, payment.amount))
        for name, outcome, amount in facts.disputes:
            known = payment.disputes.get(name)
            if known is None or FINALITY.index(outcome) >= FINALITY.index(known[0]):
                payment.disputes[name] = (outcome, min(amount, payment.amount))
        if payment.paid:
            self._settle(payment)

    def _settle(self, payment: Payment) -> None:
        disputed = sum(amount for outcome, amount in payment.disputes.values() if outcome != "won")
        gone = min(payment.refunded + disputed, payment.amount)
        held_back = int(Fraction(payment.cents) * gone / payment.amount)
        more = held_back - payment.held_back
        if more > 0:
            self._take_back(payment.person, "CHARGEBACK", more, f"gateway:{payment.provider}")
        elif more < 0:
            self._credit(payment.person, "CHARGEBACK_REVERSAL", -more, f"gateway:{payment.provider}")
        payment.held_back = held_back
        if payment.refunded == payment.amount:
            payment.status = "refunded"
        else:
            payment.status = "disputed" if disputed else "succeeded"

    def may_refund(self, payment: Payment, amount: int | None) -> int:
        """Return how much staff would pay back, in minor units."""
        left = payment.amount - payment.refunded
        wanted = left if amount is None else amount
        if payment.status != "succeeded" or wanted > left:
            raise Refused("payment_not_refundable")
        return wanted

    def must_hold(self) -> Iterable[str]:
        """Yield what is wrong with the model itself."""
        if sum(person.net for person in self.people) + sum(self.system.values()):
            yield "money appeared or vanished"
        for purchase in {token.purchase for token in self.tokens}:
            together = [token for token in self.tokens if token.purchase is purchase]
            if sum(token.refunded for token in together) > sum(token.paid for token in together):
                yield "more was refunded than paid"
        followed = Counter(token.predecessor for token in self.tokens if token.predecessor is not None)
        if any(count > 1 for count in followed.values()):
            yield "a token was renewed twice"
        holders = Counter(one.person for one in self.subscriptions if one.ended is None)
        if any(count > 1 for count in holders.values()):
            yield "somebody has two tiers"
        for subscription in self.subscriptions:
            if not 0 <= subscription.refunded <= subscription.price:
                yield "more was paid back for a month than it cost"
        for bonus in self.bonuses:
            if not 0 <= bonus.taken_back <= bonus.paid_out <= bonus.amount:
                yield "a bonus was paid or taken back twice"


def month_after(moment: datetime, months: int) -> datetime:
    """Return the same day so many months later, the last one where that month is shorter."""
    year, month = divmod(moment.year * 12 + moment.month - 1 + months, 12)
    for day in range(moment.day, moment.day - 4, -1):
        try:
            return moment.replace(year=year, month=month + 1, day=day)
        except ValueError:
            continue
    raise AssertionError(moment)
