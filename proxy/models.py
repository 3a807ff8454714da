"""What the gateway allows below a scope, and what passed through it."""

from __future__ import annotations

import re
import uuid
from urllib.parse import urlsplit

import pgtrigger
from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.db.models import Q, Value
from django.utils.translation import gettext_lazy as _

from proxy.scopes import METHODS, InvalidPattern, parse_pattern
from proxy.targets import ACTIVE, DISABLED, DRAINING
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
    """Paths that a restricted scope opens or closes, below the base path of the upstream.

    ``certificates/filter`` means that path alone; ``certificates/details/…`` (or ``/...``) every path of one
    or more further segments under it. Whole segments are compared, byte for byte. What no rule allows is closed, and
    what any rule denies is closed whatever else allows it, so that the order of the rules does not matter.

    These are the rules in force. They change through :mod:`proxy.scope_services`, which keeps every version.
    """

    class Action(models.TextChoices):
        ALLOW = "allow", _("Allow")
        DENY = "deny", _("Deny")

    scope = models.ForeignKey("tokens.Scope", verbose_name=_("scope"), on_delete=models.CASCADE, related_name="rules")
    action = models.CharField(_("action"), max_length=8, choices=Action.choices, default=Action.ALLOW)
    method = models.CharField(
        _("method"),
        max_length=16,
        blank=True,
        default="",
        choices=[(method, method) for method in METHODS],
        help_text=_("Empty: any. A rule for GET is one for HEAD as well."),
    )
    pattern = models.CharField(_("path"), max_length=255, validators=[validate_pattern])
    description = models.CharField(_("description"), max_length=255, blank=True, default="")

    class Meta:
        verbose_name = _("path rule")
        verbose_name_plural = _("path rules")
        ordering = ["scope", "pattern"]
        constraints = [
            models.UniqueConstraint(fields=["scope", "pattern", "method", "action"], name="proxy_scoperule_once")
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.method or '*'} {self.pattern}"


class ScopeVersion(models.Model):
    """All rules of a scope from a change on, who made it and why. Written once; the database refuses anything else."""

    scope = models.ForeignKey("tokens.Scope", verbose_name=_("scope"), on_delete=models.PROTECT, related_name="+")
    number = models.PositiveIntegerField(_("version"))
    #: Objects of action, method, pattern and description, in the order of action, pattern and method.
    rules = models.JSONField(_("rules"), default=list)
    reason = models.CharField(_("reason"), max_length=255)
    #: Empty for what a migration made.
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        verbose_name=_("changed by"),
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
    )
    created_at = models.DateTimeField(_("created at"), default=clock.now)

    class Meta:
        verbose_name = _("version of path rules")
        verbose_name_plural = _("versions of path rules")
        ordering = ["scope", "-number"]
        permissions = [("roll_back_scopeversion", "Can roll a scope back to an earlier version")]
        constraints = [models.UniqueConstraint(fields=["scope", "number"], name="proxy_scopeversion_number")]
        triggers = [pgtrigger.Protect(name="append_only", operation=pgtrigger.Update | pgtrigger.Delete)]

    def __str__(self) -> str:
        return f"{self.scope_id} {self.number}"


def validate_target_url(value: str) -> None:
    """Raise :class:`ValidationError` for what cannot be the address of a server."""
    try:
        parts = urlsplit(value)
        usable = (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and parts.port != 0
            and not (parts.query or parts.fragment or parts.username or parts.password)
        )
    except ValueError:
        usable = False
    if not usable or not re.fullmatch(r"[!-~]+", value):
        raise ValidationError(_("An address is http:// or https://, a host and at most a path, without credentials."))


_validate_host = RegexValidator(r"\A[A-Za-z0-9._:\[\]-]+\Z", _("This is not a host."))
_validate_probe = RegexValidator(r"\A/[!-~]*\Z", _("A path that begins with a slash."))


