"""The ledger: accounts and the transfers between them."""

from __future__ import annotations

import uuid

import pgtrigger
from django.conf import settings
from django.core.validators import RegexValidator
from django.db import models
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from zenzefi.lib.money import MAX_AMOUNT, ZERO


class Account(models.Model):
    """A place money can be: one per user, and a few of the system's own.

    A user's account caches its balance under ``CHECK (balance >= 0)``; ``owed`` is what a claw-back could not
    take and later credits pay first, so one of the two is always zero, and ``balance - owed`` is the sum of the
    account's transfers. System accounts cache nothing: they are in every purchase, and a cached balance there
    would make every purchase wait for every other.
    """

    class System(models.TextChoices):
        REVENUE = "revenue", _("Revenue")
        PROMOTIONS = "promotions", _("Promotions")
        ADJUSTMENTS = "adjustments", _("Adjustments")
        GATEWAY_MOCK = "gateway:mock", _("Payment gateway: mock")
        GATEWAY_STRIPE = "gateway:stripe", _("Payment gateway: Stripe")
        GATEWAY_YOOKASSA = "gateway:yookassa", _("Payment gateway: YooKassa")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.OneToOneField(
        settings.AUTH_USER_MODEL,
        verbose_name=_("user"),
        null=True,
        blank=True,
        editable=False,
        on_delete=models.PROTECT,
        related_name="wallet_account",
    )
    system = models.CharField(_("system account"), max_length=64, null=True, blank=True, unique=True, editable=False)
    balance = models.DecimalField(_("balance"), max_digits=14, decimal_places=2, default=ZERO, editable=False)
    owed = models.DecimalField(_("owed"), max_digits=14, decimal_places=2, default=ZERO, editable=False)
    #: How many transfers a user's account has, so that a page of a long history need not count it.
    postings = models.PositiveBigIntegerField(_("transfers"), default=0, editable=False)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)

    class Meta:
        verbose_name = _("account")
        verbose_name_plural = _("accounts")
        constraints = [
            models.CheckConstraint(condition=Q(balance__gte=0), name="wallet_account_balance_not_negative"),
            models.CheckConstraint(condition=Q(owed__gte=0), name="wallet_account_owed_not_negative"),
            models.CheckConstraint(condition=Q(balance=0) | Q(owed=0), name="wallet_account_balance_or_owed"),
            models.CheckConstraint(condition=Q(balance__lte=MAX_AMOUNT), name="wallet_account_balance_bounded"),
            models.CheckConstraint(
                condition=Q(user__isnull=False, system__isnull=True) | Q(user__isnull=True, system__isnull=False),
                name="wallet_account_user_or_system",
            ),
            models.CheckConstraint(
                condition=Q(user__isnull=False) | Q(balance=0, owed=0, postings=0),
                name="wallet_account_system_caches_nothing",
            ),
        ]

    def __str__(self) -> str:
        return self.system or str(self.user)

    @property
    def is_system(self) -> bool:
        return self.system is not None


def _side_is_consistent(side: str) -> Q:
    """What one side of a transfer leaves behind: nothing known, or a balance and a debt of which one is zero."""
    balance, owed = f"{side}_balance_after", f"{side}_owed_after"
    # A comparison with NULL is not false, and a CHECK refuses only what is false: NULL is excluded by name.
    return Q(**{f"{balance}__isnull": True, f"{owed}__isnull": True}) | (
        Q(**{f"{balance}__isnull": False, f"{owed}__isnull": False, f"{balance}__gte": 0, f"{owed}__gte": 0})
        & (Q(**{balance: 0}) | Q(**{owed: 0}))
    )


class TransferQuerySet(models.QuerySet["Transfer"]):
    def of(self, account: Account, side: str, *, newest_first: bool = True) -> TransferQuerySet:
        """The transfers that have the account on one side (``debit`` or ``credit``), in their order.

        Asked for as a range of one and ordered by the account first, so that only the index on both can give that
        order. Otherwise PostgreSQL, which takes an account's rows to be spread evenly, may walk the primary key
        through everything that others have posted since.
        """
        column = f"{side}_account_id"
        order = [column, "-id"] if newest_first else [f"-{column}", "id"]
        return self.filter(**{f"{side}_account__gte": account, f"{side}_account__lte": account}).order_by(*order)


