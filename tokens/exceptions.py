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


class TokenHeld(Conflict):
    """The token is offered as a gift; until that is claimed or cancelled nothing about it changes."""

    code = "token_held"
    detail = _("The token is offered as a gift. Cancel the gift first.")


class TokenActivated(Conflict):
    code = "token_activated"
    detail = _("Only a token that was never used can be given away.")


class TokenNotUsable(Conflict):
    """The token cannot be activated: it is revoked, held for a gift or another's by now, or there is none."""

    code = "token_not_usable"
    detail = _("The token cannot be used.")


class InvalidNetwork(DomainError):
    """Something on the list of networks is neither an address nor a network."""

    code = "invalid_network"
    detail = _("Networks are addresses or CIDR blocks, such as 203.0.113.7 or 2001:db8::/32.")


class TooManyNetworks(DomainError):
    code = "too_many_networks"
    detail = _("A token can be bound to 50 networks at most.")


class GiftNotFound(NotFound):
    """No such gift, or not for the caller; the answer does not tell which."""


class GiftToSelf(DomainError):
    code = "gift_to_self"
    detail = _("You cannot give a token to yourself.")

    def __init__(self) -> None:
        super().__init__(errors={"recipient_email": [str(self.detail)]})


class OwnGift(DomainError):
    """Who gives can neither claim the gift nor approve it."""

    status = 403
    code = "own_gift"
    detail = _("This is your own gift.")


class GiftLimitReached(DomainError):
    """The day's gifts are used up; carries ``Retry-After`` in whole seconds."""

    status = 429
    code = "gift_limit_reached"
    detail = _("You have given away as many tokens as you may in a day.")


class GiftAwaitsApproval(Conflict):
    code = "gift_awaits_approval"
    detail = _("The gift still has to be approved. Please try again later.")


class GiftAlreadyClaimed(Conflict):
    code = "gift_already_claimed"
    detail = _("The gift has been claimed already.")


class GiftCancelled(Conflict):
    """The giver or staff took the gift back."""

    code = "gift_cancelled"
    detail = _("The gift was taken back.")


class GiftExpired(Conflict):
    code = "gift_expired"
    detail = _("The gift was not claimed in time.")


class GiftUnavailable(Conflict):
    """The giver's or the claimer's account is disabled."""

    code = "gift_unavailable"
    detail = _("The gift cannot be claimed at present.")


class GiftNotAwaiting(Conflict):
    code = "gift_not_awaiting_approval"
    detail = _("The gift does not wait for approval.")


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
