"""What belongs to the request being served, wherever it is: id and caller's address."""

from __future__ import annotations

from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="")