class Transfer(models.Model):
    """One double entry: ``amount`` ZNC left the debit account and arrived on the credit account.

    Append-only: the database refuses UPDATE, DELETE and TRUNCATE; a correction is another transfer. ``source``
    names what it came from (``token:<id>``, ``payment:<id>``) and is unique per kind, so every posting happens once.
    """

    class Kind(models.TextChoices):
        DEPOSIT = "DEPOSIT", _("Deposit")
        PURCHASE = "PURCHASE", _("Purchase")
        SUBSCRIPTION = "SUBSCRIPTION", _("Subscription")
        REFUND = "REFUND", _("Refund")
        REFERRAL_BONUS = "REFERRAL_BONUS", _("Referral bonus")
        REFERRAL_REVERSAL = "REFERRAL_REVERSAL", _("Referral bonus taken back")
        ADJUSTMENT = "ADJUSTMENT", _("Adjustment")
        CHARGEBACK = "CHARGEBACK", _("Chargeback")
        CHARGEBACK_REVERSAL = "CHARGEBACK_REVERSAL", _("Chargeback given back")

    #: The order of postings; under an account's lock it is also the order on that account.
    id = models.BigAutoField(primary_key=True)
    #: What the API shows as ``id``.
    public_id = models.UUIDField(unique=True, default=uuid.uuid4, editable=False)
    debit_account = models.ForeignKey(
        Account, on_delete=models.PROTECT, related_name="debits", verbose_name=_("debit account"), db_index=False
    )
    credit_account = models.ForeignKey(
        Account, on_delete=models.PROTECT, related_name="credits", verbose_name=_("credit account"), db_index=False
    )
    amount = models.DecimalField(_("amount"), max_digits=14, decimal_places=2)
    kind = models.CharField(_("kind"), max_length=32, choices=Kind.choices)
    source = models.CharField(_("source"), max_length=128)
    description = models.CharField(_("description"), max_length=255, blank=True, default="")
    #: The user accounts' balance and debt right after; null on the side of a system account.
    debit_balance_after = models.DecimalField(
        _("balance after, debit account"), max_digits=14, decimal_places=2, null=True
    )
    debit_owed_after = models.DecimalField(_("owed after, debit account"), max_digits=14, decimal_places=2, null=True)
    credit_balance_after = models.DecimalField(
        _("balance after, credit account"), max_digits=14, decimal_places=2, null=True
    )
    credit_owed_after = models.DecimalField(_("owed after, credit account"), max_digits=14, decimal_places=2, null=True)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)

    objects = TransferQuerySet.as_manager()

    class Meta:
        verbose_name = _("transfer")
        verbose_name_plural = _("transfers")
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["debit_account", "-id"], name="wallet_transfer_debit"),
            models.Index(fields=["credit_account", "-id"], name="wallet_transfer_credit"),
            models.Index(fields=["created_at"], name="wallet_transfer_created"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["kind", "source"], name="wallet_transfer_once"),
            models.CheckConstraint(condition=Q(amount__gt=0), name="wallet_transfer_amount_positive"),
            models.CheckConstraint(
                condition=~Q(debit_account=F("credit_account")), name="wallet_transfer_two_accounts"
            ),
            models.CheckConstraint(condition=_side_is_consistent("debit"), name="wallet_transfer_debit_side"),
            models.CheckConstraint(condition=_side_is_consistent("credit"), name="wallet_transfer_credit_side"),
        ]
        triggers = [
            pgtrigger.Protect(name="append_only", operation=pgtrigger.Update | pgtrigger.Delete),
            # TRUNCATE fires no row trigger.
            pgtrigger.Trigger(
                name="no_truncate",
                level=pgtrigger.Statement,
                when=pgtrigger.Before,
                operation=pgtrigger.Truncate,
                func="RAISE EXCEPTION 'Transfers are append-only: % cannot be truncated', TG_TABLE_NAME;",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.amount}"


class Currency(models.Model):
    """A currency that ZNC can be paid in. It is sold while it is active and has a rate."""

    code = models.CharField(
        _("code"),
        max_length=3,
        primary_key=True,
        validators=[RegexValidator(r"\A[A-Z]{3}\Z", _("Three capital letters, as in ISO 4217."))],
    )
    name = models.CharField(_("name"), max_length=64)
    minor_unit_digits = models.PositiveSmallIntegerField(
        _("digits of the minor unit"),
        default=2,
        help_text=_("Decimal places of an amount (ISO 4217): 2 for most, 0 for JPY, 3 for KWD."),
    )
    is_active = models.BooleanField(_("active"), default=True)

    class Meta:
        verbose_name = _("currency")
        verbose_name_plural = _("currencies")
        ordering = ["code"]
        constraints = [
            models.CheckConstraint(condition=Q(code__regex=r"^[A-Z]{3}$"), name="wallet_currency_code_iso"),
            models.CheckConstraint(condition=Q(minor_unit_digits__lte=3), name="wallet_currency_minor_unit_digits"),
        ]

    def __str__(self) -> str:
        return self.code


class ExchangeRate(models.Model):
    """``znc_amount`` ZNC cost ``currency_amount`` of the currency, from a date until the next rate's.

    A pair, because neither direction alone can hold every rate exactly: 1 ZNC for 12.00 RUB is no finite number of
    ZNC per rouble, and 10.8375 ZNC for 1 EUR no finite price of a ZNC. Append-only: a new rate is a new row.
    """

    currency = models.ForeignKey(Currency, on_delete=models.PROTECT, related_name="rates", verbose_name=_("currency"))
    znc_amount = models.DecimalField(_("ZNC"), max_digits=18, decimal_places=8, default=1)
    currency_amount = models.DecimalField(_("cost in the currency"), max_digits=18, decimal_places=8, default=1)
    effective_from = models.DateTimeField(_("effective from"), default=timezone.now)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)

    class Meta:
        verbose_name = _("exchange rate")
        verbose_name_plural = _("exchange rates")
        ordering = ["currency", "-effective_from", "-id"]
        constraints = [
            models.UniqueConstraint(fields=["currency", "effective_from"], name="wallet_rate_one_per_moment"),
            models.CheckConstraint(
                condition=Q(znc_amount__gt=0, currency_amount__gt=0), name="wallet_rate_amounts_positive"
            ),
        ]
        triggers = [pgtrigger.Protect(name="append_only", operation=pgtrigger.Update | pgtrigger.Delete)]

    def __str__(self) -> str:
        return f"{self.znc_amount.normalize():f} ZNC = {self.currency_amount.normalize():f} {self.currency_id}"


