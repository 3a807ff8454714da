"""Everything that changes bundles and sells them."""

from bundles.services.editing import create_bundle, edit_bundle, save_edited_bundle, switch_off_bundle
from bundles.services.pricing import Prices, price_bundle
from bundles.services.purchase import PurchasedBundle, purchase_bundle, split_price

__all__ = [
    "Prices",
    "PurchasedBundle",
    "create_bundle",
    "edit_bundle",
    "price_bundle",
    "purchase_bundle",
    "save_edited_bundle",
    "split_price",
    "switch_off_bundle",
]
