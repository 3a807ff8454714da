"""Path rules in the back office: edited with a reason, kept in versions, tried before anybody meets them."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.html import format_html, format_html_join
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from proxy import scope_services, selectors
from proxy.models import ScopeRule, ScopeVersion
from proxy.scope_tester import judge, raw_path_of
from proxy.scopes import METHODS, ScopeTable
from tokens import selectors as tokens_selectors
from zenzefi.lib.admin import ReadOnlyAdmin, ReasonForm
from zenzefi.lib.errors import DomainError


class ScopeRuleForm(forms.ModelForm[ScopeRule]):
    reason = forms.CharField(
        label=_("Reason"), max_length=255, help_text=_("Kept with the new version of the scope's rules.")
    )

    class Meta:
        model = ScopeRule
        fields = ["scope", "action", "method", "pattern", "description"]


class TesterForm(forms.Form):
    token = forms.CharField(
        label=_("Access token"),
        max_length=64,
        required=False,
        help_text=_("Its id or its last four characters, never the token itself. Empty: a scope is tried."),
    )
    scope: Any = forms.ModelChoiceField(label=_("Scope"), queryset=None, required=False)
    method = forms.ChoiceField(label=_("Method"), choices=[(name, name) for name in ("GET", "HEAD", *METHODS[1:])])
    path = forms.CharField(
        label=_("Path"),
        max_length=2000,
        required=False,
        help_text=_("As it is sent, below /api/v1/proxy/ or with it. The query does not matter."),
        widget=forms.TextInput(attrs={"size": 80}),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        scopes = ScopeRule._meta.get_field("scope").remote_field.model
        self.fields["scope"].queryset = scopes._default_manager.all()  # type: ignore[attr-defined]
        self.found: Any = None

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        text = cleaned.get("token", "")
        if text:
            tokens = tokens_selectors.tokens_like(text, limit=2)
            if not tokens:
                self.add_error("token", gettext("No token is like this."))
            elif len(tokens) > 1:
                self.add_error("token", gettext("Several tokens end like this. Their ids tell them apart."))
            else:
                self.found = tokens[0]
        elif not cleaned.get("scope") and not self.errors:
            self.add_error("scope", gettext("A token or a scope is needed."))
        return cleaned


@admin.register(ScopeRule)
class ScopeRuleAdmin(admin.ModelAdmin[ScopeRule]):
    """Workers take a change over at once and cut what is not open any more; a path that no rule names is closed."""

    form = ScopeRuleForm
    change_list_template = "admin/proxy/scoperule/change_list.html"
    list_display = ["pattern", "scope", "action", "any_method", "description"]
    list_filter = ["scope", "action"]
    list_select_related = ["scope"]
    search_fields = ["pattern", "description"]
    actions = ["remove"]

    @admin.display(description=_("method"), ordering="method")
    def any_method(self, rule: ScopeRule) -> str:
        return rule.method or gettext("any")

    def get_fields(self, request: HttpRequest, obj: ScopeRule | None = None) -> Any:
        may_edit = self.has_change_permission(request, obj) if obj else self.has_add_permission(request)
        return [*ScopeRuleForm.Meta.fields, *(["reason"] if may_edit else [])]

    def get_readonly_fields(self, request: HttpRequest, obj: ScopeRule | None = None) -> list[str]:
        # A rule that moved would change two scopes at once.
        return ["scope"] if obj else []

    def has_delete_permission(self, request: HttpRequest, obj: ScopeRule | None = None) -> bool:
        # By the action, which asks why.
        return False

    def has_remove_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("proxy.delete_scoperule"))

    def save_model(self, request: HttpRequest, obj: ScopeRule, form: Any, change: bool) -> None:
        scope_services.save_rule(rule=obj, actor=request.user, reason=form.cleaned_data["reason"])

    @admin.action(description=_("Remove rules"), permissions=["remove"])
    def remove(self, request: HttpRequest, queryset: QuerySet[ScopeRule]) -> TemplateResponse | None:
        form = ReasonForm(request.POST if "confirm" in request.POST else None)
        if form.is_valid():
            removed = list(queryset.values_list("pk", flat=True))
            scope_services.remove_rules(rule_ids=removed, actor=request.user, reason=form.cleaned_data["reason"])
            text = ngettext("%(count)d rule removed.", "%(count)d rules removed.", len(removed))
            self.message_user(request, text % {"count": len(removed)}, messages.SUCCESS)
            return None
        context = {
            **self.admin_site.each_context(request),
            "title": gettext("Remove rules"),
            "opts": self.opts,
            "rules": queryset.select_related("scope"),
            "action": "remove",
            "form": form,
        }
        return TemplateResponse(request, "admin/proxy/scoperule/remove.html", context)

    def get_urls(self) -> list[Any]:
        tester = path("tester/", self.admin_site.admin_view(self.tester), name="proxy_scoperule_tester")
        return [tester, *super().get_urls()]

    def tester(self, request: HttpRequest) -> HttpResponse:
        """Would this token reach this path?"""
        if not self.has_view_permission(request):
            raise PermissionDenied
        form = TesterForm(request.POST or None)
        verdict = None
        if form.is_valid():
            token = form.found
            verdict = judge(
                table=ScopeTable(selectors.scope_rules()),
                scope=token.scope_id if token else form.cleaned_data["scope"].pk,
                method=form.cleaned_data["method"],
                path=raw_path_of(form.cleaned_data["path"]),
                credential=tokens_selectors.credential_by_digest(token.digest) if token else None,
            )
        context = {
            **self.admin_site.each_context(request),
            "title": gettext("Try a path"),
            "opts": self.opts,
            "form": form,
            "verdict": verdict,
            "path": verdict.path.decode("utf-8", "backslashreplace") if verdict else "",
        }
        return TemplateResponse(request, "admin/proxy/scoperule/tester.html", context)


def _line(rule: dict[str, str]) -> str:
    return f"{rule['action']} {rule['method'] or '*'} {rule['pattern']}"


@admin.register(ScopeVersion)
class ScopeVersionAdmin(ReadOnlyAdmin):
    """Who changed a scope's rules, when, why and how; any version can be put in force again."""

    list_display = ["scope", "number", "created_at", "created_by", "reason"]
    list_filter = ["scope", "created_at"]
    list_select_related = ["scope", "created_by"]
    search_fields = ["reason", "created_by__username"]
    fields = ["scope", "number", "created_at", "created_by", "reason", "changes", "all_rules"]
    actions = ["roll_back"]

    @admin.display(description=_("changes"))
    def changes(self, version: ScopeVersion) -> str:
        added, removed = selectors.changes_of(version)
        lines = [("+", _line(rule)) for rule in added] + [("\N{MINUS SIGN}", _line(rule)) for rule in removed]
        return format_html("<pre>{}</pre>", format_html_join("\n", "{} {}", lines)) if lines else "-"

    @admin.display(description=_("rules"))
    def all_rules(self, version: ScopeVersion) -> str:
        return format_html("<pre>{}</pre>", "\n".join(_line(rule) for rule in version.rules))

    def has_roll_back_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("proxy.roll_back_scopeversion"))

    @admin.action(description=_("Put in force again"), permissions=["roll_back"])
    def roll_back(self, request: HttpRequest, queryset: QuerySet[ScopeVersion]) -> TemplateResponse | None:
        if len(queryset) != 1:
            self.message_user(request, gettext("One version at a time can be put in force."), messages.ERROR)
            return None
        version = queryset.select_related("scope").get()
        form = ReasonForm(request.POST if "confirm" in request.POST else None)
        if form.is_valid():
            try:
                made = scope_services.roll_back(
                    version_id=version.pk, actor=request.user, reason=form.cleaned_data["reason"]
                )
            except DomainError as exc:
                self.message_user(request, f"{version}: {exc.detail}", messages.ERROR)
            else:
                text = gettext("The rules of version %(old)d are in force as version %(new)d.")
                self.message_user(request, text % {"old": version.number, "new": made.number}, messages.SUCCESS)
            return None
        context = {
            **self.admin_site.each_context(request),
            "title": gettext("Put in force again"),
            "opts": self.opts,
            "version": version,
            "lines": [_line(rule) for rule in version.rules],
            "action": "roll_back",
            "form": form,
        }
        return TemplateResponse(request, "admin/proxy/scopeversion/roll_back.html", context)
