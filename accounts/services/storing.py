"""Writing a user so that a duplicate is a refusal that names the field, whoever else writes at the same time."""

from __future__ import annotations

from collections.abc import Sequence

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from accounts import selectors
from accounts.models import User

_TAKEN: dict[str, Promise] = {
    "email": _("This e-mail address is already registered."),
    "username": _("This username is already taken."),
}


def check_user(user: User) -> None:
    """Normalise and check every field but the password.

    Raises :class:`~django.core.exceptions.ValidationError` with the texts by field.
    """
    user.clean()
    user.clean_fields(exclude=["password", "referred_by"])
    if taken := selectors.duplicates(user):
        raise _taken(*taken)


def store_user(user: User, *, update_fields: Sequence[str] | None = None) -> None:
    """Save the user in a savepoint.

    Raises :class:`~django.core.exceptions.ValidationError` when somebody else took the address or the name
    since :func:`check_user` looked: only the unique index can decide between two at once.
    """
    try:
        with transaction.atomic():
            user.save(update_fields=[*update_fields, "updated_at"] if update_fields is not None else None)
    except IntegrityError as exc:
        constraint = getattr(getattr(exc.__cause__, "diag", None), "constraint_name", None) or ""
        for field in _TAKEN:
            if constraint.startswith(f"accounts_user_{field}"):
                raise _taken(field) from None
        raise


def _taken(*fields: str) -> ValidationError:
    return ValidationError({field: _TAKEN[field] for field in fields})
