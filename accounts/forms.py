"""Forms of the back office."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.auth.forms import AdminPasswordChangeForm, BaseUserCreationForm
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from accounts import services
from accounts.models import User
from accounts.services.storing import check_user
from zenzefi.lib import ratelimit
from zenzefi.lib.errors import RateLimited
from zenzefi.lib.network import client_network


class AdminSignInForm(AdminAuthenticationForm):
    """Signing in to the back office, under the same limit as signing in to the API."""

    def clean(self) -> dict[str, Any]:
        assert self.request is not None
        try:
            ratelimit.enforce(self.request, "auth", f"addr:{client_network(self.request)}")
        except RateLimited as refused:
            minutes = -(-int(refused.headers["Retry-After"]) // 60)
            raise ValidationError(
                ngettext(
                    "Too many attempts. Please try again in %(minutes)d minute.",
                    "Too many attempts. Please try again in %(minutes)d minutes.",
                    minutes,
                )
                % {"minutes": minutes},
                code="rate_limited",
            ) from None
        return super().clean()


class _CheckedUserForm(forms.ModelForm[User]):
    """Checks the user as registration does, and puts each text at its field."""

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc]  # not in the stubs
        if self.errors:
            return
        try:
            check_user(self.instance)
        except ValidationError as refused:
            self.add_error(None, refused)


class NewUserForm(_CheckedUserForm, BaseUserCreationForm[User]):
    class Meta:
        model = User
        fields = ("email", "username", "full_name", "language")


class UserForm(_CheckedUserForm):
    class Meta:
        model = User
        fields = (
            "email",
            "username",
            "full_name",
            "language",
            "is_staff",
            "is_superuser",
            "groups",
            "user_permissions",
        )


class PasswordForm(AdminPasswordChangeForm):
    """Another password for a user, given by staff: it ends the user's sessions."""

    def __init__(self, user: User, *args: Any, actor: User, **kwargs: Any) -> None:
        super().__init__(user, *args, **kwargs)
        self.actor = actor
        # Taking the password away would leave the sessions; disabling a user is an action of its own.
        self.fields.pop("usable_password", None)
        for name in ("password1", "password2"):
            self.fields[name].required = True

    def save(self, commit: bool = True) -> User:
        self.user = services.change_password(user=self.user, password=self.cleaned_data["password1"], actor=self.actor)
        return self.user


class ReasonForm(forms.Form):
    reason = forms.CharField(label=_("Reason"), max_length=500, widget=forms.Textarea(attrs={"rows": 3, "cols": 60}))
