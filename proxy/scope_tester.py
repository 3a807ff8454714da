"""Would this token reach this path? Answered for staff by the code that decides on requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from django.utils.translation import gettext

from proxy.answers import ANSWERS
from proxy.headers import PUBLIC_PREFIX
from proxy.scopes import FULL, Rule, ScopeTable, is_ambiguous
from tokens.selectors import Credential
from zenzefi.lib import clock

#: Refused in any case, whatever a rule says.
NOT_RELAYED = frozenset({"TRACE", "CONNECT"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gateway would do. ``code`` is empty when it would send the request on."""

    path: bytes
    scope: str
    code: str = ""
    #: Those of the scope's rules that match, the deciding one first.
    rules: list[Rule] = field(default_factory=list)

    @property
    def status(self) -> int | None:
        """The status of the gateway's own answer."""
        return ANSWERS[self.code].status if self.code else None

    @property
    def reason(self) -> str:
        if self.code:
            return gettext(ANSWERS[self.code].text)
        if self.scope == FULL:
            return gettext("The scope full opens every path, byte for byte.")
        return gettext("A rule allows the path and none denies it.")


def raw_path_of(text: str) -> bytes:
    """Return the bytes below the public prefix that a path means as a client would send it, without its query."""
    path = text.partition("?")[0].partition("#")[0]
    if "://" in path:
        path = urlsplit(path).path
    path = path.removeprefix(PUBLIC_PREFIX + "/") if path.startswith(PUBLIC_PREFIX + "/") else path.removeprefix("/")
    return path.encode("utf-8", "surrogateescape")


def judge(*, table: ScopeTable, scope: str, method: str, path: bytes, credential: Credential | None = None) -> Verdict:
    """Decide in the gateway's order: method, token, path, scope. Device and limits are not looked at."""
    if method in NOT_RELAYED:
        return Verdict(path, scope, "method_not_allowed")
    if credential is not None:
        if credential.revoked:
            return Verdict(path, scope, "token_revoked")
        if credential.expires_at is not None and credential.expires_at <= clock.now():
            return Verdict(path, scope, "token_expired")
        if not credential.owner_active:
            return Verdict(path, scope, "owner_disabled")
    if scope == FULL:
        return Verdict(path, scope)
    if is_ambiguous(path):
        return Verdict(path, scope, "path_ambiguous")
    rules = table.rules_for(scope, path, method)
    return Verdict(path, scope, "" if table.is_open(scope, path, method) else "scope_forbidden", rules)
