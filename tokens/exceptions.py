"""What is refused about access tokens."""

from __future__ import annotations

from django.utils.translation import gettext_lazy as _

from zenzefi.lib.errors import Conflict, DomainError, NotFound


class DurationNotSold(DomainError):
    code = "duration_not_sold"
    detail = _("Tokens of this duration are not sold.")


class ScopeNotSold(DomainError):
    code = "scope_not_sold"
    detail = _("Tokens of this scope are not sold.")


class TokenNotFound(NotFound):
    """No such token, or not the caller's."""


class TokenAlreadyRevoked(Conflict):
    code = "token_already_revoked"
    detail = _("The token is revoked already.")


class TokenExpired(Conflict):
    code = "token_expired"
    detail = _("The token has expired.")


class TokenChangedOwner(Conflict):
    """The token went to another owner while the request waited for it."""

    code = "token_changed_owner"
    detail = _("The token has just changed its owner.")


class TokenNotUsable(Conflict):
    """The token cannot be activated: it is revoked, or there is none."""

    code = "token_not_usable"
    detail = _("The token cannot be used.")


class InvalidNetwork(DomainError):
    """Something on the list of networks is neither an address nor a network."""

    code = "invalid_network"
    detail = _("Networks are addresses or CIDR blocks, such as 203.0.113.7 or 2001:db8::/32.")


class TooManyNetworks(DomainError):
    code = "too_many_networks"
    detail = _("A token can be bound to 50 networks at most.")


class PriceChangeNotFound(NotFound):
    """No such price change."""


class PriceChangeInPast(DomainError):
    """A price in effect is history: it is neither added nor taken away afterwards."""

    code = "price_change_in_past"
    detail = _("A price can only change from now on.")


class PriceChangeExists(Conflict):
    code = "price_change_exists"
    detail = _("Another price is scheduled for this duration at the same moment.")


class InvalidPriceList(DomainError):
    """A price list file that cannot be read; the text says what is wrong."""

    code = "invalid_price_list"
