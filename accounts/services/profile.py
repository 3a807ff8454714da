"""What users change about themselves."""

from __future__ import annotations

from django.contrib.auth.hashers import check_password, make_password

from accounts.exceptions import WrongPassword
from accounts.models import SignInSession, User
from accounts.services.registration import check_password_rules, demand_welcome_domain
from accounts.services.sessions import end_sessions_of
from accounts.services.storing import check_user, store_user
from notifications.services import record
from zenzefi.lib.transactions import run_in_transaction


def update_profile(
    *,
    user: User,
    session: SignInSession | None,
    full_name: str | None = None,
    language: str | None = None,
    email: str | None = None,
    password: str | None = None,
    current_password: str = "",
) -> User:
    """Change what is given of the user; ``None`` leaves a field as it is.

    A new password or address needs the current password, and ends every session but the given one.
    Raises :class:`WrongPassword`, :class:`~accounts.exceptions.MailDomainBlocked`, and
    :class:`~django.core.exceptions.ValidationError` with the texts by field.
    """
    sensitive = email is not None or password is not None
    if sensitive and not user.check_password(current_password):
        raise WrongPassword
    # Before the transaction: hashing takes long, and would hold the lock meanwhile.
    new_hash = _hash_checked(password, user) if password is not None else None

    def flow() -> User:
        locked = User.objects.select_for_update(no_key=True).get(pk=user.pk)
        if sensitive and locked.password != user.password and not check_password(current_password, locked.password):
            raise WrongPassword
        before = locked.email
        if full_name is not None:
            locked.full_name = full_name
        if language is not None:
            locked.language = language
        if email is not None:
            locked.email = email
        check_user(locked)
        if locked.email != before:
            demand_welcome_domain(locked.email)
        if new_hash is not None:
            locked.password = new_hash
        store_user(locked, update_fields=["full_name", "language", "email", "password"])
        if new_hash is not None:
            record("user.password_changed", locked, {"user_id": str(locked.pk), "actor_id": str(locked.pk)})
        if locked.email != before:
            record("user.email_changed", locked, {"user_id": str(locked.pk), "from": before, "to": locked.email})
        if new_hash is not None or locked.email != before:
            end_sessions_of(locked, SignInSession.EndReason.CREDENTIALS_CHANGED, keep=session)
        return locked

    return run_in_transaction(flow)


def change_password(*, user: User, password: str, actor: User) -> User:
    """Give the user another password on behalf of staff, and end all their sessions.

    Raises :class:`~django.core.exceptions.ValidationError` under ``password`` for one that may not be used.
    """
    new_hash = _hash_checked(password, user)

    def flow() -> User:
        locked = User.objects.select_for_update(no_key=True).get(pk=user.pk)
        locked.password = new_hash
        store_user(locked, update_fields=["password"])
        record("user.password_changed", locked, {"user_id": str(locked.pk), "actor_id": str(actor.pk)})
        end_sessions_of(locked, SignInSession.EndReason.CREDENTIALS_CHANGED)
        return locked

    return run_in_transaction(flow)


def _hash_checked(password: str, user: User) -> str:
    check_password_rules(password, user)
    return make_password(password)
