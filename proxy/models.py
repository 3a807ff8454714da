"""What the gateway allows below a scope, and what passed through it."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from proxy.scopes import InvalidPattern, parse_pattern
from zenzefi.lib import clock


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


class MeterBatch(models.Model):
    """A batch of counts that was added to the sessions. Its id makes adding it twice impossible."""

    id = models.UUIDField(primary_key=True, editable=False)
    applied_at = models.DateTimeField(default=clock.now, db_index=True)

    class Meta:
        verbose_name = _("meter batch")
        verbose_name_plural = _("meter batches")

    def __str__(self) -> str:
        return str(self.id)
