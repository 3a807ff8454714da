"""What the gateway allows below a scope, and what passed through it."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from proxy.scopes import InvalidPattern, parse_pattern
from zenzefi.lib import clock

#: What Redis counts in its scripts exactly.
MAX_QUOTA = 2**52


def validate_pattern(value: str) -> None:
    """Raise :class:`ValidationError` for a pattern that the matcher would not understand."""
    try:
        parse_pattern(value)
    except InvalidPattern as exc:
        raise ValidationError(str(exc)) from exc


class ScopeRule(models.Model):
    """One path that a restricted scope opens, below the base path of the upstream.

    ``certificates/filter`` opens that path alone; ``certificates/details/…`` (or ``/...``) opens every path of one
    or more further segments under it. Whole segments are compared, byte for byte.
    """

    scope = models.ForeignKey("tokens.Scope", verbose_name=_("scope"), on_delete=models.CASCADE, related_name="rules")
    pattern = models.CharField(_("path"), max_length=255, validators=[validate_pattern])
    description = models.CharField(_("description"), max_length=255, blank=True, default="")

    class Meta:
        verbose_name = _("path rule")
        verbose_name_plural = _("path rules")
        ordering = ["scope", "pattern"]
        constraints = [models.UniqueConstraint(fields=["scope", "pattern"], name="proxy_scoperule_once")]

    def __str__(self) -> str:
        return self.pattern


class SessionQuerySet(models.QuerySet["Session"]):
    def open(self) -> SessionQuerySet:
        return self.filter(ended_at__isnull=True)


class Session(models.Model):
    """The use of one token by one device, from its first request until it was idle or the token ended."""

    class EndedReason(models.TextChoices):
        IDLE = "idle", _("Idle")
        EXPIRED = "expired", _("Token expired")
        REVOKED = "revoked", _("Token revoked")
        DEVICE_RELEASED = "device_released", _("Device released")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    token = models.ForeignKey(
        "tokens.AccessToken",
        verbose_name=_("access token"),
        on_delete=models.PROTECT,
        related_name="sessions",
        # The partial unique constraint below and the index of closed ones serve the lookups.
    )
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, verbose_name=_("user"), on_delete=models.PROTECT, related_name="proxy_sessions"
    )
    device_id = models.CharField(_("device"), max_length=255)
    client_address = models.GenericIPAddressField(_("address"), null=True, blank=True)
    user_agent = models.CharField(_("user agent"), max_length=255, blank=True, default="")
    requests = models.PositiveBigIntegerField(_("requests"), default=0)
    #: Bytes of request bodies and WebSocket messages from the client, and of those to it.
    bytes_in = models.PositiveBigIntegerField(_("bytes received"), default=0)
    bytes_out = models.PositiveBigIntegerField(_("bytes sent"), default=0)
    started_at = models.DateTimeField(_("started at"), db_index=True)
    last_activity_at = models.DateTimeField(_("last activity at"), db_index=True)
    ended_at = models.DateTimeField(_("ended at"), null=True, blank=True)
    ended_reason = models.CharField(
        _("ended because"), max_length=16, choices=EndedReason.choices, blank=True, default=""
    )

    objects = SessionQuerySet.as_manager()

    class Meta:
        verbose_name = _("session")
        verbose_name_plural = _("sessions")
        ordering = ["-last_activity_at", "-id"]
        indexes = [
            models.Index(fields=["user", "-last_activity_at"], name="proxy_session_user"),
            models.Index(fields=["last_activity_at"], name="proxy_session_open", condition=Q(ended_at__isnull=True)),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["token", "device_id"], condition=Q(ended_at__isnull=True), name="proxy_session_one_open"
            ),
            models.CheckConstraint(
                condition=Q(last_activity_at__gte=models.F("started_at")), name="proxy_session_in_order"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.device_id} {self.started_at:%Y-%m-%d %H:%M}"


class LimitFields(models.Model):
    """What the gateway allows a token beyond its scope. Empty: nothing is said here; 0: no limit."""

    concurrent_requests = models.PositiveIntegerField(
        _("requests at once"), null=True, blank=True, help_text=_("Open streams and WebSockets included. 0: no limit.")
    )
    seats = models.PositiveIntegerField(
        _("devices at once"), null=True, blank=True, validators=[MinValueValidator(1), MaxValueValidator(1000)]
    )
    bandwidth = models.PositiveBigIntegerField(
        _("bytes a second"),
        null=True,
        blank=True,
        validators=[MaxValueValidator(MAX_QUOTA)],
        help_text=_("Both directions together. What is faster is slowed down, never refused. 0: no limit."),
    )
    requests_per_day = models.PositiveBigIntegerField(
        _("requests a day (UTC)"), null=True, blank=True, validators=[MaxValueValidator(MAX_QUOTA)]
    )
    requests_per_month = models.PositiveBigIntegerField(
        _("requests a month (UTC)"), null=True, blank=True, validators=[MaxValueValidator(MAX_QUOTA)]
    )
    bytes_per_day = models.PositiveBigIntegerField(
        _("bytes a day (UTC)"), null=True, blank=True, validators=[MaxValueValidator(MAX_QUOTA)]
    )
    bytes_per_month = models.PositiveBigIntegerField(
        _("bytes a month (UTC)"), null=True, blank=True, validators=[MaxValueValidator(MAX_QUOTA)]
    )
    updated_at = models.DateTimeField(_("updated at"), auto_now=True)

    class Meta:
        abstract = True


class TierLimits(LimitFields):
    """Limits of every token whose owner has the tier, as far as the token has none of its own.

    The tier itself says how many requests a minute its tokens may make.
    """

    tier = models.OneToOneField(
        "accounts.Tier", verbose_name=_("tier"), primary_key=True, on_delete=models.CASCADE, related_name="limits"
    )

    class Meta:
        verbose_name = _("limits of a tier")
        verbose_name_plural = _("limits of tiers")
        constraints = [
            models.CheckConstraint(condition=Q(seats__isnull=True) | Q(seats__gt=0), name="proxy_tierlimits_seats")
        ]

    def __str__(self) -> str:
        return str(self.tier_id)


class TokenLimits(LimitFields):
    """Limits of one token; each that is given takes the place of its tier's."""

    token = models.OneToOneField(
        "tokens.AccessToken",
        verbose_name=_("access token"),
        primary_key=True,
        on_delete=models.CASCADE,
        related_name="limits",
    )
    requests_per_minute = models.PositiveIntegerField(
        _("requests a minute"), null=True, blank=True, validators=[MinValueValidator(1), MaxValueValidator(1_000_000)]
    )

    class Meta:
        verbose_name = _("limits of a token")
        verbose_name_plural = _("limits of tokens")
        constraints = [
            models.CheckConstraint(condition=Q(seats__isnull=True) | Q(seats__gt=0), name="proxy_tokenlimits_seats"),
            models.CheckConstraint(
                condition=Q(requests_per_minute__isnull=True) | Q(requests_per_minute__gt=0),
                name="proxy_tokenlimits_rate",
            ),
        ]

    def __str__(self) -> str:
        return str(self.token_id)


