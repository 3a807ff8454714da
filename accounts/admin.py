"""Users and their sessions in the back office."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

from django.contrib import admin, messages
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext as _t
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from accounts import services
from accounts.forms import AdminSignInForm, NewUserForm, PasswordForm, ReasonForm, UserForm
from accounts.models import FREE_TIER, BlockedMailDomain, SignInSession, Tier, User
from zenzefi.lib.admin import ReadOnlyAdmin
from zenzefi.lib.errors import DomainError

admin.site.login_form = AdminSignInForm


@admin.register(User)
class UserAdmin(DjangoUserAdmin[User]):
    """Users are disabled, never deleted; their money is elsewhere, and nobody sees a password's hash."""

    list_display = ("username", "email", "tier", "is_active", "is_staff", "is_superuser", "created_at")
    list_filter = ("is_active", "is_staff", "is_superuser", "tier", "created_at", "language")
    search_fields = ("username", "email", "full_name", "=referral_code", "=id")
    search_help_text = _("Username, e-mail address, full name, whole referral code or id")
    ordering = ("-created_at",)
    date_hierarchy = "created_at"
    show_full_result_count = False
    form = UserForm
    add_form = NewUserForm
    readonly_fields = (
        "id",
        "is_active",
        "password_link",
        "tier",
        "referral_code",
        "referrer",
        "registered_from",
        "last_login",
        "created_at",
        "updated_at",
    )
    fieldsets = (
        (None, {"fields": ("id", "email", "username", "full_name", "language", "password_link")}),
        (_("Access"), {"fields": ("is_active", "tier", "is_staff", "is_superuser", "groups", "user_permissions")}),
        (_("Referral"), {"fields": ("referral_code", "referrer", "registered_from")}),
        (_("Dates"), {"fields": ("last_login", "created_at", "updated_at")}),
    )
    add_fieldsets = (
        (
            None,
            {"classes": ("wide",), "fields": ("email", "username", "full_name", "language", "password1", "password2")},
        ),
    )
    actions = ("disable", "enable")

    @admin.display(description=_("password"))
    def password_link(self, user: User) -> str:
        return format_html(
            '<a href="{}">{}</a>', reverse("admin:auth_user_password_change", args=[user.pk]), _("Change")
        )

    @admin.display(description=_("referred by"))
    def referrer(self, user: User) -> str:
        if user.referred_by is None:
            return "-"
        url = reverse("admin:accounts_user_change", args=[user.referred_by_id])
        return format_html('<a href="{}">{}</a>', url, user.referred_by)

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        return super().get_queryset(request).select_related("referred_by", "tier")

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> Any:
        fields = super().get_readonly_fields(request, obj)
        if request.user.is_superuser:
            return fields
        # Whoever may edit users must not be able to make themselves, or a friend, more than they are.
        return (*fields, "is_staff", "is_superuser", "groups", "user_permissions")

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        # A new password or address for a superuser would be a way to become one.
        if obj is not None and obj.is_superuser and not request.user.is_superuser:
            return False
        return super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return False

    def has_set_active_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("accounts.set_user_active"))

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        actor = request.user
        assert isinstance(actor, User)
        if change:
            services.save_edited_user(user=obj, changed=form.changed_data, actor=actor)
        else:
            services.add_user(user=obj, actor=actor)

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().changeform_view(request, *args, **kwargs)
        except ValidationError as refused:
            # The form had passed; somebody else took the address or the name in between. All is rolled back.
            self.message_user(request, " ".join(refused.messages), messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:
        # The base class builds the form without the request. A copy of this object, which all requests share,
        # carries who acts.
        bound = copy.copy(self)
        assert isinstance(request.user, User)
        bound.change_password_form = partial(PasswordForm, actor=request.user)
        return super(UserAdmin, bound).user_change_password(request, id, form_url)

    @admin.action(description=_("Disable selected users"), permissions=["set_active"])
    def disable(self, request: HttpRequest, queryset: QuerySet[User]) -> TemplateResponse | None:
        return self._set_active(request, queryset, active=False)

    @admin.action(description=_("Enable selected users"), permissions=["set_active"])
    def enable(self, request: HttpRequest, queryset: QuerySet[User]) -> TemplateResponse | None:
        return self._set_active(request, queryset, active=True)

    def _set_active(self, request: HttpRequest, queryset: QuerySet[User], *, active: bool) -> TemplateResponse | None:
        form = ReasonForm(request.POST if "confirm" in request.POST else None)
        if form.is_valid():
            self._carry_out(request, queryset, active=active, reason=form.cleaned_data["reason"])
            return None
        context = {
            **self.admin_site.each_context(request),
            "title": _t("Enable selected users") if active else _t("Disable selected users"),
            "opts": self.opts,
            "users": queryset,
            "active": active,
            "action": "enable" if active else "disable",
            "form": form,
        }
        return TemplateResponse(request, "admin/accounts/user/set_active.html", context)

    def _carry_out(self, request: HttpRequest, queryset: QuerySet[User], *, active: bool, reason: str) -> None:
        """Change each user in a transaction of its own: one that is refused holds up none of the others."""
        actor = request.user
        assert isinstance(actor, User)
        count = 0
        for user in queryset:
            if not self.has_change_permission(request, user):
                self.message_user(
                    request, _t("%(user)s: you may not change this user.") % {"user": user}, messages.ERROR
                )
                continue
            try:
                changed = services.set_user_active(user_id=user.pk, active=active, actor=actor, reason=reason)
            except DomainError as refused:
                self.message_user(request, f"{user}: {refused.detail}", messages.ERROR)
                continue
            if changed:
                count += 1
                text = _t("Enabled: %(reason)s") if active else _t("Disabled: %(reason)s")
                self.log_change(request, user, [text % {"reason": reason}])
        if count:
            text = (
                ngettext("%(count)d user enabled.", "%(count)d users enabled.", count)
                if active
                else ngettext("%(count)d user disabled.", "%(count)d users disabled.", count)
            )
            self.message_user(request, text % {"count": count}, messages.SUCCESS)


@admin.register(Tier)
class TierAdmin(admin.ModelAdmin[Tier]):
    """What tiers allow and cost. Another price touches no month that was paid; the next one costs it.

    Limits hold at the next request.
    """

    list_display = (
        "name",
        "slug",
        "monthly_price",
        "api_requests_per_minute",
        "proxy_requests_per_minute",
        "is_active",
        "updated_at",
    )
    list_filter = ("is_active",)
    search_fields = ("name", "slug")

    def get_readonly_fields(self, request: HttpRequest, obj: Tier | None = None) -> tuple[str, ...]:
        if obj is None:
            return ()
        # Accounts refer to the name. The free tier is where every account begins and returns to.
        return ("slug", "monthly_price", "is_active") if obj.slug == FREE_TIER else ("slug",)

    def has_delete_permission(self, request: HttpRequest, obj: Tier | None = None) -> bool:
        return (obj is None or obj.slug != FREE_TIER) and super().has_delete_permission(request, obj)

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        # Deleting many at once would not look whether the free one is among them.
        return {name: action for name, action in super().get_actions(request).items() if name != "delete_selected"}


@admin.register(SignInSession)
class SignInSessionAdmin(ReadOnlyAdmin):
    """Where users are signed in to the API."""

    list_display = (
        "user",
        "address",
        "user_agent",
        "created_at",
        "last_used_at",
        "expires_at",
        "ended_at",
        "end_reason",
    )
    list_filter = ("end_reason", "created_at")
    list_select_related = ("user",)
    search_fields = ("user__email", "user__username", "=address", "=id")
    fields = (
        "id",
        "user",
        "address",
        "user_agent",
        "created_at",
        "last_used_at",
        "expires_at",
        "ended_at",
        "end_reason",
    )


@admin.register(BlockedMailDomain)
class BlockedMailDomainAdmin(admin.ModelAdmin[BlockedMailDomain]):
    """Whom this would have refused before may stay; it counts for new users and new addresses."""

    list_display = ("domain", "reason", "created_at")
    search_fields = ("domain", "reason")
