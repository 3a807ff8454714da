"""Discounted packs of access tokens."""

from __future__ import annotations

import uuid
from decimal import Decimal

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Round
from django.utils.translation import gettext_lazy as _

from zenzefi.lib.money import floor_cents

#: One purchase is one statement and one answer with every secret: it stays small enough for both.
MAX_TOKENS = 500


class BundleQuerySet(models.QuerySet["Bundle"]):
    def for_sale(self) -> BundleQuerySet:
        return self.filter(is_active=True)


class Bundle(models.Model):
    """``token_count`` tokens of one duration and scope, sold together below the price of one by one.

    ``list_price`` is what one cost on its own when the bundle was priced, ``base_price`` all of them one by one, and
    ``total_price`` what is paid; all in ZNC. Base and total follow from the list price and the discount, unless staff
    set them with a reason.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(_("name"), max_length=100, unique=True)
    description = models.TextField(_("description"), max_length=1000, blank=True, default="")
    token_count = models.PositiveIntegerField(_("number of tokens"))
    duration_hours = models.PositiveIntegerField(_("duration in hours"))
    scope = models.ForeignKey("tokens.Scope", verbose_name=_("scope"), on_delete=models.PROTECT, related_name="+")
    discount_percent = models.DecimalField(_("discount in percent"), max_digits=5, decimal_places=2)
    list_price = models.DecimalField(
        _("price of one in ZNC"), max_digits=10, decimal_places=2, editable=False, help_text=_("When it was priced.")
    )
    base_price = models.DecimalField(_("base price in ZNC"), max_digits=10, decimal_places=2)
    total_price = models.DecimalField(_("total price in ZNC"), max_digits=10, decimal_places=2)
    override_reason = models.CharField(_("reason of prices set by hand"), max_length=255, blank=True, default="")
    is_active = models.BooleanField(_("for sale"), default=True)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated at"), auto_now=True)

    objects = BundleQuerySet.as_manager()

    class Meta:
        verbose_name = _("bundle")
        verbose_name_plural = _("bundles")
        ordering = ["total_price", "name"]
        constraints = [
            models.CheckConstraint(
                condition=Q(token_count__gte=1, token_count__lte=MAX_TOKENS), name="bundles_bundle_holds_tokens"
            ),
            models.CheckConstraint(condition=Q(duration_hours__gte=1), name="bundles_bundle_duration_positive"),
            models.CheckConstraint(
                condition=Q(discount_percent__gte=0, discount_percent__lt=100),
                name="bundles_bundle_discount_is_percentage",
            ),
            models.CheckConstraint(
                condition=~Q(override_reason="")
                | Q(total_price=F("base_price") - Round(F("base_price") * F("discount_percent") / 100, precision=2)),
                name="bundles_bundle_total_is_base_less_discount",
                violation_error_message=_("The total price must be the base price less the discount."),
            ),
            models.CheckConstraint(
                condition=~Q(override_reason="") | Q(base_price=F("token_count") * F("list_price")),
                name="bundles_bundle_base_is_count_times_one",
                violation_error_message=_("The base price must be the number of tokens times the price of one."),
            ),
            models.CheckConstraint(
                condition=Q(total_price__lte=F("base_price")),
                name="bundles_bundle_total_not_above_base",
                violation_error_message=_("The total price must not exceed the base price."),
            ),
            # Every token of the bundle costs at least a cent.
            models.CheckConstraint(
                condition=Q(total_price__gte=F("token_count") * Decimal("0.01")),
                name="bundles_bundle_price_splits_to_cents",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def savings(self) -> Decimal:
        """ZNC saved against buying the tokens one by one."""
        return self.base_price - self.total_price

    @property
    def price_per_token(self) -> Decimal:
        """ZNC, cut to the cent; what each token really costs is split so that the shares add up."""
        return floor_cents(self.total_price / self.token_count)


class BundlePurchase(models.Model):
    """A bundle as it was when somebody bought it. Its tokens name it as what paid for them."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    buyer = models.ForeignKey(
        settings.AUTH_USER_MODEL, verbose_name=_("buyer"), on_delete=models.PROTECT, related_name="bundle_purchases"
    )
    bundle = models.ForeignKey(Bundle, verbose_name=_("bundle"), on_delete=models.PROTECT, related_name="purchases")
    bundle_name = models.CharField(_("name"), max_length=100)
    token_count = models.PositiveIntegerField(_("number of tokens"))
    base_price = models.DecimalField(_("base price in ZNC"), max_digits=10, decimal_places=2)
    paid = models.DecimalField(_("paid"), max_digits=10, decimal_places=2)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True, db_index=True)

    class Meta:
        verbose_name = _("bundle purchase")
        verbose_name_plural = _("bundle purchases")
        ordering = ["-created_at", "-id"]
        constraints = [
            models.CheckConstraint(condition=Q(paid__gt=0), name="bundles_purchase_paid_positive"),
            models.CheckConstraint(condition=Q(token_count__gte=1), name="bundles_purchase_holds_tokens"),
        ]

    def __str__(self) -> str:
        return f"{self.bundle_name} {self.created_at:%Y-%m-%d %H:%M:%S}"

    @property
    def source(self) -> str:
        """How postings name it."""
        return f"bundle:{self.id}"
