"""Access tokens in the back office."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import OuterRef, Q, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _t
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from tokens import services
from tokens.exceptions import PriceChangeInPast
from tokens.models import AccessToken, Gift, PriceChange, RenewalDefault, Scope, TierSubscription, TokenPrice
from zenzefi.lib import clock
from zenzefi.lib.admin import ReadOnlyAdmin, ReasonForm
from zenzefi.lib.errors import DomainError


class StatusFilter(admin.SimpleListFilter):
    title = _("status")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return list(AccessToken.Status.choices)

    def queryset(self, request: HttpRequest, queryset: QuerySet[AccessToken]) -> QuerySet[AccessToken]:
        now = clock.now()
        scheduled = Q(predecessor__isnull=False, activated_at__gt=now)
        conditions = {
            AccessToken.Status.SCHEDULED.value: Q(revoked_at__isnull=True) & scheduled,
            AccessToken.Status.READY.value: Q(revoked_at__isnull=True, expires_at__isnull=True, held_at__isnull=True),
            AccessToken.Status.GIFTED.value: Q(held_at__isnull=False),
            AccessToken.Status.ACTIVE.value: Q(revoked_at__isnull=True, expires_at__gt=now) & ~scheduled,
            AccessToken.Status.EXPIRED.value: Q(revoked_at__isnull=True, expires_at__lte=now),
            AccessToken.Status.REVOKED.value: Q(revoked_at__isnull=False),
        }
        return queryset.filter(conditions.get(self.value() or "", Q()))


@admin.register(AccessToken)
class AccessTokenAdmin(ReadOnlyAdmin):
    """Nobody sees more of a token than its hint; it changes only by being revoked, with a reason."""

    list_display = [
        "hint",
        "owner",
        "label",
        "scope_id",
        "duration_hours",
        "status",
        "paid",
        "refunded",
        "created_at",
        "expires_at",
        "auto_renew",
    ]
    list_filter = [StatusFilter, "scope", "duration_hours", "auto_renew", "renewal_paused", "created_at"]
    list_select_related = ["owner"]
    search_fields = ["=id", "owner__email", "owner__username", "=last_four", "label"]
    date_hierarchy = "created_at"
    fields = [
        "id",
        "hint",
        "owner",
        "payer",
        "label",
        "scope",
        "duration_hours",
        "status",
        "list_price",
        "paid",
        "refunded",
        "created_at",
        "activated_at",
        "expires_at",
        "device_id",
        "device_seen_at",
        "allowed_ips",
        "auto_renew",
        "renew_at",
        "renewal_paused",
        "renewed_at",
        "predecessor",
        "revoked_at",
        "revoked_reason",
    ]
    actions = ["revoke_with_refund", "revoke_without_refund", "stop_renewal", "release_devices"]

    @admin.display(description=_("token"))
    def hint(self, token: AccessToken) -> str:
        return token.hint

    @admin.display(description=_("status"))
    def status(self, token: AccessToken) -> Any:
        return token.status().label

    def has_revoke_with_refund_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("tokens.revoke_with_refund"))

    def has_revoke_without_refund_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("tokens.revoke_without_refund"))

    @admin.action(description=_("Revoke with refund"), permissions=["revoke_with_refund"])
    def revoke_with_refund(self, request: HttpRequest, queryset: QuerySet[AccessToken]) -> TemplateResponse | None:
        return self._revoke(request, queryset, refund=True)

    @admin.action(description=_("Revoke without refund"), permissions=["revoke_without_refund"])
    def revoke_without_refund(self, request: HttpRequest, queryset: QuerySet[AccessToken]) -> TemplateResponse | None:
        return self._revoke(request, queryset, refund=False)

    def has_release_devices_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("tokens.release_devices"))

    @admin.action(description=_("Release devices"), permissions=["release_devices"])
    def release_devices(self, request: HttpRequest, queryset: QuerySet[AccessToken]) -> TemplateResponse | None:
        form = ReasonForm(request.POST if "confirm" in request.POST else None)
        if not form.is_valid():
            context = {
                **self.admin_site.each_context(request),
                "title": _t("Release devices"),
                "opts": self.opts,
                "tokens": queryset.select_related("owner"),
                "action": "release_devices",
                "form": form,
            }
            return TemplateResponse(request, "admin/tokens/accesstoken/release_devices.html", context)
        reason = form.cleaned_data["reason"]
        tokens = list(queryset)
        for token in tokens:
            services.release_device(token_id=token.pk, actor=request.user, reason=reason)
            self.log_change(request, token, [_t("Devices released: %(reason)s") % {"reason": reason}])
        text = ngettext("Devices of %(count)d token released.", "Devices of %(count)d tokens released.", len(tokens))
        self.message_user(request, text % {"count": len(tokens)}, messages.SUCCESS)
        return None

    def has_stop_renewal_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("tokens.stop_renewal"))

    @admin.action(description=_("Switch renewal off"), permissions=["stop_renewal"])
    def stop_renewal(self, request: HttpRequest, queryset: QuerySet[AccessToken]) -> TemplateResponse | None:
        form = ReasonForm(request.POST if "confirm" in request.POST else None)
        if not form.is_valid():
            context = {
                **self.admin_site.each_context(request),
                "title": _t("Switch renewal off"),
                "opts": self.opts,
                "tokens": queryset.select_related("owner"),
                "action": "stop_renewal",
                "form": form,
            }
            return TemplateResponse(request, "admin/tokens/accesstoken/stop_renewal.html", context)
        reason = form.cleaned_data["reason"]
        stopped = 0
        for token in queryset:
            if services.stop_renewal(token_id=token.pk, actor=request.user, reason=reason):
                self.log_change(request, token, [_t("Renewal switched off: %(reason)s") % {"reason": reason}])
                stopped += 1
        text = ngettext(
            "The renewal of %(count)d token was switched off.",
            "The renewal of %(count)d tokens was switched off.",
            stopped,
        )
        self.message_user(request, text % {"count": stopped}, messages.SUCCESS)
        return None

    def _revoke(
        self, request: HttpRequest, queryset: QuerySet[AccessToken], *, refund: bool
    ) -> TemplateResponse | None:
        form = ReasonForm(request.POST if "confirm" in request.POST else None)
        if form.is_valid():
            self._carry_out(request, queryset, refund=refund, reason=form.cleaned_data["reason"])
            return None
        context = {
            **self.admin_site.each_context(request),
            "title": _t("Revoke with refund") if refund else _t("Revoke without refund"),
            "opts": self.opts,
            "tokens": queryset.select_related("owner"),
            "refund": refund,
            "action": "revoke_with_refund" if refund else "revoke_without_refund",
            "form": form,
        }
        return TemplateResponse(request, "admin/tokens/accesstoken/revoke.html", context)

    def _carry_out(self, request: HttpRequest, queryset: QuerySet[AccessToken], *, refund: bool, reason: str) -> None:
        """Revoke each token in a transaction of its own: one that cannot be revoked holds up none of the others."""
        refunds: list[Decimal] = []
        for token in queryset:
            try:
                revocation = services.revoke_token(token_id=token.pk, actor=request.user, refund=refund, reason=reason)
            except DomainError as exc:
                self.message_user(request, f"{token.hint}: {exc.detail}", messages.ERROR)
            else:
                refunds.append(revocation.refund_amount)
                self.log_change(request, token, [_t("Revoked: %(reason)s") % {"reason": reason}])
        if refunds:
            text = ngettext(
                "%(count)d token revoked, %(refund)s ZNC paid back.",
                "%(count)d tokens revoked, %(refund)s ZNC paid back.",
                len(refunds),
            )
            self.message_user(request, text % {"count": len(refunds), "refund": sum(refunds)}, messages.SUCCESS)


@admin.register(Gift)
class GiftAdmin(ReadOnlyAdmin):
    """Gifts with what staff need to decide on those that wait; nobody sees more of a code than its hint."""

    list_display = [
        "created_at",
        "code_hint",
        "giver",
        "claimed_by",
        "recipient_email",
        "duration_hours",
        "status",
        "expires_at",
    ]
    list_filter = ["status", "created_at"]
    list_select_related = ["giver", "claimed_by", "token"]
    search_fields = [
        "=id",
        "=token__id",
        "=code_last_four",
        "giver__email",
        "giver__username",
        "claimed_by__email",
        "claimed_by__username",
        "recipient_email",
    ]
    date_hierarchy = "created_at"
    fields = [
        "id",
        "code_hint",
        "token",
        "duration_hours",
        "giver",
        "claimed_by",
        "recipient_email",
        "message",
        "status",
        "created_at",
        "expires_at",
        "closed_at",
        "reviewed_by",
        "reviewed_at",
        "review_reason",
    ]
    actions = ["approve", "reject"]

    @admin.display(description=_("code"))
    def code_hint(self, gift: Gift) -> str:
        return gift.code_hint

    @admin.display(description=_("duration in hours"))
    def duration_hours(self, gift: Gift) -> int:
        return gift.token.duration_hours

    def has_review_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("tokens.review_gift"))

    @admin.action(description=_("Approve"), permissions=["review"])
    def approve(self, request: HttpRequest, queryset: QuerySet[Gift]) -> TemplateResponse | None:
        return self._review(request, queryset, approve=True)

    @admin.action(description=_("Reject"), permissions=["review"])
    def reject(self, request: HttpRequest, queryset: QuerySet[Gift]) -> TemplateResponse | None:
        return self._review(request, queryset, approve=False)

    def _review(self, request: HttpRequest, queryset: QuerySet[Gift], *, approve: bool) -> TemplateResponse | None:
        form = ReasonForm(request.POST if "confirm" in request.POST else None)
        if form.is_valid():
            self._carry_out(request, queryset, approve=approve, reason=form.cleaned_data["reason"])
            return None
        context = {
            **self.admin_site.each_context(request),
            "title": _t("Approve") if approve else _t("Reject"),
            "opts": self.opts,
            "gifts": queryset.select_related("giver", "token"),
            "approve": approve,
            "action": "approve" if approve else "reject",
            "form": form,
        }
        return TemplateResponse(request, "admin/tokens/gift/review.html", context)

    def _carry_out(self, request: HttpRequest, queryset: QuerySet[Gift], *, approve: bool, reason: str) -> None:
        """Decide on each gift in a transaction of its own: one that cannot be decided holds up none of the others."""
        decide = services.approve_gift if approve else services.reject_gift
        done = 0
        for gift in queryset:
            try:
                decide(gift_id=gift.pk, actor=request.user, reason=reason)
            except DomainError as exc:
                self.message_user(request, f"{gift.code_hint}: {exc.detail}", messages.ERROR)
            else:
                done += 1
                text = _t("Approved: %(reason)s") if approve else _t("Rejected: %(reason)s")
                self.log_change(request, gift, [text % {"reason": reason}])
        if done:
            text = (
                ngettext("%(count)d gift approved.", "%(count)d gifts approved.", done)
                if approve
                else ngettext("%(count)d gift rejected.", "%(count)d gifts rejected.", done)
            )
            self.message_user(request, text % {"count": done}, messages.SUCCESS)


@admin.register(TokenPrice)
class TokenPriceAdmin(admin.ModelAdmin[TokenPrice]):
    """Durations for sale. A price is set once; after that it changes from a moment on, by a price change."""

    list_display = ["duration_hours", "current_price", "next_price", "is_active", "updated_at"]
    list_filter = ["is_active"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[TokenPrice]:
        now = clock.now()
        coming = PriceChange.objects.filter(duration=OuterRef("duration_hours"), effective_at__gt=now)
        first = coming.order_by("effective_at")[:1]
        return (
            TokenPrice.objects.priced_at(now)
            .annotate(next_price=Subquery(first.values("price")), next_at=Subquery(first.values("effective_at")))
            .order_by("duration_hours")
        )

    def get_readonly_fields(self, request: HttpRequest, obj: TokenPrice | None = None) -> list[str]:
        return ["duration_hours", "price", "current_price", "next_price"] if obj else []

    @admin.display(description=_("price in ZNC"), ordering="current_price")
    def current_price(self, price: Any) -> Decimal:
        current: Decimal = price.current_price
        return current

    @admin.display(description=_("next price"))
    def next_price(self, price: Any) -> str:
        return f"{price.next_price} ({price.next_at:%Y-%m-%d %H:%M} UTC)" if price.next_at else "-"


class PriceChangeForm(forms.ModelForm[PriceChange]):
    class Meta:
        model = PriceChange
        fields = ["duration", "price", "effective_at"]
        help_texts = {"effective_at": _("UTC. Not before now.")}

    def clean_effective_at(self) -> datetime:
        moment: datetime = self.cleaned_data["effective_at"]
        if moment < clock.now():
            raise forms.ValidationError(str(PriceChangeInPast.detail))
        return moment


@admin.register(PriceChange)
class PriceChangeAdmin(admin.ModelAdmin[PriceChange]):
    """Prices with their dates: scheduled and, as long as they are not in effect, cancelled; never edited."""

    form = PriceChangeForm
    list_display = ["duration_id", "price", "effective_at", "scheduled_by", "created_at"]
    list_filter = ["duration__duration_hours"]
    list_select_related = ["scheduled_by"]
    date_hierarchy = "effective_at"

    def has_change_permission(self, request: HttpRequest, obj: PriceChange | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: PriceChange | None = None) -> bool:
        pending = obj is None or obj.effective_at > clock.now()
        return pending and super().has_delete_permission(request, obj)

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        # Deleting many at once would not look at each one's date.
        return {name: action for name, action in super().get_actions(request).items() if name != "delete_selected"}

    def save_model(self, request: HttpRequest, obj: PriceChange, form: Any, change: bool) -> None:
        scheduled = services.schedule_price(
            duration_hours=obj.duration_id, price=obj.price, effective_at=obj.effective_at, actor=request.user
        )
        obj.pk = scheduled.pk

    def delete_model(self, request: HttpRequest, obj: PriceChange) -> None:
        services.cancel_price_change(change_id=obj.pk, actor=request.user)


@admin.register(Scope)
class ScopeAdmin(admin.ModelAdmin[Scope]):
    list_display = ["slug", "description", "is_active"]
    list_filter = ["is_active"]
    search_fields = ["slug", "description"]

    def get_readonly_fields(self, request: HttpRequest, obj: Scope | None = None) -> list[str]:
        # The name is the key: tokens and path rules refer to it.
        return ["slug"] if obj else []


@admin.register(RenewalDefault)
class RenewalDefaultAdmin(ReadOnlyAdmin):
    """What accounts want of the tokens they buy; they set it themselves."""

    list_display = ["user", "enabled", "duration_hours", "scope_id", "daily_cap", "updated_at"]
    list_filter = ["enabled"]
    list_select_related = ["user"]
    search_fields = ["user__email", "user__username"]


class GrantForm(forms.ModelForm[TierSubscription]):
    class Meta:
        model = TierSubscription
        fields = ["user", "tier", "reason"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["reason"].required = True


@admin.register(TierSubscription)
class TierSubscriptionAdmin(ReadOnlyAdmin):
    """Tiers that were bought and given. Adding one gives a user a tier without charge, the free one takes it away."""

    list_display = ["user", "tier", "price", "period_end", "cancelled_at", "started_at", "ended_at", "end_reason"]
    list_filter = ["tier", ("ended_at", admin.EmptyFieldListFilter), "end_reason", "started_at"]
    list_select_related = ["user", "tier"]
    search_fields = ["=id", "user__email", "user__username"]
    date_hierarchy = "started_at"
    autocomplete_fields = ["user"]
    fields = [
        "id",
        "user",
        "tier",
        "price",
        "month",
        "period_start",
        "period_end",
        "cancelled_at",
        "refunded",
        "granted_by",
        "reason",
        "started_at",
        "ended_at",
        "end_reason",
    ]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("tokens.set_tier"))

    def get_fields(self, request: HttpRequest, obj: TierSubscription | None = None) -> Any:
        return self.fields if obj else ["user", "tier", "reason"]

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        return super().get_form(request, obj, change, **({} if obj else {"form": GrantForm}), **kwargs)

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        try:
            return super().add_view(request, form_url, extra_context)
        except DomainError as refused:
            self.message_user(request, str(refused.detail), messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())

    def save_model(self, request: HttpRequest, obj: TierSubscription, form: Any, change: bool) -> None:
        stored = services.grant_tier(user=obj.user, tier=obj.tier_id, reason=obj.reason, actor=request.user)
        obj.pk, obj.started_at = stored.pk, stored.started_at
