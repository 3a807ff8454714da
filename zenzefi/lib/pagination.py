"""Lists: ``{"items", "total", "limit", "offset"}`` with ``?limit=`` 1-100 and ``?offset=``."""

from __future__ import annotations

import re
from typing import Any

from django.utils.translation import gettext as _
from rest_framework.exceptions import ValidationError
from rest_framework.pagination import LimitOffsetPagination as DRFLimitOffsetPagination
from rest_framework.request import Request
from rest_framework.response import Response


class LimitOffsetPagination(DRFLimitOffsetPagination):
    """Out of range is an error, never silently another page."""

    default_limit = 50
    max_limit = 100
    max_offset = 10_000_000

    def _integer(self, request: Request, name: str, default: int, low: int, high: int) -> int:
        text = request.query_params.get(name)
        if text is None:
            return default
        if not re.fullmatch(r"-?\d{1,9}", text, re.ASCII) or not low <= int(text) <= high:
            raise ValidationError(
                {name: [_("Must be a whole number from %(low)d to %(high)d.") % {"low": low, "high": high}]}
            )
        return int(text)

    def get_limit(self, request: Request) -> int:
        return self._integer(request, "limit", self.default_limit, 1, self.max_limit)

    def get_offset(self, request: Request) -> int:
        return self._integer(request, "offset", 0, 0, self.max_offset)

    def get_paginated_response(self, data: Any) -> Response:
        return Response({"items": data, "total": self.count, "limit": self.limit, "offset": self.offset})

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        return {
            "type": "object",
            "required": ["items", "total", "limit", "offset"],
            "properties": {
                "items": schema,
                "total": {"type": "integer"},
                "limit": {"type": "integer", "minimum": 1, "maximum": self.max_limit},
                "offset": {"type": "integer", "minimum": 0},
            },
        }
