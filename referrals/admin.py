"""Referral bonuses in the back office: to look at, and to review those that are held."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils.translation import gettext as _t
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from referrals import services
from referrals.models import ReferralBonus
from zenzefi.lib.admin import ReadOnlyAdmin, ReasonForm
from zenzefi.lib.errors import DomainError


@admin.register(ReferralBonus)
class ReferralBonusAdmin(ReadOnlyAdmin):
    list_display = ["created_at", "referrer", "referee", "amount", "status", "why_held", "refunded", "net"]
    list_filter = ["status", "created_at"]
    list_select_related = ["referrer", "referee"]
    search_fields = ["=id", "purchase_source", "referrer__username", "referrer__email", "referee__username"]
    date_hierarchy = "created_at"
    fields = [
        "id",
        "referrer",
        "referee",
        "purchase_source",
        "purchase_paid",
        "amount",
        "status",
        "why_held",
        "refunded",
        "paid_out",
        "taken_back",
        "created_at",
        "reviewed_by",
        "reviewed_at",
        "review_reason",
    ]
    actions = ["approve", "reject"]

    @admin.display(description=_("held because of"))
    def why_held(self, bonus: ReferralBonus) -> str:
        return ", ".join(str(ReferralBonus.Suspicion(suspicion).label) for suspicion in bonus.suspicions)

    @admin.display(description=_("received, ZNC"))
    def net(self, bonus: ReferralBonus) -> Any:
        return bonus.net

    def has_review_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("referrals.review_referralbonus"))

    @admin.action(description=_("Approve and pay"), permissions=["review"])
    def approve(self, request: HttpRequest, queryset: QuerySet[ReferralBonus]) -> TemplateResponse | None:
        return self._review(request, queryset, approve=True)

    @admin.action(description=_("Reject"), permissions=["review"])
    def reject(self, request: HttpRequest, queryset: QuerySet[ReferralBonus]) -> TemplateResponse | None:
        return self._review(request, queryset, approve=False)

    def _review(
        self, request: HttpRequest, queryset: QuerySet[ReferralBonus], *, approve: bool
    ) -> TemplateResponse | None:
        form = ReasonForm(request.POST if "confirm" in request.POST else None)
        if form.is_valid():
            self._carry_out(request, queryset, approve=approve, reason=form.cleaned_data["reason"])
            return None
        context = {
            **self.admin_site.each_context(request),
            "title": _t("Approve and pay") if approve else _t("Reject"),
            "opts": self.opts,
            "bonuses": queryset.select_related("referrer", "referee"),
            "approve": approve,
            "action": "approve" if approve else "reject",
            "form": form,
        }
        return TemplateResponse(request, "admin/referrals/referralbonus/review.html", context)

    def _carry_out(
        self, request: HttpRequest, queryset: QuerySet[ReferralBonus], *, approve: bool, reason: str
    ) -> None:
        """Decide on each bonus in a transaction of its own: one that cannot be decided holds up none of the others."""
        decide = services.approve_bonus if approve else services.reject_bonus
        done = 0
        for bonus in queryset:
            try:
                decide(bonus_id=bonus.pk, actor=request.user, reason=reason)
            except DomainError as exc:
                self.message_user(request, f"{bonus}: {exc.detail}", messages.ERROR)
            else:
                done += 1
                text = _t("Approved: %(reason)s") if approve else _t("Rejected: %(reason)s")
                self.log_change(request, bonus, [text % {"reason": reason}])
        if done and approve:
            text = ngettext("%(count)d bonus approved and paid.", "%(count)d bonuses approved and paid.", done)
            self.message_user(request, text % {"count": done}, messages.SUCCESS)
        elif done:
            text = ngettext("%(count)d bonus rejected.", "%(count)d bonuses rejected.", done)
            self.message_user(request, text % {"count": done}, messages.SUCCESS)