class TokenUsage(models.Model):
    """What passed under one token on one UTC day."""

    token = models.ForeignKey(
        "tokens.AccessToken",
        verbose_name=_("access token"),
        on_delete=models.PROTECT,
        related_name="usage",
        # The unique constraint starts with it.
        db_index=False,
    )
    day = models.DateField(_("day"), db_index=True)
    requests = models.PositiveBigIntegerField(_("requests"), default=0)
    bytes_in = models.PositiveBigIntegerField(_("bytes received"), default=0)
    bytes_out = models.PositiveBigIntegerField(_("bytes sent"), default=0)

    class Meta:
        verbose_name = _("usage of a day")
        verbose_name_plural = _("usage by day")
        ordering = ["-day", "token"]
        constraints = [models.UniqueConstraint(fields=["token", "day"], name="proxy_tokenusage_once_a_day")]

    def __str__(self) -> str:
        return f"{self.token_id} {self.day}"


class QuotaNotice(models.Model):
    """That a token's owner was told of a quota, once for each period and threshold."""

    token = models.ForeignKey("tokens.AccessToken", on_delete=models.PROTECT, related_name="+", db_index=False)
    #: A name of :data:`proxy.limits.QUOTAS`.
    rule = models.CharField(max_length=32)
    #: The first day of the period.
    period = models.DateField(db_index=True)
    #: Per cent.
    threshold = models.PositiveSmallIntegerField()
    created_at = models.DateTimeField(default=clock.now)

    class Meta:
        verbose_name = _("quota notice")
        verbose_name_plural = _("quota notices")
        constraints = [
            models.UniqueConstraint(fields=["token", "rule", "period", "threshold"], name="proxy_quotanotice_once")
        ]

    def __str__(self) -> str:
        return f"{self.token_id} {self.rule} {self.period} {self.threshold}%"


class GatewaySwitch(models.Model):
    """Whether the gateway lets anything through. There is one row; none means open."""

    ONLY = 1

    id = models.PositiveSmallIntegerField(primary_key=True, default=ONLY, editable=False)
    is_closed = models.BooleanField(_("closed"), default=False)
    reason = models.CharField(_("reason"), max_length=255, blank=True, default="")
    changed_at = models.DateTimeField(_("changed at"), default=clock.now)
    changed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("changed by"),
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
    )

    class Meta:
        verbose_name = _("gateway switch")
        verbose_name_plural = _("gateway switch")
        permissions = [("operate_gateway_switch", _("Can close and open the gateway"))]
        constraints = [models.CheckConstraint(condition=Q(id=1), name="proxy_gatewayswitch_one_row")]

    def __str__(self) -> str:
        return str(_("Gateway"))


class MeterBatch(models.Model):
    """A batch of counts that was added to the sessions. Its id makes adding it twice impossible."""

    id = models.UUIDField(primary_key=True, editable=False)
    applied_at = models.DateTimeField(default=clock.now, db_index=True)

    class Meta:
        verbose_name = _("meter batch")
        verbose_name_plural = _("meter batches")

    def __str__(self) -> str:
        return str(self.id)
