"""What is refused about referral bonuses."""

from __future__ import annotations

from django.utils.translation import gettext_lazy as _

from zenzefi.lib.errors import Conflict, NotFound


class BonusNotFound(NotFound):
    """No such bonus."""


class BonusNotHeld(Conflict):
    """Paid or rejected already: a review is final."""

    code = "bonus_not_held"
    detail = _("The bonus is not waiting for review.")


class NothingLeftToPay(Conflict):
    code = "nothing_left_to_pay"
    detail = _("The purchase was refunded; nothing of the bonus is left.")


class ReferrerDisabled(Conflict):
    code = "referrer_disabled"
    detail = _("The referrer is disabled.")
