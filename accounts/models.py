"""Users."""

from __future__ import annotations

import re
import secrets
import string
import uuid
from typing import Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.core.exceptions import ValidationError
from django.core.validators import MinLengthValidator
from django.db import models
from django.db.models import F, Q, Value
from django.db.models.functions import Lower
from django.db.models.lookups import Exact
from django.utils.translation import gettext_lazy as _

from accounts.validators import ascii_domain, normalise_email, normalise_name, validate_visible, validate_visible_text
from zenzefi.lib import clock

REFERRAL_CODE_ALPHABET = string.ascii_uppercase + string.digits
REFERRAL_CODE_LENGTH = 12

#: The tier of every account that has bought no other.
FREE_TIER = "free"


def generate_referral_code() -> str:
    """Return 12 random characters of A-Z and 0-9 (62 bits)."""
    return "".join(secrets.choice(REFERRAL_CODE_ALPHABET) for _ in range(REFERRAL_CODE_LENGTH))


def same_in_any_case(field: str, value: str) -> Exact:
    """Return the comparison in the form that the unique index of the field serves."""
    return Exact(Lower(field), Lower(Value(value)))


class UserManager(BaseUserManager["User"]):
    def with_email(self, email: str) -> models.QuerySet[User]:
        """Users with this address, whatever its case."""
        return self.filter(same_in_any_case("email", normalise_email(email)))

    def get_by_natural_key(self, username: str | None) -> User:
        """Sign-in by e-mail address, whatever its case."""
        return self.with_email(username or "").get()

    def create_user(self, email: str, username: str, password: str | None = None, **extra: Any) -> User:
        """Store a user unchecked: for ``createsuperuser`` and tests. Flows call :mod:`accounts.services`."""
        user = self.model(email=normalise_email(email), username=normalise_name(username), **extra)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, username: str, password: str | None = None, **extra: Any) -> User:
        return self.create_user(email, username, password, is_staff=True, is_superuser=True, **extra)


class Tier(models.Model):
    """What an account may do per minute, and what that costs a month.

    Staff edit the rows; accounts move between them by buying. An empty limit is the platform's own:
    ``RATE_LIMIT_API`` and ``RATE_LIMIT_PROXY``.
    """

    slug = models.SlugField(_("tier"), max_length=32, primary_key=True)
    name = models.CharField(_("name"), max_length=64)
    #: ZNC for one month; 0.00 is not renewed and never ends.
    monthly_price = models.DecimalField(_("price a month in ZNC"), max_digits=10, decimal_places=2)
    #: Of the API, by all clients of the account together.
    api_requests_per_minute = models.PositiveIntegerField(_("API requests a minute"), null=True, blank=True)
    #: Of the gateway, by each token.
    proxy_requests_per_minute = models.PositiveIntegerField(
        _("proxied requests a minute of each token"), null=True, blank=True
    )
    is_active = models.BooleanField(_("for sale"), default=True)
    updated_at = models.DateTimeField(_("updated at"), auto_now=True)

    class Meta:
        verbose_name = _("tier")
        verbose_name_plural = _("tiers")
        ordering = ["monthly_price", "slug"]
        constraints = [
            models.CheckConstraint(condition=Q(monthly_price__gte=0), name="accounts_tier_price_not_negative"),
            models.CheckConstraint(
                condition=Q(api_requests_per_minute__isnull=True) | Q(api_requests_per_minute__gt=0),
                name="accounts_tier_api_limit_positive",
            ),
            models.CheckConstraint(
                condition=Q(proxy_requests_per_minute__isnull=True) | Q(proxy_requests_per_minute__gt=0),
                name="accounts_tier_proxy_limit_positive",
            ),
        ]

    def __str__(self) -> str:
        return self.name


