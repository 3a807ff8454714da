"""Access tokens, what they cost and what they open."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pgtrigger
from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import F, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce
from django.utils.translation import gettext_lazy as _

from zenzefi.lib import clock
from zenzefi.lib.money import ZERO


class Scope(models.Model):
    """A kind of access that is sold. The gateway keeps the path rules of each."""

    slug = models.SlugField(_("scope"), max_length=64, primary_key=True)
    description = models.CharField(_("description"), max_length=255, blank=True, default="")
    is_active = models.BooleanField(_("for sale"), default=True)

    class Meta:
        verbose_name = _("scope")
        verbose_name_plural = _("scopes")
        ordering = ["slug"]

    def __str__(self) -> str:
        return self.slug


class TokenPriceQuerySet(models.QuerySet["TokenPrice"]):
    def priced_at(self, moment: datetime | None = None) -> TokenPriceQuerySet:
        """Annotate ``current_price``: that of the last change in effect at a moment (default: now), in ZNC."""
        changes = PriceChange.objects.filter(
            duration=OuterRef("duration_hours"), effective_at__lte=moment or clock.now()
        )
        latest = Subquery(changes.order_by("-effective_at").values("price")[:1])
        return self.annotate(current_price=Coalesce(latest, F("price")))


class TokenPrice(models.Model):
    """A duration that tokens are sold for, and what it cost at first; later prices are changes with a date.

    What was bought keeps the price it was bought at.
    """

    duration_hours = models.PositiveIntegerField(_("duration in hours"), unique=True)
    price = models.DecimalField(_("first price in ZNC"), max_digits=10, decimal_places=2)
    is_active = models.BooleanField(_("for sale"), default=True)
    updated_at = models.DateTimeField(_("updated at"), auto_now=True)
    #: Only on what :meth:`TokenPriceQuerySet.priced_at` returns.
    current_price: Decimal

    objects = TokenPriceQuerySet.as_manager()

    class Meta:
        verbose_name = _("token price")
        verbose_name_plural = _("token prices")
        ordering = ["duration_hours"]
        constraints = [
            models.CheckConstraint(condition=Q(price__gt=0), name="tokens_price_positive"),
            models.CheckConstraint(condition=Q(duration_hours__gt=0), name="tokens_price_duration_positive"),
        ]

    def __str__(self) -> str:
        return f"{self.duration_hours} h: {self.price} ZNC"


class PriceChange(models.Model):
    """What a token of a duration costs from a moment on, until the next change.

    Once in effect it is history: the database refuses to edit or delete it.
    """

    duration = models.ForeignKey(
        TokenPrice,
        to_field="duration_hours",
        db_column="duration_hours",
        verbose_name=_("duration"),
        on_delete=models.PROTECT,
        related_name="changes",
        # The unique constraint starts with it.
        db_index=False,
    )
    price = models.DecimalField(_("price in ZNC"), max_digits=10, decimal_places=2)
    effective_at = models.DateTimeField(_("in effect from"))
    scheduled_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("scheduled by"),
        null=True,
        editable=False,
        on_delete=models.PROTECT,
        related_name="+",
    )
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)

    class Meta:
        verbose_name = _("price change")
        verbose_name_plural = _("price changes")
        ordering = ["-effective_at", "duration"]
        constraints = [
            models.UniqueConstraint(fields=["duration", "effective_at"], name="tokens_pricechange_once_at_a_time"),
            models.CheckConstraint(condition=Q(price__gt=0), name="tokens_pricechange_positive"),
        ]
        triggers = [
            pgtrigger.Protect(
                name="history_stays",
                operation=pgtrigger.Update | pgtrigger.Delete,
                condition=pgtrigger.Condition("OLD.effective_at <= clock_timestamp()"),
            )
        ]

    def __str__(self) -> str:
        return f"{self.duration_id} h: {self.price} ZNC, {self.effective_at:%Y-%m-%d %H:%M}"


class AccessTokenQuerySet(models.QuerySet["AccessToken"]):
    def owned_by(self, user: Any) -> AccessTokenQuerySet:
        return self.filter(owner=user)

    def unspent(self, at: datetime | None = None) -> AccessTokenQuerySet:
        """Tokens that are worth something: neither revoked nor expired. One that is held for a gift is among them."""
        return self.filter(revoked_at__isnull=True).filter(
            Q(expires_at__isnull=True) | Q(expires_at__gt=at or clock.now())
        )

    def newly_expired(self, at: datetime | None = None) -> AccessTokenQuerySet:
        """Tokens whose time ran out and for which that was not recorded yet."""
        return self.filter(revoked_at__isnull=True, expires_at__lte=at or clock.now(), expiry_recorded_at__isnull=True)

    def due_for_renewal(self, at: datetime | None = None) -> AccessTokenQuerySet:
        """Tokens of which a successor should be bought by now."""
        return self.filter(renew_at__lte=at or clock.now())

    def due_to_take_over(self, at: datetime | None = None) -> AccessTokenQuerySet:
        """Successors that run while their predecessor still holds the secret."""
        return self.filter(
            predecessor__isnull=False,
            taken_over_at__isnull=True,
            revoked_at__isnull=True,
            activated_at__lte=at or clock.now(),
        )


#: A successor is bought when this much of a token is left, or a tenth of its duration, whichever is less.
RENEW_BEFORE_END = timedelta(hours=24)


class AccessToken(models.Model):
    """Access for ``duration_hours`` from the first request that reaches the upstream.

    The token itself is shown once; here are its SHA-256 and last four characters.

    A token that renews itself gets a successor: a token of its own, with a price and a refund of its own, that starts
    when this one ends and answers to the same secret. Until then the successor has none, and ``digest`` is one that
    no secret has.
    """

    class Status(models.TextChoices):
        SCHEDULED = "scheduled", _("Scheduled")
        READY = "ready", _("Ready")
        GIFTED = "gifted", _("Offered as a gift")
        ACTIVE = "active", _("Active")
        EXPIRED = "expired", _("Expired")
        REVOKED = "revoked", _("Revoked")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("owner"),
        on_delete=models.PROTECT,
        related_name="access_tokens",
    )
    #: Who paid for a token that was claimed as a gift; refunds go there. Empty where the owner paid.
    payer = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("paid by"),
        null=True,
        blank=True,
        editable=False,
        on_delete=models.PROTECT,
        related_name="+",
    )
    #: Lower-case hexadecimal SHA-256 of the whole token.
    digest = models.CharField(max_length=64, unique=True, editable=False)
    last_four = models.CharField(max_length=4, editable=False)
    label = models.CharField(_("label"), max_length=100, blank=True, default="")
    scope = models.ForeignKey(Scope, verbose_name=_("scope"), on_delete=models.PROTECT, related_name="+")
    duration_hours = models.PositiveIntegerField(_("duration in hours"))
    #: The source of the PURCHASE posting that paid for it: its own, or that of the bundle it came in.
    purchase_source = models.CharField(max_length=128, editable=False, default="")
    #: Copied when bought: what the price list said, and what was really paid. Refunds come from the latter.
    list_price = models.DecimalField(_("list price"), max_digits=10, decimal_places=2)
    paid = models.DecimalField(_("paid"), max_digits=10, decimal_places=2)
    refunded = models.DecimalField(_("refunded"), max_digits=10, decimal_places=2, default=ZERO)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    activated_at = models.DateTimeField(_("activated at"), null=True, blank=True)
    expires_at = models.DateTimeField(_("expires at"), null=True, blank=True, db_index=True)
    expiry_recorded_at = models.DateTimeField(null=True, blank=True, editable=False)
    revoked_at = models.DateTimeField(_("revoked at"), null=True, blank=True)
    revoked_reason = models.CharField(_("reason of revocation"), max_length=255, blank=True, default="")
    #: Since when the token is offered as a gift: nobody uses or changes it until that is claimed or handed back.
    held_at = models.DateTimeField(_("offered as a gift at"), null=True, blank=True, editable=False)
    #: The device that used it last, and when, as far as metering was written. A release empties the device and sets
    #: the moment, so that older reports still on their way do not bring the device back.
    device_id = models.CharField(_("device"), max_length=255, blank=True, default="")
    device_seen_at = models.DateTimeField(_("device seen at"), null=True, blank=True)
    #: Networks in CIDR notation that clients may come from; none is every network.
    allowed_ips = ArrayField(models.CharField(max_length=43), verbose_name=_("allowed networks"), default=list)
    auto_renew = models.BooleanField(_("renews itself"), default=False)
    #: When a successor is to be bought; null while there is nothing to do. Whoever takes the row in hand moves it on
    #: a little, so that another worker comes back to it should the first one die.
    renew_at = models.DateTimeField(_("renewal due at"), null=True, blank=True)
    #: The code of what kept the renewal from happening; nothing is tried until the owner switches it on again.
    renewal_paused = models.CharField(_("renewal paused because"), max_length=32, blank=True, default="")
    renewed_at = models.DateTimeField(_("renewed at"), null=True, blank=True)
    predecessor = models.OneToOneField(
        "self",
        verbose_name=_("renews"),
        null=True,
        blank=True,
        editable=False,
        on_delete=models.PROTECT,
        related_name="successor",
    )
    #: When it took over its predecessor's secret and device. The gateway lets it in from ``activated_at`` on, also
    #: before this was written.
    taken_over_at = models.DateTimeField(null=True, blank=True, editable=False)
    #: Any change the gateway must learn of moves this.
    changed_at = models.DateTimeField(default=clock.now, db_index=True, editable=False)

    objects = AccessTokenQuerySet.as_manager()

    class Meta:
        verbose_name = _("access token")
        verbose_name_plural = _("access tokens")
        ordering = ["-created_at", "-id"]
        permissions = [
            ("revoke_with_refund", _("Can revoke access tokens with a refund")),
            ("revoke_without_refund", _("Can revoke access tokens without a refund")),
            ("release_devices", _("Can release the devices of access tokens")),
            ("stop_renewal", _("Can switch off the renewal of access tokens")),
        ]
        indexes = [
            models.Index(fields=["owner", "-created_at", "-id"], name="tokens_token_owner"),
            models.Index(
                fields=["expires_at"],
                name="tokens_token_expiry_due",
                condition=Q(expiry_recorded_at__isnull=True, revoked_at__isnull=True, expires_at__isnull=False),
            ),
            models.Index(fields=["renew_at"], name="tokens_token_renewal_due", condition=Q(renew_at__isnull=False)),
            models.Index(
                fields=["activated_at"],
                name="tokens_token_takeover_due",
                condition=Q(predecessor__isnull=False, taken_over_at__isnull=True, revoked_at__isnull=True),
            ),
        ]
        constraints = [
            models.CheckConstraint(condition=Q(paid__gte=0), name="tokens_token_paid_not_negative"),
            models.CheckConstraint(
                condition=Q(refunded__gte=0) & Q(refunded__lte=F("paid")),
                name="tokens_token_refund_within_paid",
            ),
            models.CheckConstraint(
                condition=Q(activated_at__isnull=True, expires_at__isnull=True)
                | Q(activated_at__isnull=False, expires_at__isnull=False),
                name="tokens_token_expiry_from_activation",
            ),
            models.CheckConstraint(
                condition=Q(refunded=0) | Q(revoked_at__isnull=False), name="tokens_token_refunded_is_revoked"
            ),
            models.CheckConstraint(condition=Q(duration_hours__gt=0), name="tokens_token_duration_positive"),
            models.CheckConstraint(
                condition=Q(renew_at__isnull=True)
                | Q(
                    auto_renew=True,
                    renewal_paused="",
                    renewed_at__isnull=True,
                    revoked_at__isnull=True,
                    activated_at__isnull=False,
                ),
                name="tokens_token_renewal_due_once",
            ),
            models.CheckConstraint(
                condition=Q(predecessor__isnull=True) | Q(activated_at__isnull=False),
                name="tokens_token_successor_has_a_start",
            ),
            models.CheckConstraint(
                condition=Q(held_at__isnull=True) | Q(activated_at__isnull=True, revoked_at__isnull=True),
                name="tokens_token_held_is_unused",
            ),
            models.CheckConstraint(
                condition=Q(payer__isnull=True) | ~Q(payer=F("owner")), name="tokens_token_payer_is_another"
            ),
        ]

    def __str__(self) -> str:
        return self.hint

    @property
    def hint(self) -> str:
        """What may be shown of the token: prefix and last four characters."""
        return f"znz_…{self.last_four}"

    @property
    def duration(self) -> timedelta:
        return timedelta(hours=self.duration_hours)

    @property
    def renewal_lead(self) -> timedelta:
        """How long before its end a successor is bought."""
        return min(RENEW_BEFORE_END, self.duration / 10)

    def status(self, at: datetime | None = None) -> Status:
        """Return the status at a moment (default: now)."""
        if self.revoked_at is not None:
            return self.Status.REVOKED
        if self.held_at is not None:
            return self.Status.GIFTED
        if self.expires_at is None or self.activated_at is None:
            return self.Status.READY
        moment = at or clock.now()
        # Only a successor's start lies ahead; any other token was activated by a clock that may be ahead of ours.
        if self.predecessor_id is not None and self.activated_at > moment:
            return self.Status.SCHEDULED
        return self.Status.ACTIVE if self.expires_at > moment else self.Status.EXPIRED

    def remaining(self, at: datetime | None = None) -> timedelta | None:
        """Return the time left: ``None`` before activation, all of it before a scheduled start, zero after the end."""
        if self.expires_at is None:
            return None
        return min(self.duration, max(timedelta(), self.expires_at - (at or clock.now())))

    @property
    def is_usable(self) -> bool:
        return self.status() in {self.Status.SCHEDULED, self.Status.READY, self.Status.ACTIVE}

    @property
    def renewed_by_id(self) -> uuid.UUID | None:
        """The id of the successor, if one was bought. A query unless it was joined."""
        return None if self.renewed_at is None else self.successor.pk


class RotatedDigest(models.Model):
    """A digest that a rotation replaced.

    The gateway is told of it at commit; should that message be lost, its sweep finds it here, so that a secret
    which may have leaked is not answered from a cache until that expires.
    """

    #: Lower-case hexadecimal SHA-256 of the replaced token.
    digest = models.CharField(max_length=64, primary_key=True)
    token = models.ForeignKey(AccessToken, on_delete=models.CASCADE, related_name="rotated_digests")
    rotated_at = models.DateTimeField(default=clock.now, db_index=True)

    class Meta:
        verbose_name = _("rotated digest")
        verbose_name_plural = _("rotated digests")

    def __str__(self) -> str:
        return f"{self.token_id} {self.rotated_at:%Y-%m-%d %H:%M:%S}"


class RenewalDefault(models.Model):
    """What an account wants of the tokens it buys from now on, and how much renewals may cost it a day."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, verbose_name=_("user"), primary_key=True, on_delete=models.CASCADE, related_name="+"
    )
    enabled = models.BooleanField(_("new tokens renew themselves"), default=False)
    #: Which tokens; an empty one stands for any.
    duration_hours = models.PositiveIntegerField(_("of this duration in hours"), null=True, blank=True)
    scope = models.ForeignKey(
        Scope, verbose_name=_("of this scope"), null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    #: ZNC in a day of UTC; empty for the platform's own.
    daily_cap = models.DecimalField(
        _("renewals a day at most, ZNC"), max_digits=10, decimal_places=2, null=True, blank=True
    )
    updated_at = models.DateTimeField(_("updated at"), auto_now=True)

    class Meta:
        verbose_name = _("default of renewal")
        verbose_name_plural = _("defaults of renewal")
        constraints = [
            models.CheckConstraint(
                condition=Q(daily_cap__isnull=True) | Q(daily_cap__gt=0), name="tokens_renewaldefault_cap_positive"
            ),
        ]

    def __str__(self) -> str:
        return str(self.user)


class TierSubscriptionQuerySet(models.QuerySet["TierSubscription"]):
    def current(self) -> TierSubscriptionQuerySet:
        """Subscriptions that have not ended: at most one of each user."""
        return self.filter(ended_at__isnull=True)

    def due(self, at: datetime | None = None) -> TierSubscriptionQuerySet:
        """Subscriptions whose paid month is over."""
        return self.current().filter(due_at__lte=at or clock.now())


class TierSubscription(models.Model):
    """A tier that a user has bought, or was given by staff, from ``started_at`` until it ended.

    Paid by the month, counted from the day it started on. What a month cost is copied when it is paid: a change of the
    tier's price touches no month that was paid. A tier that staff gave costs nothing and has no end of its own.
    """

    class EndReason(models.TextChoices):
        CHANGED = "changed", _("Changed for another tier")
        CANCELLED = "cancelled", _("Cancelled by the user")
        SET_BY_STAFF = "set_by_staff", _("Set by staff")
        INSUFFICIENT_BALANCE = "insufficient_balance", _("Balance too small")
        NOT_SOLD = "tier_not_sold", _("No longer sold")
        USER_DISABLED = "user_disabled", _("User disabled")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, verbose_name=_("user"), on_delete=models.PROTECT, related_name="tier_subscriptions"
    )
    tier = models.ForeignKey("accounts.Tier", verbose_name=_("tier"), on_delete=models.PROTECT, related_name="+")
    #: ZNC paid for the present month.
    price = models.DecimalField(_("paid a month"), max_digits=10, decimal_places=2)
    #: Counts months from 0; with the id it is the source of the posting that paid for the month.
    month = models.PositiveIntegerField(_("month"), default=0)
    period_start = models.DateTimeField(_("paid from"))
    period_end = models.DateTimeField(_("paid until"), null=True, blank=True)
    #: When the next month is to be paid: the end of this one, or a little later while somebody works on it.
    due_at = models.DateTimeField(null=True, blank=True, editable=False)
    cancelled_at = models.DateTimeField(_("cancelled at"), null=True, blank=True)
    #: ZNC paid back for the unused part of the last month.
    refunded = models.DecimalField(_("refunded"), max_digits=10, decimal_places=2, default=ZERO)
    granted_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("given by"),
        null=True,
        blank=True,
        editable=False,
        on_delete=models.PROTECT,
        related_name="+",
    )
    reason = models.CharField(_("reason"), max_length=255, blank=True, default="")
    started_at = models.DateTimeField(_("started at"))
    ended_at = models.DateTimeField(_("ended at"), null=True, blank=True)
    end_reason = models.CharField(_("ended because"), max_length=32, choices=EndReason.choices, blank=True, default="")

    objects = TierSubscriptionQuerySet.as_manager()

    class Meta:
        verbose_name = _("tier subscription")
        verbose_name_plural = _("tier subscriptions")
        ordering = ["-started_at", "-id"]
        permissions = [("set_tier", _("Can give users a tier without charge"))]
        indexes = [
            models.Index(fields=["user", "-started_at"], name="tokens_tiersub_user"),
            models.Index(fields=["due_at"], name="tokens_tiersub_due", condition=Q(ended_at__isnull=True)),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["user"], condition=Q(ended_at__isnull=True), name="tokens_tiersub_one_current"
            ),
            models.CheckConstraint(condition=Q(price__gte=0), name="tokens_tiersub_price_not_negative"),
            models.CheckConstraint(
                condition=Q(refunded__gte=0) & Q(refunded__lte=F("price")), name="tokens_tiersub_refund_within_price"
            ),
            models.CheckConstraint(
                condition=Q(refunded=0) | Q(ended_at__isnull=False), name="tokens_tiersub_refunded_is_ended"
            ),
            models.CheckConstraint(
                condition=Q(period_end__isnull=True, due_at__isnull=True)
                | Q(period_end__gt=F("period_start"), due_at__isnull=False),
                name="tokens_tiersub_period_in_order",
            ),
            models.CheckConstraint(
                condition=Q(ended_at__isnull=True, end_reason="") | (Q(ended_at__isnull=False) & ~Q(end_reason="")),
                name="tokens_tiersub_end_has_reason",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.tier_id} {self.started_at:%Y-%m-%d}"

    @property
    def source(self) -> str:
        """How postings name the present month."""
        return f"tier:{self.id}:{self.month}"