class UpstreamTarget(models.Model):
    """A Zenzefi server that requests are sent to. As soon as there is one, ``ZENZEFI_TARGET_URL`` is not used."""

    class State(models.TextChoices):
        ACTIVE = ACTIVE, _("Active")
        #: No new requests; what runs may finish.
        DRAINING = DRAINING, _("Draining")
        #: No new requests; what runs is cut.
        DISABLED = DISABLED, _("Off")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.SlugField(_("name"), max_length=64, unique=True, help_text=_("For people and metrics."))
    url = models.CharField(_("address"), max_length=500, validators=[validate_target_url])
    weight = models.PositiveSmallIntegerField(
        _("weight"), default=1, validators=[MinValueValidator(1), MaxValueValidator(1000)]
    )
    scopes = models.ManyToManyField(
        "tokens.Scope", verbose_name=_("scopes"), blank=True, related_name="+", help_text=_("None: it serves all.")
    )
    state = models.CharField(_("state"), max_length=16, choices=State.choices, default=State.ACTIVE)
    host = models.CharField(
        _("Host header"),
        max_length=255,
        blank=True,
        default="",
        validators=[_validate_host],
        help_text=_("Empty: that of the address."),
    )
    max_connections = models.PositiveIntegerField(
        _("connections per web process"),
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(100_000)],
        help_text=_("Empty: GATEWAY_MAX_UPSTREAM_CONNECTIONS."),
    )
    counts_gateway_errors = models.BooleanField(
        _("answers 502, 503 and 504 are failures"),
        default=False,
        help_text=_("For a server behind a proxy of its own. They are relayed in any case."),
    )
    carried_at_edge = models.BooleanField(
        _("carried at the edge"),
        default=True,
        help_text=_("Whether an nginx in front may carry requests to it. Not if it sends interim answers such as 103."),
    )
    probe_path = models.CharField(
        _("probe"),
        max_length=255,
        blank=True,
        default="/",
        validators=[_validate_probe],
        help_text=_("A path below the address that is asked for every few seconds. Empty: never."),
    )
    ca_certificates = models.TextField(
        _("authority's certificates"),
        blank=True,
        default="",
        help_text=_("PEM. Empty: ZENZEFI_CA_FILE or the system's."),
    )
    client_certificate = models.TextField(
        _("our certificate"), blank=True, default="", help_text=_("PEM, with the intermediate ones.")
    )
    #: Encrypted; see :func:`proxy.targets.seal_key`.
    client_key = models.BinaryField(_("key of our certificate"), blank=True, default=b"", editable=False)
    notes = models.TextField(_("notes"), blank=True, default="")
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated at"), auto_now=True)

    class Meta:
        verbose_name = _("Zenzefi server")
        verbose_name_plural = _("Zenzefi servers")
        ordering = ["name"]
        permissions = [("operate_upstreamtarget", "Can drain, switch off and activate servers")]
        constraints = [models.CheckConstraint(condition=Q(weight__gte=1), name="proxy_target_weight_positive")]

    def __str__(self) -> str:
        return self.name


class UpstreamOutage(models.Model):
    """A time in which no Zenzefi server could be asked."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    #: Names of the servers that should have served.
    targets = models.JSONField(_("Zenzefi servers"), default=list)
    started_at = models.DateTimeField(_("started at"), default=clock.now)
    ended_at = models.DateTimeField(_("ended at"), null=True, blank=True)

    class Meta:
        verbose_name = _("outage")
        verbose_name_plural = _("outages")
        ordering = ["-started_at"]
        constraints = [
            # However many workers notice it, it is one.
            models.UniqueConstraint(Value(1), condition=Q(ended_at__isnull=True), name="proxy_outage_one_open"),
        ]

    def __str__(self) -> str:
        return f"{self.started_at:%Y-%m-%d %H:%M:%S}"


class SessionQuerySet(models.QuerySet["Session"]):
    def open(self) -> SessionQuerySet:
        return self.filter(ended_at__isnull=True)


class Session(models.Model):
    """The use of one token by one device, from its first request until it was idle, lost it or the token ended."""

    class EndedReason(models.TextChoices):
        IDLE = "idle", _("Idle")
        EXPIRED = "expired", _("Token expired")
        REVOKED = "revoked", _("Token revoked")
        DEVICE_RELEASED = "device_released", _("Device released")
        #: Another device holds the token, which has one seat.
        DEVICE_CHANGED = "device_changed", _("Another device took over")
        OWNER_DISABLED = "owner_disabled", _("Owner disabled")

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
