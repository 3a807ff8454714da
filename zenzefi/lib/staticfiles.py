"""Static files, whole."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from django.http import HttpRequest, HttpResponse
from whitenoise.middleware import WhiteNoiseMiddleware


class StaticFilesMiddleware(WhiteNoiseMiddleware):
    """WhiteNoise, answering with bytes instead of a synchronous iterator.

    Django would collect such an iterator itself under ASGI, warning each time. The files are small and cached.
    """

    @staticmethod
    def serve(static_file: Any, request: HttpRequest) -> HttpResponse:
        found = static_file.get_response(request.method, request.META)
        with ExitStack() as stack:
            content = stack.enter_context(found.file).read() if found.file is not None else b""
        return HttpResponse(content, status=int(found.status), headers=dict(found.headers))
