"""New users."""

from __future__ import annotations

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError

from accounts import selectors
from accounts.exceptions import MailDomainBlocked, UnknownReferralCode
from accounts.models import User
from accounts.services.storing import check_user, store_user
from accounts.signals import user_registered
from notifications.services import record
from zenzefi.lib.transactions import run_in_transaction

#: Hashing is made to be slow: without a limit a long password would keep a process busy.
PASSWORD_MAX_LENGTH = 128


def check_password_rules(password: str, user: User, *, field: str = "password") -> None:
    """Raise :class:`~django.core.exceptions.ValidationError` under ``field`` for a password that may not be used."""
    try:
        validate_password(password, user)
    except ValidationError as refused:
        raise ValidationError({field: refused.error_list}) from None


def register_user(
    *,
    email: str,
    username: str,
    password: str,
    full_name: str = "",
    referral_code: str = "",
    language: str = "en",
    address: str = "",
) -> User:
    """Create a user from what they typed, and record ``user.registered``; ``address`` is where they did so from.

    Raises :class:`UnknownReferralCode`, :class:`MailDomainBlocked`, and
    :class:`~django.core.exceptions.ValidationError` with the texts by field for values that break a rule and
    for an address or name that is taken in any case.
    """
    user = User(email=email, username=username, full_name=full_name, language=language)
    user.registered_from = address or None
    check_user(user)
    demand_welcome_domain(user.email)
    check_password_rules(password, user)
    if referral_code.strip():
        user.referred_by = selectors.user_by_referral_code(referral_code)
        if user.referred_by is None:
            raise UnknownReferralCode
    # Before the transaction: hashing takes long, and would hold a connection meanwhile.
    user.set_password(password)
    return add_user(user=user, actor=None)


def demand_welcome_domain(email: str) -> None:
    """Raise :class:`~accounts.exceptions.MailDomainBlocked` for an address of a blocked mail domain."""
    if selectors.mail_domain_is_blocked(email):
        raise MailDomainBlocked


def add_user(*, user: User, actor: User | None) -> User:
    """Store a checked user whose password is set; ``actor`` is the staff member who adds them, if not themselves.

    Sends :data:`~accounts.signals.user_registered` inside the transaction.
    Raises :class:`~django.core.exceptions.ValidationError` for an address or name taken meanwhile.
    """

    def flow() -> User:
        store_user(user)
        user_registered.send(sender=User, user=user)
        record(
            "user.registered",
            user,
            {
                "user_id": str(user.pk),
                "referred_by": str(user.referred_by_id) if user.referred_by_id else None,
                "actor_id": str(actor.pk) if actor else None,
            },
        )
        return user

    return run_in_transaction(flow)
