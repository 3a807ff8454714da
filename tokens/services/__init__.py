"""Everything that changes access tokens.

The order of locks in every flow: accounts of the wallet, then gifts, then tokens, each in the order of their primary
keys.
"""

from tokens.services.devices import claim_device
from tokens.services.gifts import (
    ClaimedGift,
    OfferedGift,
    approve_gift,
    cancel_gift,
    claim_gift,
    offer_gift,
    reject_gift,
    return_expired_gifts,
)
from tokens.services.issuing import IssuedToken, issue_tokens
from tokens.services.lifecycle import Activation, activate_token, record_device_use, record_expiries
from tokens.services.maintenance import RotatedToken, as_networks, release_device, rotate_token, update_token
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
    "ClaimedGift",
    "IssuedToken",
    "OfferedGift",
    "PurchasedToken",
    "Revocation",
    "RotatedToken",
    "activate_token",
    "apply_price_list",
    "approve_gift",
    "as_networks",
    "cancel_gift",
    "cancel_price_change",
    "choose_tier",
    "claim_device",
    "claim_due_renewals",
    "claim_due_subscriptions",
    "claim_gift",
    "grant_tier",
    "issue_tokens",
    "list_price",
    "offer_gift",
    "purchase_token",
    "record_device_use",
    "record_expiries",
    "refund_due",
    "refund_for",
    "reject_gift",
    "release_device",
    "renew_subscription",
    "renew_token",
    "return_expired_gifts",
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
