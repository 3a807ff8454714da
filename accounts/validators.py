"""What a name may be made of, and the one form in which addresses and names are stored."""

from __future__ import annotations

import unicodedata

from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

#: Letters and symbols by their category, yet blank on screen: fillers of Hangul, the empty Braille cell.
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\u2800")


def normalise_name(value: str) -> str:
    """Return the text in Unicode form NFKC without space around it, so that look-alike spellings are one."""
    return unicodedata.normalize("NFKC", value).strip()


def normalise_email(value: str) -> str:
    """Return the address as typed, in form NFKC, without space around it and its domain in lower case.

    NFKC folds the characters that a case-insensitive match takes for ASCII letters, such as the Kelvin sign,
    so that an address made of them is the address it looks like.
    """
    local, at, domain = normalise_name(value).rpartition("@")
    return f"{local}{at}{domain.lower()}"


def ascii_domain(value: str) -> str:
    """Return a domain in its ASCII form (RFC 5891) and lower case, so that each has one spelling."""
    domain = normalise_name(value).rstrip(".").lower()
    try:
        return domain.encode("idna").decode("ascii")
    except UnicodeError:
        return domain


def validate_visible(value: str) -> None:
    """Refuse control, formatting, private and unassigned characters, line breaks and blank letters."""
    _refuse_invisible(value)


def validate_visible_text(value: str) -> None:
    """The same, but let pass the joiners that Persian and Indic spelling and emoji need."""
    _refuse_invisible(value.replace("\u200c", "").replace("\u200d", ""))


def _refuse_invisible(value: str) -> None:
    for character in value:
        category = unicodedata.category(character)
        if character in _BLANK or (character != " " and category[0] in "CZ"):
            raise ValidationError(_("Only visible characters are allowed."), code="invisible")
