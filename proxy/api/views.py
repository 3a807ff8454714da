"""The gateway's routes as the control plane knows them.

Under an ASGI server the data plane answers before Django sees such a request. These views are their place in the
OpenAPI schema, and the honest answer of a server that cannot serve them, such as ``manage.py runserver``.
"""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext_lazy as _
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from proxy.answers import ANSWERS
from proxy.api.serializers import ProxyStatusSerializer
from zenzefi.lib.errors import DomainError
from zenzefi.lib.schema import ErrorSerializer

_TOKEN = OpenApiParameter(
    "X-Access-Token", str, OpenApiParameter.HEADER, required=True, description="The access token that was bought."
)
_DEVICE = OpenApiParameter(
    "X-Device-ID",
    str,
    OpenApiParameter.HEADER,
    required=True,
    description="The device's own id: 8 to 255 visible ASCII characters. The first device holds the token.",
)
_PATH = OpenApiParameter(
    "path", str, OpenApiParameter.PATH, description="Sent to the Zenzefi server byte for byte, with the query."
)


def _refusals(*codes: str) -> dict[int, OpenApiResponse]:
    """Return the gateway's own answers by status; the ``code`` also stands in ``X-Zenzefi-Error``."""
    texts: dict[int, list[str]] = {}
    for code in codes:
        texts.setdefault(ANSWERS[code].status, []).append(f"`{code}`: {ANSWERS[code].text}")
    return {status: OpenApiResponse(ErrorSerializer, " ".join(found)) for status, found in texts.items()}


_CREDENTIALS = ("token_missing", "token_invalid", "token_revoked", "token_expired", "owner_disabled")
_RELAYED: dict[Any, Any] = {
    (200, "*/*"): OpenApiResponse(OpenApiTypes.BINARY, "Whatever the Zenzefi server answers, with its status."),
    **_refusals(
        *_CREDENTIALS,
        "bad_request",
        "device_missing",
        "device_malformed",
        "path_ambiguous",
        "scope_forbidden",
        "device_conflict",
        "rate_limited",
        "upstream_unreachable",
        "upstream_timeout",
        "service_unavailable",
    ),
}


class GatewayNotServed(DomainError):
    status = 501
    code = "gateway_not_served"
    detail = _(
        "This server cannot carry the gateway: start it with 'make run', or serve zenzefi.asgi with an ASGI server."
    )


class _GatewayView(APIView):
    authentication_classes = ()
    permission_classes = (AllowAny,)
    throttle_classes = ()

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Refuse every method alike, those that no handler below is named after too."""
        raise GatewayNotServed


def _relayed(method: str, *, with_body: bool) -> Any:
    return extend_schema(
        operation_id=f"proxy_{method}",
        tags=["Gateway"],
        summary=f"{method.upper()} at the Zenzefi server",
        description="Relayed as a stream in both directions. HEAD, OPTIONS, other methods and WebSockets pass too; "
        "TRACE and CONNECT are refused. The token's clock starts when the first request has reached the server.",
        parameters=[_PATH, _TOKEN, _DEVICE],
        request={"*/*": OpenApiTypes.BINARY} if with_body else None,
        responses=_RELAYED,
        auth=[],
    )


class ProxyView(_GatewayView):
    """``/proxy/{path}``."""

    @_relayed("get", with_body=False)
    def get(self, request: Request, path: str = "") -> Response:
        raise GatewayNotServed

    @_relayed("post", with_body=True)
    def post(self, request: Request, path: str = "") -> Response:
        raise GatewayNotServed

    @_relayed("put", with_body=True)
    def put(self, request: Request, path: str = "") -> Response:
        raise GatewayNotServed

    @_relayed("patch", with_body=True)
    def patch(self, request: Request, path: str = "") -> Response:
        raise GatewayNotServed

    @_relayed("delete", with_body=False)
    def delete(self, request: Request, path: str = "") -> Response:
        raise GatewayNotServed


class ProxyRootView(ProxyView):
    """``/proxy/`` itself: the server's root, described with the other paths."""

    schema = None


class ProxyStatusView(_GatewayView):
    """``/proxy/status``."""

    @extend_schema(
        operation_id="proxy_status",
        tags=["Gateway"],
        summary="The access token's own state",
        description="Never starts the token's clock, claims no device and is not counted.",
        parameters=[_TOKEN],
        responses={200: ProxyStatusSerializer, **_refusals(*_CREDENTIALS, "service_unavailable")},
        auth=[],
    )
    def get(self, request: Request) -> Response:
        raise GatewayNotServed
