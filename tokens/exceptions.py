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


class TokenNotStarted(Conflict):
    """The token waits for the end of the one it renews: until then there is no secret of it to replace."""

    code = "token_not_started"
    detail = _("The token has not started yet. Replace the secret of the token that it renews.")


class TokenJustRenewed(Conflict):
    """A successor was bought while the request waited for the token."""

    code = "token_just_renewed"
    detail = _("The token has just been renewed. Please try again.")


class DailyCapReached(DomainError):
    """A renewal would lift what renewals have cost the account today above what it allows."""

    code = "daily_cap_reached"
    detail = _("Renewals may not cost the account more today.")


class OwnerDisabled(DomainError):
    """Nothing is bought for a disabled account."""

    code = "owner_disabled"
    detail = _("The account is disabled.")


class TokenNotUsable(Conflict):
    """The token cannot be activated: it is revoked, or there is none."""

    code = "token_not_usable"
    detail = _("The token cannot be used.")


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


class TierNotSold(DomainError):
    code = "tier_not_sold"
    detail = _("This tier is not sold.")


class TierUnchanged(Conflict):
    """The account has the tier already, and nothing about it is to be changed."""

    code = "tier_unchanged"
    detail = _("The account has this tier already.")
