"""What is refused about bundles."""

from __future__ import annotations

from django.utils.translation import gettext_lazy as _

from zenzefi.lib.errors import Conflict, DomainError, NotFound


class BundleNotFound(NotFound):
    """No such bundle."""


class BundleNotSold(DomainError):
    """The bundle is switched off, or its scope is."""

    code = "bundle_not_sold"
    detail = _("This bundle is not sold.")


class BundleNameTaken(Conflict):
    code = "bundle_name_taken"
    detail = _("There is another bundle of this name.")

    def __init__(self) -> None:
        super().__init__(errors={"name": [str(self.detail)]})


class PricesDisagree(DomainError):
    """Prices set by hand differ from what follows from the price list and the discount, and no reason was given."""

    code = "reason_required"
    detail = _("Prices other than those of the price list and the discount need a reason.")

    def __init__(self) -> None:
        super().__init__(errors={"override_reason": [str(self.detail)]})


class PriceOutOfRange(DomainError):
    """A total above the base price, below a cent for each token, or too large to store."""

    code = "price_out_of_range"
    detail = _("The total price must be at least a cent for each token and at most the base price.")

    def __init__(self) -> None:
        super().__init__(errors={"total_price": [str(self.detail)]})
