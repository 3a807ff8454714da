"""The ledger in the back office: to look at, never to change."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import ValidationError
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _

from wallet.models import Account, Transfer
from wallet.payments import admin as payments_admin  # noqa: F401 - registers payments and currencies
from zenzefi.lib.admin import ReadOnlyAdmin


class OwnerKindFilter(admin.SimpleListFilter):
    title = _("owner")
    parameter_name = "owner"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("user", _("Users")), ("system", _("System"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Account]) -> QuerySet[Account]:
        if self.value() == "user":
            return queryset.filter(user__isnull=False)
        if self.value() == "system":
            return queryset.filter(user__isnull=True)
        return queryset


class OwingFilter(admin.SimpleListFilter):
    title = _("owed")
    parameter_name = "owing"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("yes", _("Owes"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Account]) -> QuerySet[Account]:
        return queryset.filter(owed__gt=0) if self.value() == "yes" else queryset


@admin.register(Account)
class AccountAdmin(ReadOnlyAdmin):
    list_display = ["__str__", "balance", "owed", "created_at", "transfers"]
    list_filter = [OwnerKindFilter, OwingFilter, "created_at"]
    list_select_related = ["user"]
    search_fields = ["user__email", "user__username", "system"]
    fields = ["user", "system", "balance", "owed", "created_at", "transfers"]
    ordering = ["-created_at", "pk"]

    @admin.display(description=_("transfers"))
    def transfers(self, account: Account) -> str:
        address = reverse("admin:wallet_transfer_changelist")
        return format_html('<a href="{}?{}">{}</a>', address, urlencode({"account": str(account.pk)}), _("Show"))


class AccountFilter(admin.SimpleListFilter):
    """Transfers of one account, on either side; chosen by following the link of an account."""

    title = _("account")
    parameter_name = "account"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        chosen = self.used_parameters.get(self.parameter_name)
        return [(str(chosen), _("Chosen account"))] if chosen else []

    def has_output(self) -> bool:
        return True

    def queryset(self, request: HttpRequest, queryset: QuerySet[Transfer]) -> QuerySet[Transfer]:
        if not self.value():
            return queryset
        try:
            return queryset.filter(Q(debit_account=self.value()) | Q(credit_account=self.value()))
        except ValidationError as exc:
            # The change list answers this by dropping the filter.
            raise IncorrectLookupParameters from exc


@admin.register(Transfer)
class TransferAdmin(ReadOnlyAdmin):
    list_display = ["created_at", "kind", "amount", "from_account", "to_account", "source", "description"]
    list_filter = [AccountFilter, "kind", "created_at"]
    list_select_related = ["debit_account__user", "credit_account__user"]
    search_fields = [
        "source",
        "debit_account__user__email",
        "debit_account__user__username",
        "credit_account__user__email",
        "credit_account__user__username",
    ]
    fields = [
        "public_id",
        "created_at",
        "kind",
        "amount",
        "from_account",
        "debit_balance_after",
        "debit_owed_after",
        "to_account",
        "credit_balance_after",
        "credit_owed_after",
        "source",
        "description",
    ]

    @admin.display(description=_("from"))
    def from_account(self, transfer: Transfer) -> str:
        return _link(transfer.debit_account)

    @admin.display(description=_("to"))
    def to_account(self, transfer: Transfer) -> str:
        return _link(transfer.credit_account)


def _link(account: Account) -> str:
    return format_html('<a href="{}">{}</a>', reverse("admin:wallet_account_change", args=[account.pk]), account)
