"""Answers that hold a secret."""

from __future__ import annotations

from rest_framework.response import Response


def uncached(response: Response) -> Response:
    """Keep an answer that holds a secret out of every cache on its way (RFC 9111 §5.2.2.5)."""
    response["Cache-Control"] = "no-store"
    return response
