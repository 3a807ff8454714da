"""Everything that changes users and their sessions."""

from accounts.models import FREE_TIER
from accounts.services.access import save_edited_user, set_tier, set_user_active
from accounts.services.profile import change_password, update_profile
from accounts.services.registration import add_user, register_user
from accounts.services.sessions import SignedIn, end_session, forget_ended_sessions, refresh_session, sign_in, sign_out

__all__ = [
    "FREE_TIER",
    "SignedIn",
    "add_user",
    "change_password",
    "end_session",
    "forget_ended_sessions",
    "refresh_session",
    "register_user",
    "save_edited_user",
    "set_tier",
    "set_user_active",
    "sign_in",
    "sign_out",
    "update_profile",
]
