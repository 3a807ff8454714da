"""The rules of money once more, in plain Python and whole cents, without a database and without the platform's code.

What docs/ledger.md promises is said here a second time, by other means, so that the platform can be held against it.
Every method either changes the model and returns what the platform should answer, or raises :class:`Refused` with the
code the platform should give and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
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

    ``payer`` is whom a refund goes to, also when the token was given away; ``held`` while it is offered.
    """

    owner: Person
    hours: int
    paid: int
    purchase: object
    refunded: int = 0
    activated: datetime | None = None
    revoked: bool = False
    held: bool = False
    payer: Person = field(init=False)

    def __post_init__(self) -> None:
        self.payer = self.owner

    @property
    def expires(self) -> datetime | None:
        return None if self.activated is None else self.activated + timedelta(hours=self.hours)

    def is_over(self, now: datetime) -> bool:
        return self.expires is not None and self.expires <= now


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

    # Selling

    def price(self, hours: int) -> int:
        _since, price = max(change for change in self.prices[hours] if change[0] <= self.now)
        return price

    def top_up(self, person: Person, cents: int) -> None:
        self._credit(person, "DEPOSIT", cents, "gateway:mock")

    def buy(self, person: Person, hours: int) -> Token:
        price = self.price(hours)
        self._debit(person, "PURCHASE", price, "revenue")
        token = Token(person, hours, price, purchase=object())
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

    def revoke(self, token: Token, *, refund: bool) -> int:
        if token.revoked:
            raise Refused("token_already_revoked")
        if token.is_over(self.now):
            raise Refused("token_expired")
        if token.held:
            raise Refused("token_held")
        amount = self._unused(token) if refund else 0
        if amount:
            self._credit(token.payer, "REFUND", amount, "revenue")
            for bonus in self.bonuses:
                if bonus.purchase is token.purchase and not bonus.rejected:
                    self._share_of_bonus_back(bonus, amount)
        token.revoked = True
        token.refunded = amount
        return amount

    def _unused(self, token: Token) -> int:
        if token.expires is None:
            return token.paid
        # Whole seconds, a begun one being used.
        seconds = (token.expires - self.now) // timedelta(seconds=1)
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
        if token.revoked:
            raise Refused("token_already_revoked")
        if token.is_over(self.now):
            raise Refused("token_expired")
        if token.held:
            raise Refused("token_held")
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
        for bonus in self.bonuses:
            if not 0 <= bonus.taken_back <= bonus.paid_out <= bonus.amount:
                yield "a bonus was paid or taken back twice"