class User(AbstractBaseUser, PermissionsMixin):
    """A person with an account. Signs in by e-mail address; address and username are unique in any case."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    email = models.EmailField(_("e-mail address"), max_length=254, unique=True)
    username = models.CharField(_("username"), max_length=50, validators=[MinLengthValidator(3), validate_visible])
    full_name = models.CharField(
        _("full name"), max_length=150, blank=True, default="", validators=[validate_visible_text]
    )
    language = models.CharField(
        _("language"), max_length=5, default="en", choices=[("en", _("English")), ("ru", _("Russian"))]
    )
    is_active = models.BooleanField(_("active"), default=True)
    is_staff = models.BooleanField(_("staff"), default=False)
    referral_code = models.CharField(
        _("referral code"),
        max_length=REFERRAL_CODE_LENGTH,
        unique=True,
        default=generate_referral_code,
        editable=False,
    )
    referred_by = models.ForeignKey(
        "self",
        verbose_name=_("referred by"),
        null=True,
        blank=True,
        editable=False,
        on_delete=models.PROTECT,
        related_name="referees",
    )
    tier = models.ForeignKey(
        Tier, verbose_name=_("tier"), default=FREE_TIER, on_delete=models.PROTECT, related_name="+", editable=False
    )
    #: Evidence against people who refer themselves; unknown for users whom staff added.
    registered_from = models.GenericIPAddressField(_("registered from"), null=True, blank=True, editable=False)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True, db_index=True)
    updated_at = models.DateTimeField(_("updated at"), auto_now=True)

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = ["username"]

    objects = UserManager()

    class Meta:
        verbose_name = _("user")
        verbose_name_plural = _("users")
        constraints = [
            models.UniqueConstraint(
                Lower("email"),
                name="accounts_user_email_ci",
                violation_error_message=_("This e-mail address is already registered."),
            ),
            models.UniqueConstraint(
                Lower("username"),
                name="accounts_user_username_ci",
                violation_error_message=_("This username is already taken."),
            ),
            models.CheckConstraint(
                condition=Q(referred_by__isnull=True) | ~Q(referred_by=F("id")),
                name="accounts_user_not_referred_by_self",
            ),
        ]
        permissions = [("set_user_active", _("Can disable and enable users"))]

    def __str__(self) -> str:
        return self.username

    def clean(self) -> None:
        self.email = normalise_email(self.email)
        self.username = normalise_name(self.username)
        self.full_name = normalise_name(self.full_name)


class BlockedMailDomain(models.Model):
    """A domain whose addresses, and those of its subdomains, nobody registers with: throw-away mail, say."""

    #: In its ASCII form (RFC 5891), lower case.
    domain = models.CharField(_("domain"), max_length=253, unique=True)
    reason = models.CharField(_("reason"), max_length=255, blank=True, default="")
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)

    class Meta:
        verbose_name = _("blocked mail domain")
        verbose_name_plural = _("blocked mail domains")
        ordering = ["domain"]

    def __str__(self) -> str:
        return self.domain

    def clean(self) -> None:
        self.domain = ascii_domain(self.domain.removeprefix("@"))
        if not re.fullmatch(r"([a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", self.domain):
            raise ValidationError({"domain": _("This is not a domain name, such as example.com.")})


class SignInSessionQuerySet(models.QuerySet["SignInSession"]):
    def alive(self) -> SignInSessionQuerySet:
        return self.filter(ended_at__isnull=True, expires_at__gt=clock.now())

    def end(self, reason: str) -> int:
        """End those that have not ended; returns how many there were."""
        return self.filter(ended_at__isnull=True).update(ended_at=clock.now(), end_reason=reason)


class SignInSession(models.Model):
    """One sign-in on one device: the family of refresh tokens that descend from it, and its access tokens.

    All of them are refused once it has ended, whatever their own lifetime.
    """

    class EndReason(models.TextChoices):
        SIGNED_OUT = "signed_out", _("Signed out")
        ENDED_BY_USER = "ended_by_user", _("Ended by the user")
        REFRESH_REUSED = "refresh_reused", _("A spent refresh token was used again")
        CREDENTIALS_CHANGED = "credentials_changed", _("Password or e-mail address changed")
        USER_DISABLED = "user_disabled", _("User disabled")

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(
        User, verbose_name=_("user"), on_delete=models.CASCADE, related_name="sign_in_sessions", editable=False
    )
    address = models.GenericIPAddressField(_("address"), null=True, blank=True)
    user_agent = models.CharField(_("user agent"), max_length=255, blank=True, default="")
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    #: Sign-in or latest refresh; requests in between are not written down.
    last_used_at = models.DateTimeField(_("last used at"))
    expires_at = models.DateTimeField(_("expires at"), db_index=True)
    ended_at = models.DateTimeField(_("ended at"), null=True, blank=True)
    end_reason = models.CharField(_("end reason"), max_length=32, choices=EndReason.choices, blank=True, default="")

    objects = SignInSessionQuerySet.as_manager()

    class Meta:
        verbose_name = _("sign-in session")
        verbose_name_plural = _("sign-in sessions")
        ordering = ["-last_used_at"]
        constraints = [
            models.CheckConstraint(
                condition=Q(ended_at__isnull=True, end_reason="") | (Q(ended_at__isnull=False) & ~Q(end_reason="")),
                name="accounts_session_end_has_reason",
            ),
            models.CheckConstraint(
                condition=Q(expires_at__gt=F("last_used_at")), name="accounts_session_expires_after_use"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.user_id} {self.created_at:%Y-%m-%d %H:%M:%S}"

    @property
    def is_alive(self) -> bool:
        return self.ended_at is None and self.expires_at > clock.now()


class RefreshToken(models.Model):
    """One member of a family. The token itself is nowhere: it is derived from the row and the secret key.

    That is how a client whose answer was lost gets the very same successor again.
    """

    session = models.ForeignKey(SignInSession, on_delete=models.CASCADE, related_name="refresh_tokens")
    #: Counts from 0, at sign-in; only the highest of a family is unspent.
    generation = models.PositiveIntegerField()
    nonce = models.BinaryField(max_length=16)
    #: SHA-256 of the token.
    digest = models.BinaryField(max_length=32, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)
    spent_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["session", "generation"], name="accounts_refresh_generation"),
            # Two unspent tokens of one family would be two successors of one token.
            models.UniqueConstraint(
                fields=["session"], condition=Q(spent_at__isnull=True), name="accounts_refresh_one_unspent"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.session_id} {self.generation}"