class ReceiptSeries(models.Model):
    """The last receipt number given in a year; counted under its row lock, so the numbers have no gap."""

    year = models.PositiveSmallIntegerField(_("year"), primary_key=True)
    last_number = models.PositiveIntegerField(_("last number"), default=0)

    class Meta:
        verbose_name = _("receipt series")
        verbose_name_plural = _("receipt series")

    def __str__(self) -> str:
        return f"{self.year}: {self.last_number}"


#: Money that arrives after a cancellation is the customer's and is credited like any other. From pending a
#: payment goes straight to refunded or disputed when that was told before the success.
PAYMENT_TRANSITIONS = [
    ("pending", "succeeded"),
    ("pending", "canceled"),
    ("pending", "refunded"),
    ("pending", "disputed"),
    ("canceled", "succeeded"),
    ("canceled", "refunded"),
    ("canceled", "disputed"),
    ("succeeded", "refunded"),
    ("succeeded", "disputed"),
    ("disputed", "succeeded"),
    ("disputed", "refunded"),
]


class Payment(models.Model):
    """A top-up through a payment provider, in one currency at the rate of the moment it was asked for.

    What was agreed never changes, and ``status`` moves only along :data:`PAYMENT_TRANSITIONS`; the database sees to it.
    ``status`` follows from what the provider told (paid, refunded so far, disputes), whatever the order:
    see :func:`wallet.payments.services.apply_provider_state`.
    """

    class Status(models.TextChoices):
        PENDING = "pending", _("Pending")
        SUCCEEDED = "succeeded", _("Succeeded")
        CANCELED = "canceled", _("Canceled")
        REFUNDED = "refunded", _("Refunded")
        DISPUTED = "disputed", _("Disputed")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="payments", verbose_name=_("user")
    )
    provider = models.CharField(_("provider"), max_length=32)
    status = models.CharField(_("status"), max_length=16, choices=Status.choices, default=Status.PENDING)
    amount_znc = models.DecimalField(_("amount, ZNC"), max_digits=14, decimal_places=2)
    amount = models.DecimalField(_("amount"), max_digits=20, decimal_places=3)
    currency = models.ForeignKey(Currency, on_delete=models.PROTECT, related_name="+", verbose_name=_("currency"))
    rate_znc_amount = models.DecimalField(_("rate: ZNC"), max_digits=18, decimal_places=8)
    rate_currency_amount = models.DecimalField(_("rate: cost in the currency"), max_digits=18, decimal_places=8)
    return_url = models.URLField(_("return address"), max_length=2048)
    payment_url = models.URLField(_("payment page"), max_length=4096, blank=True, default="")
    #: The provider's own id of what it was asked for (Checkout Session, payment), and of the money movement behind
    #: it where that is another object (Stripe's PaymentIntent). Null while unknown, since they are unique.
    provider_payment_id = models.CharField(_("provider's id"), max_length=255, null=True, blank=True)  # noqa: DJ001
    provider_reference = models.CharField(_("provider's reference"), max_length=255, null=True, blank=True)  # noqa: DJ001
    idempotency_hash = models.BinaryField(max_length=32, null=True, editable=False)
    request_hash = models.BinaryField(max_length=32, null=True, editable=False)
    #: In the payment's currency, cumulative.
    refunded_amount = models.DecimalField(_("refunded"), max_digits=20, decimal_places=3, default=0)
    #: ZNC of this payment that refunds and disputes hold back at present.
    reversed_znc = models.DecimalField(_("taken back, ZNC"), max_digits=14, decimal_places=2, default=ZERO)
    #: How often credits were taken or given back; makes the source of each such posting unique.
    reversals = models.PositiveIntegerField(_("postings after the deposit"), default=0)
    receipt_number = models.CharField(_("receipt number"), max_length=32, null=True, blank=True, unique=True)
    poll_at = models.DateTimeField(_("ask the provider at"), null=True, blank=True)
    polls = models.PositiveIntegerField(_("times asked"), default=0)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    succeeded_at = models.DateTimeField(_("succeeded at"), null=True, blank=True)
    canceled_at = models.DateTimeField(_("canceled at"), null=True, blank=True)

    class Meta:
        verbose_name = _("payment")
        verbose_name_plural = _("payments")
        ordering = ["-created_at", "-id"]
        permissions = [
            ("ask_provider", _("Can ask the provider about a payment")),
            ("refund_payment", _("Can refund a payment")),
        ]
        indexes = [
            models.Index(fields=["user", "-created_at", "-id"], name="wallet_payment_of_user"),
            models.Index(fields=["poll_at"], condition=Q(poll_at__isnull=False), name="wallet_payment_due"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["provider", "provider_payment_id"], name="wallet_payment_provider_id"),
            models.UniqueConstraint(fields=["provider", "provider_reference"], name="wallet_payment_provider_ref"),
            models.UniqueConstraint(fields=["user", "idempotency_hash"], name="wallet_payment_idempotency"),
            models.CheckConstraint(condition=Q(amount_znc__gt=0, amount__gt=0), name="wallet_payment_positive"),
            models.CheckConstraint(
                condition=Q(refunded_amount__gte=0, refunded_amount__lte=F("amount")),
                name="wallet_payment_refund_within_amount",
            ),
            models.CheckConstraint(
                condition=Q(reversed_znc__gte=0, reversed_znc__lte=F("amount_znc")),
                name="wallet_payment_reversed_within_amount",
            ),
            models.CheckConstraint(
                condition=Q(status__in=["pending", "canceled"], succeeded_at__isnull=True, receipt_number__isnull=True)
                | Q(
                    status__in=["succeeded", "refunded", "disputed"],
                    succeeded_at__isnull=False,
                    receipt_number__isnull=False,
                ),
                name="wallet_payment_receipt_when_paid",
            ),
        ]
        triggers = [
            pgtrigger.FSM(name="status_forward", field="status", transitions=PAYMENT_TRANSITIONS),
            pgtrigger.ReadOnly(
                name="agreed_is_fixed",
                fields=[
                    "user",
                    "provider",
                    "amount_znc",
                    "amount",
                    "currency",
                    "rate_znc_amount",
                    "rate_currency_amount",
                    "created_at",
                ],
            ),
        ]

    def __str__(self) -> str:
        return f"{self.id} {self.status}"

    @property
    def is_paid(self) -> bool:
        return self.succeeded_at is not None


