"""Static files, whole."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.translation import gettext
from whitenoise.middleware import WhiteNoiseMiddleware

from zenzefi.lib.errors import error_body


class StaticFilesMiddleware(WhiteNoiseMiddleware):
    """WhiteNoise, answering with bytes instead of a synchronous iterator.

    Django would collect such an iterator itself under ASGI, warning each time. The files are small and cached.
    """

    @staticmethod
    def serve(static_file: Any, request: HttpRequest) -> HttpResponse:
        if request.method not in {"GET", "HEAD"}:
            body = error_body(gettext("Method not allowed."), "method_not_allowed")
            return JsonResponse(body, status=405, headers={"Allow": "GET, HEAD"})
        found = static_file.get_response(request.method, request.META)
        with ExitStack() as stack:
            content = stack.enter_context(found.file).read() if found.file is not None else b""
        return HttpResponse(content, status=int(found.status), headers=dict(found.headers))
