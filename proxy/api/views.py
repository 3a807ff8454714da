"""The gateway's routes as Django sees them.

The data plane answers them before Django does (``zenzefi.asgi``). What stands here documents them, and tells
whoever started a server without the data plane how to start one with it.
"""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext_lazy as _
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from proxy.answers import ANSWERS
from proxy.api.serializers import ProxyStatusSerializer
from zenzefi.lib.errors import DomainError
from zenzefi.lib.schema import ErrorSerializer


class NoDataPlane(DomainError):
    status = 501
    code = "no_data_plane"
    detail = _(
        "This server does not relay. Start it with `make run`, or serve zenzefi.asgi:application with an ASGI server."
    )


TOKEN = OpenApiParameter("X-Access-Token", str, OpenApiParameter.HEADER, required=True, description="The access token.")
DEVICE = OpenApiParameter(
    "X-Device-ID",
    str,
    OpenApiParameter.HEADER,
    required=True,
    description="The device's own id: 8 to 255 visible ASCII characters. The first device to come holds the token.",
)
PATH = OpenApiParameter(
    "path", str, OpenApiParameter.PATH, description="Path below the server's base, sent byte for byte with the query."
)

_STATUS_CODES = (
    "token_missing",
    "token_invalid",
    "token_revoked",
    "token_expired",
    "owner_disabled",
    "service_unavailable",
)
_NOT_OF_A_REQUEST = {"internal_error"}


def _refusals(codes: Any) -> dict[Any, OpenApiResponse]:
    """Return the refusals with these codes, by status, each with an example."""
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(ANSWERS[code].status, []).append(code)
    return {
        status: OpenApiResponse(
            ErrorSerializer,
            description=" ".join(ANSWERS[code].text for code in group),
            examples=[
                OpenApiExample(
                    code,
                    value={
                        "detail": ANSWERS[code].text,
                        "code": code,
                        "request_id": "5f0c9d0a6c0e4b6f9a3f4a4be0f1d2c3",
                    },
                    response_only=True,
                    status_codes=[str(status)],
                )
                for code in group
            ],
        )
        for status, group in sorted(by_status.items())
    }


class _DataPlaneView(APIView):
    """Whoever asks for it and however: there is nobody here to relay."""

    permission_classes = [AllowAny]
    authentication_classes: list[Any] = []
    throttle_classes: list[Any] = []
    parser_classes: list[Any] = []

    def refuse(self, request: Request, path: str = "") -> Response:
        raise NoDataPlane


class ProxyStatusView(_DataPlaneView):
    @extend_schema(
        operation_id="proxy_status",
        summary="About the token itself",
        description="Claims no device, counts against no limit and never starts the token's clock.",
        tags=["Gateway"],
        auth=[],
        parameters=[TOKEN],
        responses={200: ProxyStatusSerializer, **_refusals(_STATUS_CODES)},
    )
    def get(self, request: Request) -> Response:
        return self.refuse(request)


def _relay(method: str) -> Any:
    return extend_schema(
        operation_id=f"proxy_{method}",
        summary=f"{method.upper()} through the gateway",
        description=(
            "Relays the request to the Zenzefi server and its answer back, both as streams, byte for byte; HEAD, "
            "OPTIONS and other methods (but TRACE and CONNECT) and WebSockets as well. The token's clock starts when "
            "its first request has reached the server. Refusals of the gateway carry `X-Zenzefi-Error`; whatever the "
            "server answers passes as it is, so any status is possible. A body with `Content-Encoding` comes without "
            "`Content-Length`."
        ),
        tags=["Gateway"],
        auth=[],
        parameters=[TOKEN, DEVICE, PATH],
        request={"*/*": OpenApiTypes.BINARY} if method in {"post", "put", "patch"} else None,
        responses={
            (200, "*/*"): OpenApiResponse(OpenApiTypes.BINARY, description="What the Zenzefi server answered."),
            **_refusals(code for code in ANSWERS if code not in _NOT_OF_A_REQUEST),
        },
    )


class ProxyView(_DataPlaneView):
    @_relay("get")
    def get(self, request: Request, path: str = "") -> Response:
        return self.refuse(request, path)

    @_relay("post")
    def post(self, request: Request, path: str = "") -> Response:
        return self.refuse(request, path)

    @_relay("put")
    def put(self, request: Request, path: str = "") -> Response:
        return self.refuse(request, path)

    @_relay("patch")
    def patch(self, request: Request, path: str = "") -> Response:
        return self.refuse(request, path)

    @_relay("delete")
    def delete(self, request: Request, path: str = "") -> Response:
        return self.refuse(request, path)

    def options(self, request: Any, *args: Any, **kwargs: Any) -> Response:
        return self.refuse(request)
