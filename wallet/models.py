"""The ledger: accounts and the transfers between them."""

from __future__ import annotations

import uuid

import pgtrigger
from django.conf import settings
from django.db import models
from django.db.models import F, Q
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


class Transfer(models.Model):
    """One double entry: ``amount`` ZNC left the debit account and arrived on the credit account.

    Append-only: the database refuses UPDATE, DELETE and TRUNCATE; a correction is another transfer. ``source``
    names what it came from (``token:<id>``, ``payment:<id>``) and is unique per kind, so every posting happens once.
    """

    class Kind(models.TextChoices):
        DEPOSIT = "DEPOSIT", _("Deposit")
        PURCHASE = "PURCHASE", _("Purchase")
        REFUND = "REFUND", _("Refund")
        REFERRAL_BONUS = "REFERRAL_BONUS", _("Referral bonus")
        REFERRAL_REVERSAL = "REFERRAL_REVERSAL", _("Referral bonus taken back")
        ADJUSTMENT = "ADJUSTMENT", _("Adjustment")
        CHARGEBACK = "CHARGEBACK", _("Chargeback")

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
