"""Zenzefi servers in the back office: what they are, how they are doing, and taking them out of service."""

from __future__ import annotations

from typing import Any

import redis.exceptions
from django import forms
from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from proxy import selectors, upstream_services
from proxy.breaker import CLOSED, HALF_OPEN, OPEN
from proxy.models import UpstreamOutage, UpstreamTarget
from proxy.selectors import LiveState
from proxy.targets import TargetSpec, make_tls_context
from zenzefi.lib.admin import ReadOnlyAdmin, ReasonForm
from zenzefi.lib.errors import DomainError

_CIRCUITS = {
    "": _("unknown"),
    CLOSED: _("works"),
    HALF_OPEN: _("failed, will be tried"),
    OPEN: _("failed, resting"),
}


def live_states(targets: list[UpstreamTarget]) -> dict[str, LiveState]:
    """Return how the servers are doing; nothing while Redis is away, which must not keep staff from acting."""
    try:
        return selectors.live_states([str(target.pk) for target in targets])
    except redis.exceptions.RedisError:
        return {}


class LiveChangeList(ChangeList):
    """Rows with their live state, read for the whole page at once."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        rows: list[Any] = list(self.result_list)
        states = live_states(rows)
        for row in rows:
            row.live = states.get(str(row.pk), LiveState())
        self.result_list = rows


class UpstreamTargetForm(forms.ModelForm[UpstreamTarget]):
    new_client_key = forms.CharField(
        label=_("Key of our certificate"),
        required=False,
        strip=False,
        widget=forms.Textarea(attrs={"rows": 4, "autocomplete": "off"}),
        help_text=_("PEM without a password. Never shown again; empty: the one that is stored stays."),
    )
    forget_client_key = forms.BooleanField(label=_("Forget the stored key"), required=False)

    class Meta:
        model = UpstreamTarget
        fields = [
            "name",
            "url",
            "weight",
            "scopes",
            "host",
            "max_connections",
            "counts_gateway_errors",
            "carried_at_edge",
            "probe_path",
            "ca_certificates",
            "client_certificate",
            "notes",
        ]

    def clean_url(self) -> str:
        url: str = self.cleaned_data["url"]
        return url.rstrip("/")

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if self.errors or not {"ca_certificates", "client_certificate"} <= set(cleaned):
            return cleaned
        key = cleaned["new_client_key"].strip()
        has_key = bool(key) or (bool(self.instance.client_key) and not cleaned["forget_client_key"])
        if cleaned["client_certificate"] and not has_key:
            self.add_error("new_client_key", gettext("A certificate of ours needs its key."))
            return cleaned
        spec = TargetSpec(
            id="",
            name=cleaned["name"],
            url=cleaned["url"],
            ca_certificates=cleaned["ca_certificates"],
            client_certificate=cleaned["client_certificate"],
            client_key=key or selectors.client_key_of(self.instance),
        )
        try:
            make_tls_context(spec)
        except (OSError, ValueError) as exc:
            self.add_error(None, gettext("These certificates cannot be used: %(why)s") % {"why": exc})
        return cleaned

    def key_to_store(self) -> str | None:
        """Return the key to store, empty to forget it, ``None`` to keep what there is."""
        key: str = self.cleaned_data["new_client_key"].strip()
        return key or ("" if self.cleaned_data["forget_client_key"] else None)


@admin.register(UpstreamTarget)
class UpstreamTargetAdmin(admin.ModelAdmin[UpstreamTarget]):
    """Workers take a change over at once. As soon as there is a server here, ``ZENZEFI_TARGET_URL`` is not used."""

    form = UpstreamTargetForm
    list_display = ["name", "url", "weight", "for_scopes", "state", "circuit", "in_flight", "last_error"]
    list_filter = ["state"]
    search_fields = ["=id", "name", "url", "notes"]
    filter_horizontal = ["scopes"]
    actions = ["activate", "drain", "switch_off"]
    _shown = ["state", "circuit", "in_flight", "last_error", "key_is_stored"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[UpstreamTarget]:
        return super().get_queryset(request).prefetch_related("scopes")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return LiveChangeList

    def get_fields(self, request: HttpRequest, obj: UpstreamTarget | None = None) -> Any:
        may_edit = self.has_change_permission(request, obj) if obj else self.has_add_permission(request)
        secret = ["new_client_key", "forget_client_key"] if may_edit else []
        return [*(self._shown if obj else []), *UpstreamTargetForm.Meta.fields, *secret]

    def get_readonly_fields(self, request: HttpRequest, obj: UpstreamTarget | None = None) -> list[str]:
        return self._shown

    def _live(self, target: Any) -> LiveState:
        if not hasattr(target, "live"):
            target.live = live_states([target]).get(str(target.pk), LiveState())
        live: LiveState = target.live
        return live

    @admin.display(description=_("scopes"))
    def for_scopes(self, target: UpstreamTarget) -> str:
        return ", ".join(scope.pk for scope in target.scopes.all()) or gettext("all")

    @admin.display(description=_("health"))
    def circuit(self, target: UpstreamTarget) -> str:
        return str(_CIRCUITS[self._live(target).circuit])

    @admin.display(description=_("in flight"))
    def in_flight(self, target: UpstreamTarget) -> int:
        return self._live(target).in_flight

    @admin.display(description=_("last error"))
    def last_error(self, target: UpstreamTarget) -> str:
        live = self._live(target)
        return f"{live.error_at:%Y-%m-%d %H:%M:%S} UTC: {live.error}" if live.error_at else "-"

    @admin.display(description=_("key is stored"), boolean=True)
    def key_is_stored(self, target: UpstreamTarget) -> bool:
        return bool(target.client_key)

    def save_model(self, request: HttpRequest, obj: UpstreamTarget, form: Any, change: bool) -> None:
        upstream_services.save_target(target=obj, client_key=form.key_to_store())

    def has_operate_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("proxy.operate_upstreamtarget"))

    @admin.action(description=_("Activate"), permissions=["operate"])
    def activate(self, request: HttpRequest, queryset: QuerySet[UpstreamTarget]) -> TemplateResponse | None:
        return self._operate(request, queryset, UpstreamTarget.State.ACTIVE, "activate", gettext("Activate"))

    @admin.action(description=_("Drain"), permissions=["operate"])
    def drain(self, request: HttpRequest, queryset: QuerySet[UpstreamTarget]) -> TemplateResponse | None:
        return self._operate(request, queryset, UpstreamTarget.State.DRAINING, "drain", gettext("Drain"))

    @admin.action(description=_("Switch off now"), permissions=["operate"])
    def switch_off(self, request: HttpRequest, queryset: QuerySet[UpstreamTarget]) -> TemplateResponse | None:
        return self._operate(request, queryset, UpstreamTarget.State.DISABLED, "switch_off", gettext("Switch off now"))

    def _operate(
        self,
        request: HttpRequest,
        queryset: QuerySet[UpstreamTarget],
        state: UpstreamTarget.State,
        action: str,
        title: str,
    ) -> TemplateResponse | None:
        form = ReasonForm(request.POST if "confirm" in request.POST else None)
        if form.is_valid():
            self._carry_out(request, queryset, state, form.cleaned_data["reason"])
            return None
        rows: list[Any] = list(queryset)
        states = live_states(rows)
        context = {
            **self.admin_site.each_context(request),
            "title": title,
            "opts": self.opts,
            "targets": [(row, states.get(str(row.pk), LiveState())) for row in rows],
            "state": state.value,
            "action": action,
            "form": form,
        }
        return TemplateResponse(request, "admin/proxy/upstreamtarget/operate.html", context)

    def _carry_out(
        self, request: HttpRequest, queryset: QuerySet[UpstreamTarget], state: UpstreamTarget.State, reason: str
    ) -> None:
        """Each server in a transaction of its own: one that is in this state already holds up none of the others."""
        for target in queryset:
            try:
                upstream_services.change_target_state(
                    target_id=target.pk, state=state, actor=request.user, reason=reason
                )
            except DomainError as exc:
                self.message_user(request, f"{target}: {exc.detail}", messages.ERROR)
            else:
                self.log_change(request, target, f"{state.label}: {reason}")
                self.message_user(request, f"{target}: {state.label}", messages.SUCCESS)


@admin.register(UpstreamOutage)
class UpstreamOutageAdmin(ReadOnlyAdmin):
    list_display = ["started_at", "ended_at", "targets"]
    list_filter = ["started_at"]
    fields = ["id", "started_at", "ended_at", "targets"]
    search_fields = ["=id"]
    date_hierarchy = "started_at"
