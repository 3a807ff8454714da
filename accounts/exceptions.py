"""What accounts refuses."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext_lazy as _
from rest_framework.exceptions import AuthenticationFailed

from zenzefi.lib.errors import Conflict, DomainError, NotFound


class UnknownReferralCode(DomainError):
    code = "unknown_referral_code"
    detail = _("This referral code does not exist.")

    def __init__(self) -> None:
        super().__init__(errors={"referral_code": [str(self.detail)]})


class MailDomainBlocked(DomainError):
    code = "mail_domain_blocked"
    detail = _("Addresses of this mail provider are not accepted. Please use another one.")

    def __init__(self) -> None:
        super().__init__(errors={"email": [str(self.detail)]})


class WrongPassword(DomainError):
    """The signed-in user did not confirm a change with their present password."""

    code = "wrong_password"
    detail = _("The current password is wrong.")

    def __init__(self) -> None:
        super().__init__(errors={"current_password": [str(self.detail)]})


class _Unauthenticated(DomainError):
    status = 401

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # RFC 9110 §11.6.1: a 401 names the scheme.
        self.headers.setdefault("WWW-Authenticate", "Bearer")


class InvalidCredentials(_Unauthenticated):
    """One text for an unknown address, a wrong password and a disabled user."""

    code = "invalid_credentials"
    detail = _("The e-mail address or the password is wrong.")


class InvalidRefreshToken(_Unauthenticated):
    code = "invalid_refresh_token"
    detail = _("The refresh token is not valid. Please sign in again.")


class RefreshReused(_Unauthenticated):
    """A spent refresh token came back after its grace: it was copied, and its family has ended."""

    code = "refresh_reused"
    detail = _("The refresh token was used before. The session has ended; please sign in again.")


class InvalidAccessToken(AuthenticationFailed):
    default_code = "invalid_access_token"
    default_detail = _("The access token is not valid or its session has ended.")


class AccessTokenExpired(AuthenticationFailed):
    default_code = "access_token_expired"
    default_detail = _("The access token has expired.")


class SessionNotFound(NotFound):
    detail = _("There is no such session.")


class UserNotFound(NotFound):
    detail = _("There is no such user.")


class OwnAccount(Conflict):
    code = "own_account"
    detail = _("You cannot disable your own account.")
