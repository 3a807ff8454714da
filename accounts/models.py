"""Users."""

from __future__ import annotations

import secrets
import string
import uuid
from typing import Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.core.validators import MinLengthValidator
from django.db import models
from django.db.models.functions import Lower
from django.utils.translation import gettext_lazy as _

REFERRAL_CODE_ALPHABET = string.ascii_uppercase + string.digits
REFERRAL_CODE_LENGTH = 12


def generate_referral_code() -> str:
    """Return 12 random characters of A-Z and 0-9 (62 bits)."""
    return "".join(secrets.choice(REFERRAL_CODE_ALPHABET) for _ in range(REFERRAL_CODE_LENGTH))


class UserManager(BaseUserManager["User"]):
    def get_by_natural_key(self, username: str | None) -> User:
        """Sign-in by e-mail address, whatever its case."""
        return self.get(email__iexact=username)

    def create_user(self, email: str, username: str, password: str | None = None, **extra: Any) -> User:
        user = self.model(email=email, username=username, **extra)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, username: str, password: str | None = None, **extra: Any) -> User:
        return self.create_user(email, username, password, is_staff=True, is_superuser=True, **extra)


class User(AbstractBaseUser, PermissionsMixin):
    """A person with an account. Signs in by e-mail address; address and username are unique in any case."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    email = models.EmailField(_("e-mail address"), max_length=254, unique=True)
    username = models.CharField(_("username"), max_length=50, validators=[MinLengthValidator(3)])
    full_name = models.CharField(_("full name"), max_length=150, blank=True, default="")
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
                condition=models.Q(referred_by__isnull=True) | ~models.Q(referred_by=models.F("id")),
                name="accounts_user_not_referred_by_self",
            ),
        ]

    def __str__(self) -> str:
        return self.username
