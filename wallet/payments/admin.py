"""Currencies, rates and payments in the back office. Money is looked at; it moves only through the two actions."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.db.models import F, QuerySet
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _t
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from wallet.models import Currency, ExchangeRate, Payment, PaymentDispute, PaymentEvent, PaymentRefund
from wallet.payments import services
from wallet.payments.providers.base import in_digits
from zenzefi.lib.admin import ReadOnlyAdmin
from zenzefi.lib.errors import DomainError


@admin.register(Currency)
class CurrencyAdmin(admin.ModelAdmin[Currency]):
    list_display = ["code", "name", "minor_unit_digits", "is_active"]
    list_filter = ["is_active"]
    search_fields = ["code", "name"]

    def get_readonly_fields(self, request: HttpRequest, obj: Currency | None = None) -> list[str]:
        # Payments refer to the code, and their amounts were rounded to these digits.
        return ["code", "minor_unit_digits"] if obj else []

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(ExchangeRate)
class ExchangeRateAdmin(admin.ModelAdmin[ExchangeRate]):
    """A rate is replaced by a newer one, never edited."""

    list_display = ["currency", "__str__", "effective_from", "created_at"]
    list_filter = ["currency"]
    date_hierarchy = "effective_from"
    fields = ["currency", "znc_amount", "currency_amount", "effective_from"]

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class _ReadOnlyInline(admin.TabularInline[Any, Any]):
    extra = 0
    can_delete = False
    show_change_link = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class DisputeInline(_ReadOnlyInline):
    model = PaymentDispute
    readonly_fields = ["provider_dispute_id", "outcome", "amount", "created_at", "updated_at"]


class RefundInline(_ReadOnlyInline):
    model = PaymentRefund
    readonly_fields = ["amount", "reason", "requested_by", "status", "provider_refund_id", "created_at"]


class EventInline(_ReadOnlyInline):
    model = PaymentEvent
    readonly_fields = ["kind", "event_id", "received_at", "processed_at", "outcome", "attempts"]
    ordering = ["pk"]


class RefundForm(forms.Form):
    amount = forms.DecimalField(
        label=_("Amount"),
        required=False,
        min_value=0,
        max_digits=17,
        decimal_places=3,
        help_text=_("In the payment's currency; empty for all that is left."),
    )
    reason = forms.CharField(label=_("Reason"), max_length=255, widget=forms.TextInput(attrs={"size": 60}))


@admin.register(Payment)
class PaymentAdmin(ReadOnlyAdmin):
    list_display = [
        "id",
        "user",
        "provider",
        "status",
        "amount_znc",
        "paid",
        "refunded",
        "receipt_number",
        "created_at",
        "succeeded_at",
    ]
    list_filter = ["status", "provider", "currency", "created_at"]
    list_select_related = ["user", "currency"]
    search_fields = ["=id", "user__email", "user__username", "=provider_payment_id", "=receipt_number"]
    date_hierarchy = "created_at"
    fields = [
        "id",
        "user",
        "provider",
        "status",
        "amount_znc",
        "paid",
        "rate_znc_amount",
        "rate_currency_amount",
        "refunded",
        "reversed_znc",
        "receipt_number",
        "provider_payment_id",
        "provider_reference",
        "return_url",
        "poll_at",
        "polls",
        "created_at",
        "succeeded_at",
        "canceled_at",
    ]
    inlines = [DisputeInline, RefundInline, EventInline]
    actions = ["ask_provider", "refund"]

    @admin.display(description=_("to pay"), ordering="amount")
    def paid(self, payment: Payment) -> str:
        return f"{in_digits(payment.amount, payment.currency)} {payment.currency_id}"

    @admin.display(description=_("refunded"), ordering="refunded_amount")
    def refunded(self, payment: Payment) -> str:
        return in_digits(payment.refunded_amount, payment.currency)

    def has_ask_provider_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("wallet.ask_provider"))

    def has_refund_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("wallet.refund_payment"))

    @admin.action(description=_("Ask the provider again"), permissions=["ask_provider"])
    def ask_provider(self, request: HttpRequest, queryset: QuerySet[Payment]) -> None:
        for payment in queryset:
            try:
                settled = services.ask_provider(payment_id=payment.pk)
            except DomainError as exc:
                self.message_user(request, f"{payment.pk}: {exc.detail}", messages.ERROR)
            else:
                self.log_change(request, payment, [_t("Asked the provider: %s") % settled.get_status_display()])
                self.message_user(request, f"{payment.pk}: {settled.get_status_display()}", messages.SUCCESS)

    @admin.action(description=_("Refund"), permissions=["refund"])
    def refund(self, request: HttpRequest, queryset: QuerySet[Payment]) -> TemplateResponse | None:
        form = RefundForm(request.POST if "confirm" in request.POST else None)
        if form.is_valid():
            self._carry_out(request, queryset, **form.cleaned_data)
            return None
        context = {
            **self.admin_site.each_context(request),
            "action": "refund",
            "title": _t("Refund"),
            "opts": self.opts,
            "payments": [(payment, self.paid(payment), self.refunded(payment)) for payment in queryset],
            "form": form,
            "checkbox_name": helpers.ACTION_CHECKBOX_NAME,
        }
        return TemplateResponse(request, "admin/wallet/payment/refund.html", context)

    def _carry_out(self, request: HttpRequest, queryset: QuerySet[Payment], *, amount: Any, reason: str) -> None:
        """Refund each payment on its own: one that cannot be refunded holds up none of the others."""
        done = 0
        for payment in queryset:
            try:
                services.refund_payment(payment_id=payment.pk, amount=amount, reason=reason, actor=request.user)
            except DomainError as exc:
                self.message_user(request, f"{payment.pk}: {exc.detail}", messages.ERROR)
            else:
                self.log_change(request, payment, [_t("Refunded: %(reason)s") % {"reason": reason}])
                done += 1
        if done:
            text = ngettext("%(count)d payment refunded.", "%(count)d payments refunded.", done) % {"count": done}
            self.message_user(request, text, messages.SUCCESS)


class OpenFilter(admin.SimpleListFilter):
    title = _("carried out")
    parameter_name = "open"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("yes", _("Not yet"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[PaymentEvent]) -> QuerySet[PaymentEvent]:
        return queryset.filter(processed_at__isnull=True) if self.value() == "yes" else queryset


@admin.register(PaymentEvent)
class PaymentEventAdmin(ReadOnlyAdmin):
    list_display = ["received_at", "provider", "kind", "payment_id", "processed_at", "outcome", "attempts"]
    list_filter = [OpenFilter, "provider", "received_at"]
    search_fields = ["=event_id", "=payment__id"]
    fields = [
        "provider",
        "event_id",
        "kind",
        "payment",
        "received_at",
        "processed_at",
        "outcome",
        "attempts",
        "retry_at",
        "payload",
    ]
    actions = ["process_again"]

    def has_ask_provider_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("wallet.ask_provider"))

    @admin.action(description=_("Carry out again"), permissions=["ask_provider"])
    def process_again(self, request: HttpRequest, queryset: QuerySet[PaymentEvent]) -> None:
        for event in queryset.filter(processed_at__isnull=True).order_by(F("pk")):
            try:
                services.process_event(event_id=event.pk)
            except DomainError as exc:
                self.message_user(request, f"{event.event_id}: {exc.detail}", messages.ERROR)
            else:
                self.log_change(request, event, [_t("Carried out again")])
                self.message_user(request, f"{event.event_id}: {_t('done')}", messages.SUCCESS)
