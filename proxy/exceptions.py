"""What the gateway refuses, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext_lazy as _

from zenzefi.lib.errors import Conflict, DomainError

if TYPE_CHECKING:
    from proxy.decisions import Decision


class MalformedRequest(Exception):
    """The head of a request could be read in more than one way; the message is for the log."""


class MalformedAnswer(Exception):
    """The head of an upstream's answer cannot be handed on; the message is for the log."""


class Refused(Exception):
    """The gateway answers by itself. ``code`` is one of ``proxy.answers.ANSWERS``."""

    def __init__(
        self,
        code: str,
        *,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        details: Mapping[str, Any] | None = None,
        decision: Decision | None = None,
    ) -> None:
        super().__init__(code)
        self.code = code
        self.headers = headers
        #: What the body says beyond code and sentence.
        self.details = details
        #: What it follows from, where the token was looked at: says whose it is.
        self.decision = decision


class UnknownLimit(ValueError):
    """A limit was named that there is not."""


class ReasonMissing(DomainError):
    """What changes for everybody is written down with why."""

    code = "reason_missing"
    detail = _("A reason is needed.")


class RulesUnchanged(Conflict):
    """A scope has these rules already."""

    code = "rules_unchanged"
    detail = _("These are the rules in force.")


class TargetStateUnchanged(Conflict):
    """A server is in this state already."""

    code = "target_state_unchanged"
    detail = _("The server is in this state already.")
