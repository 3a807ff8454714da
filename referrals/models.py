"""What referring somebody brings."""

from __future__ import annotations

import uuid
from decimal import Decimal

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from zenzefi.lib.money import ZERO

#: The share of the first qualifying purchase that its buyer's referrer gets.
BONUS_RATE = Decimal("0.10")
#: A purchase qualifies when more than this many ZNC were paid for it.
QUALIFIES_ABOVE = Decimal("100.00")


class ReferralBonus(models.Model):
    """What a referee's first qualifying purchase brought their referrer; at most one for each referee, for good.

    ``amount`` is the whole bonus. ``refunded`` is what was paid back of the purchase so far, and takes the same share
    of the bonus away. ``paid_out`` and ``taken_back`` are what was posted. All in ZNC.
    """

    class Status(models.TextChoices):
        PAID = "paid", _("Paid")
        HELD = "held", _("Held for review")
        REJECTED = "rejected", _("Rejected")

    class Suspicion(models.TextChoices):
        SAME_ADDRESS = "same_address", _("Same address")
        SAME_DEVICE = "same_device", _("Same device")
        REFERRER_DISABLED = "referrer_disabled", _("Referrer disabled")
        BALANCE_LIMIT = "balance_limit", _("Referrer's balance at its limit")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    referee = models.ForeignKey(
        settings.AUTH_USER_MODEL, verbose_name=_("referee"), on_delete=models.PROTECT, related_name="+"
    )
    referrer = models.ForeignKey(
        settings.AUTH_USER_MODEL, verbose_name=_("referrer"), on_delete=models.PROTECT, related_name="referral_bonuses"
    )
    #: The source of the PURCHASE posting that qualified.
    purchase_source = models.CharField(_("purchase"), max_length=128, unique=True)
    purchase_paid = models.DecimalField(_("paid for the purchase"), max_digits=10, decimal_places=2)
    amount = models.DecimalField(_("bonus"), max_digits=10, decimal_places=2)
    refunded = models.DecimalField(_("refunded of the purchase"), max_digits=10, decimal_places=2, default=ZERO)
    paid_out = models.DecimalField(_("paid out"), max_digits=10, decimal_places=2, default=ZERO)
    taken_back = models.DecimalField(_("taken back"), max_digits=10, decimal_places=2, default=ZERO)
    status = models.CharField(_("status"), max_length=16, choices=Status.choices)
    suspicions = ArrayField(
        models.CharField(max_length=32, choices=Suspicion.choices), verbose_name=_("held because of"), default=list
    )
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    reviewed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, verbose_name=_("reviewed by"), null=True, on_delete=models.PROTECT, related_name="+"
    )
    reviewed_at = models.DateTimeField(_("reviewed at"), null=True)
    review_reason = models.CharField(_("reason of the review"), max_length=255, blank=True, default="")

    class Meta:
        verbose_name = _("referral bonus")
        verbose_name_plural = _("referral bonuses")
        ordering = ["-created_at", "-id"]
        permissions = [("review_referralbonus", _("Can approve and reject held referral bonuses"))]
        indexes = [models.Index(fields=["referrer", "-created_at"], name="referrals_bonus_referrer")]
        constraints = [
            models.UniqueConstraint(fields=["referee"], name="referrals_bonus_once_per_referee"),
            models.CheckConstraint(condition=~Q(referee=F("referrer")), name="referrals_bonus_not_for_self"),
            models.CheckConstraint(
                condition=Q(purchase_paid__gt=QUALIFIES_ABOVE), name="referrals_bonus_purchase_qualifies"
            ),
            models.CheckConstraint(
                condition=Q(amount__gt=0) & Q(amount__lte=F("purchase_paid")), name="referrals_bonus_amount_bounded"
            ),
            models.CheckConstraint(
                condition=Q(refunded__gte=0) & Q(refunded__lte=F("purchase_paid")),
                name="referrals_bonus_refund_within_paid",
            ),
            models.CheckConstraint(
                condition=Q(paid_out__gte=0) & Q(paid_out__lte=F("amount")), name="referrals_bonus_paid_out_bounded"
            ),
            models.CheckConstraint(
                condition=Q(taken_back__gte=0) & Q(taken_back__lte=F("paid_out")),
                name="referrals_bonus_taken_back_within_paid_out",
            ),
            models.CheckConstraint(
                condition=Q(status="paid") | Q(paid_out=0), name="referrals_bonus_only_paid_is_paid_out"
            ),
            models.CheckConstraint(
                condition=Q(reviewed_at__isnull=True, reviewed_by__isnull=True, review_reason="")
                | (Q(reviewed_at__isnull=False, reviewed_by__isnull=False) & ~Q(review_reason="")),
                name="referrals_bonus_review_has_reason",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.amount} ZNC"

    @property
    def due(self) -> Decimal:
        """What is left of the bonus after the refunds: the whole less ``floor_to_0.01(amount * refunded / paid)``."""
        lost = int(self.amount.scaleb(2)) * int(self.refunded.scaleb(2)) // int(self.purchase_paid.scaleb(2))
        return self.amount - Decimal(lost).scaleb(-2)

    @property
    def net(self) -> Decimal:
        """What the referrer has got of it, less what was taken back."""
        return self.paid_out - self.taken_back