class PaymentDispute(models.Model):
    """A customer's bank took the payment, or a part of it, back for the time being or for good."""

    class Outcome(models.TextChoices):
        OPEN = "open", _("Open")
        LOST = "lost", _("Lost")
        WON = "won", _("Won")

    payment = models.ForeignKey(Payment, on_delete=models.PROTECT, related_name="disputes", verbose_name=_("payment"))
    provider_dispute_id = models.CharField(_("provider's id"), max_length=255)
    outcome = models.CharField(_("outcome"), max_length=8, choices=Outcome.choices)
    #: In the payment's currency.
    amount = models.DecimalField(_("amount"), max_digits=20, decimal_places=3)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated at"), auto_now=True)

    class Meta:
        verbose_name = _("dispute")
        verbose_name_plural = _("disputes")
        constraints = [
            models.UniqueConstraint(fields=["payment", "provider_dispute_id"], name="wallet_dispute_once"),
            models.CheckConstraint(condition=Q(amount__gt=0), name="wallet_dispute_amount_positive"),
        ]

    def __str__(self) -> str:
        return f"{self.provider_dispute_id} {self.outcome}"


class PaymentRefund(models.Model):
    """A refund that staff asked the provider for. Its id is the key under which the provider does it once."""

    class Status(models.TextChoices):
        REQUESTED = "requested", _("Requested")
        DONE = "done", _("Done")
        REFUSED = "refused", _("Refused")
        #: The provider never answered within the time it remembers the key for; staff look at its own pages.
        UNKNOWN = "unknown", _("Outcome unknown")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    payment = models.ForeignKey(Payment, on_delete=models.PROTECT, related_name="refunds", verbose_name=_("payment"))
    #: In the payment's currency.
    amount = models.DecimalField(_("amount"), max_digits=20, decimal_places=3)
    reason = models.CharField(_("reason"), max_length=255)
    requested_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+", verbose_name=_("requested by")
    )
    status = models.CharField(_("status"), max_length=16, choices=Status.choices, default=Status.REQUESTED)
    provider_refund_id = models.CharField(_("provider's id"), max_length=255, blank=True, default="")
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)

    class Meta:
        verbose_name = _("payment refund")
        verbose_name_plural = _("payment refunds")
        constraints = [
            # The next one is asked for when the provider has answered this one: what is left is then known.
            models.UniqueConstraint(
                fields=["payment"], condition=Q(status="requested"), name="wallet_refund_one_at_a_time"
            ),
            models.CheckConstraint(condition=Q(amount__gt=0), name="wallet_refund_amount_positive"),
        ]

    def __str__(self) -> str:
        return f"{self.amount} {self.status}"


class PaymentEvent(models.Model):
    """What a provider told us, as it came; stored before anything is done about it."""

    provider = models.CharField(_("provider"), max_length=32)
    event_id = models.CharField(_("event id"), max_length=255)
    kind = models.CharField(_("kind"), max_length=128)
    payload = models.JSONField(_("payload"))
    payment = models.ForeignKey(
        Payment, on_delete=models.PROTECT, null=True, related_name="events", verbose_name=_("payment")
    )
    received_at = models.DateTimeField(_("received at"), auto_now_add=True)
    #: Set in the transaction that carried out what the event says.
    processed_at = models.DateTimeField(_("processed at"), null=True)
    outcome = models.CharField(_("outcome"), max_length=255, blank=True, default="")
    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    #: When it is tried again without being sent again; null when nothing is left to do.
    retry_at = models.DateTimeField(_("retry at"), null=True)

    class Meta:
        verbose_name = _("payment event")
        verbose_name_plural = _("payment events")
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["retry_at"], condition=Q(retry_at__isnull=False), name="wallet_event_due"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["provider", "event_id"], name="wallet_event_once"),
        ]

    def __str__(self) -> str:
        return f"{self.provider} {self.event_id}"
