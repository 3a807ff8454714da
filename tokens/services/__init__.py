"""Everything that changes access tokens.

The order of locks in every flow: accounts of the wallet, then tokens, each in the order of their primary keys.
"""

from tokens.services.devices import claim_device
from tokens.services.issuing import IssuedToken, issue_tokens
from tokens.services.lifecycle import Activation, activate_token, record_device_use, record_expiries
from tokens.services.maintenance import RotatedToken, release_device, rotate_token, update_token
from tokens.services.pricing import apply_price_list, cancel_price_change, schedule_price
from tokens.services.purchase import PurchasedToken, list_price, purchase_token, scope_for_sale, source_of
from tokens.services.renewal import (
    claim_due_renewals,
    renew_token,
    set_auto_renew,
    set_renewal_terms,
    stop_renewal,
    take_over_due,
)
from tokens.services.revocation import Revocation, refund_due, refund_for, revoke_token
from tokens.services.tiers import (
    ChosenTier,
    choose_tier,
    claim_due_subscriptions,
    grant_tier,
    renew_subscription,
)

__all__ = [
    "Activation",
    "ChosenTier",
    "IssuedToken",
    "PurchasedToken",
    "Revocation",
    "RotatedToken",
    "activate_token",
    "apply_price_list",
    "cancel_price_change",
    "choose_tier",
    "claim_device",
    "claim_due_renewals",
    "claim_due_subscriptions",
    "grant_tier",
    "issue_tokens",
    "list_price",
    "purchase_token",
    "record_device_use",
    "record_expiries",
    "refund_due",
    "refund_for",
    "release_device",
    "renew_subscription",
    "renew_token",
    "revoke_token",
    "rotate_token",
    "schedule_price",
    "scope_for_sale",
    "set_auto_renew",
    "set_renewal_terms",
    "source_of",
    "stop_renewal",
    "take_over_due",
    "update_token",
]
