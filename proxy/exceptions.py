"""What the gateway refuses, and why."""

from __future__ import annotations


class MalformedRequest(Exception):
    """The head of a request could be read in more than one way; the message is for the log."""


class MalformedAnswer(Exception):
    """The head of an upstream's answer cannot be handed on; the message is for the log."""


class Refused(Exception):
    """The gateway answers by itself. ``code`` is one of ``proxy.answers.ANSWERS``."""

    def __init__(self, code: str, *, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(code)
        self.code = code
        self.headers = headers
