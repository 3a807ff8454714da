"""Structured log lines: JSON in production, readable elsewhere, secrets removed in both."""

from __future__ import annotations

import logging
import re
from collections.abc import MutableMapping
from typing import Any

import structlog

from zenzefi.lib.context import request_id

# Access tokens of the gateway, bearer and API-key credentials, and JWTs, wherever they stand in a line.
_SECRETS = re.compile(
    r"z(?:nz|rt)_[A-Za-z0-9_-]{8,}|eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"
    r"|(?i:(?<=bearer )|(?<=api-key ))[A-Za-z0-9._~+/=-]{8,}"
    r"|(?<=\$argon2)[^\s'\"]+"
    # Codes of gifts: in a path, where only ids may stay, and anywhere else in the form that they are shown in.
    r"|(?<=/gifts/)(?:[^/\n]{1,300}(?=/claim)"
    r"|(?![0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![0-9a-zA-Z]))[^/\s?'\"]+)"
    r"|(?i:gift)(?:-[0-9A-Za-z]{4}){4}"
)


def redact(text: str) -> str:
    """Return the text with every credential in it replaced by ``[redacted]``."""
    return _SECRETS.sub("[redacted]", text)


class RequestIDFilter(logging.Filter):
    """Adds the id of the request being served to every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


def _add_request_id(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if current := request_id.get():
        event["request_id"] = current
    return event


def _redact_event(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = redact(value)
    return event


class MessageFormatter(logging.Formatter):
    """Formats records whose message is the whole line, as those of the access log are."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(record.getMessage())


class LineFormatter(structlog.stdlib.ProcessorFormatter):
    """Formats records of the standard library and of structlog alike."""

    def __init__(self, fmt: str | None = None, datefmt: str | None = None, *, json: bool = False) -> None:
        renderer: Any = structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=False)
        shared: list[Any] = [
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_request_id,
        ]
        super().__init__(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _redact_event,
                renderer,
            ],
        )