class GiftQuerySet(models.QuerySet["Gift"]):
    def of(self, user: Any) -> GiftQuerySet:
        """Gifts that a user made or claimed."""
        return self.filter(Q(giver=user) | Q(claimed_by=user))

    def overdue(self, at: datetime | None = None) -> GiftQuerySet:
        """Gifts that nobody claimed in time and whose token was not handed back yet."""
        return self.filter(status=Gift.Status.PENDING, expires_at__lte=at or clock.now())


class Gift(models.Model):
    """A never activated token on its way to another owner. Whoever has the code claims it, once.

    The code itself is shown once; here are its SHA-256 and last four characters. While the gift is open its token is
    held (:attr:`AccessToken.held_at`).
    """

    class Status(models.TextChoices):
        AWAITING_APPROVAL = "awaiting_approval", _("Awaiting approval")
        PENDING = "pending", _("Waiting to be claimed")
        CLAIMED = "claimed", _("Claimed")
        CANCELLED = "cancelled", _("Cancelled by the giver")
        EXPIRED = "expired", _("Not claimed in time")
        REJECTED = "rejected", _("Rejected by staff")

    #: In these the token is held; the other ones are final.
    OPEN = (Status.AWAITING_APPROVAL, Status.PENDING)

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    token = models.ForeignKey(
        AccessToken, verbose_name=_("access token"), on_delete=models.PROTECT, related_name="gifts"
    )
    giver = models.ForeignKey(
        settings.AUTH_USER_MODEL, verbose_name=_("giver"), on_delete=models.PROTECT, related_name="+"
    )
    claimed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("claimed by"),
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
    )
    #: Lower-case hexadecimal SHA-256 of the code in its canonical form.
    code_digest = models.CharField(max_length=64, unique=True, editable=False)
    code_last_four = models.CharField(max_length=4, editable=False)
    message = models.CharField(_("message"), max_length=500, blank=True, default="")
    #: Where given, only the account with this address may claim.
    recipient_email = models.EmailField(_("recipient's e-mail address"), max_length=254, blank=True, default="")
    status = models.CharField(_("status"), max_length=20, choices=Status.choices)
    created_at = models.DateTimeField(_("created at"), default=clock.now)
    #: Empty until staff have approved.
    expires_at = models.DateTimeField(_("to be claimed by"), null=True, blank=True)
    closed_at = models.DateTimeField(_("closed at"), null=True, blank=True)
    reviewed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("reviewed by"),
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
    )
    reviewed_at = models.DateTimeField(_("reviewed at"), null=True, blank=True)
    review_reason = models.CharField(_("reason of the review"), max_length=255, blank=True, default="")

    objects = GiftQuerySet.as_manager()

    class Meta:
        verbose_name = _("gift")
        verbose_name_plural = _("gifts")
        ordering = ["-created_at", "-id"]
        permissions = [("review_gift", _("Can approve and reject gifts"))]
        indexes = [
            models.Index(fields=["giver", "-created_at"], name="tokens_gift_giver"),
            models.Index(
                fields=["claimed_by", "-created_at"],
                name="tokens_gift_claimed_by",
                condition=Q(claimed_by__isnull=False),
            ),
            models.Index(fields=["expires_at"], name="tokens_gift_due", condition=Q(status="pending")),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["token"],
                condition=Q(status__in=["awaiting_approval", "pending"]),
                name="tokens_gift_one_open",
            ),
            models.CheckConstraint(
                condition=Q(status="claimed", claimed_by__isnull=False)
                | (~Q(status="claimed") & Q(claimed_by__isnull=True)),
                name="tokens_gift_claimed_by_somebody",
            ),
            models.CheckConstraint(
                condition=Q(claimed_by__isnull=True) | ~Q(claimed_by=F("giver")), name="tokens_gift_not_to_oneself"
            ),
            models.CheckConstraint(
                condition=Q(status__in=["awaiting_approval", "pending"], closed_at__isnull=True)
                | (~Q(status__in=["awaiting_approval", "pending"]) & Q(closed_at__isnull=False)),
                name="tokens_gift_open_or_closed",
            ),
            models.CheckConstraint(
                condition=~Q(status__in=["pending", "claimed", "expired"]) | Q(expires_at__isnull=False),
                name="tokens_gift_approved_has_an_end",
            ),
        ]
        triggers = [
            pgtrigger.FSM(
                name="forward_only",
                field="status",
                transitions=[
                    ("awaiting_approval", "pending"),
                    ("awaiting_approval", "cancelled"),
                    ("awaiting_approval", "rejected"),
                    ("pending", "claimed"),
                    ("pending", "cancelled"),
                    ("pending", "expired"),
                    ("pending", "rejected"),
                ],
            ),
            pgtrigger.Protect(name="history_stays", operation=pgtrigger.Delete),
        ]

    def __str__(self) -> str:
        return self.code_hint

    @property
    def code_hint(self) -> str:
        """What may be shown of the code: prefix and last four characters."""
        return f"GIFT-…{self.code_last_four}"

    @property
    def is_open(self) -> bool:
        return self.status in self.OPEN
