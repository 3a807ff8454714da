"""The gateway's routes where Django is asked for them.

``zenzefi.asgi`` hands them to :class:`proxy.gateway.Gateway` before Django sees them. Whoever comes here is served by
something else, ``manage.py runserver`` above all, which cannot stream; and the OpenAPI schema is made from here.
"""

from __future__ import annotations

import uuid
from typing import Any

from django.utils.translation import gettext_lazy as _
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.generics import GenericAPIView
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from proxy import selectors
from proxy.answers import ANSWERS
from proxy.api.serializers import GatewayStatusSerializer, LimitRefusalSerializer, TokenDeviceSerializer
from tokens import selectors as tokens_selectors
from tokens.exceptions import TokenNotFound
from zenzefi.lib.errors import DomainError
from zenzefi.lib.schema import error_responses

#: How the schema calls the ``X-Access-Token`` header, declared in ``SPECTACULAR_SETTINGS``.
_AUTH: list[Any] = [{"GatewayToken": []}]
_DEVICE = OpenApiParameter(
    "X-Device-ID",
    str,
    OpenApiParameter.HEADER,
    required=True,
    description="The device's own id, 8 to 255 visible ASCII characters. One device at a time uses a token; it is "
    "free for another when it was idle for a while or was released.",
)
_DESCRIPTION = """Relayed byte for byte, streamed both ways, to the same path on the Zenzefi server; WebSockets too.

Checked in this order: gateway open (503), token (401), device header (403, 400), client's address (403), path and scope
(400, 403), device (409), limits (429), then the Zenzefi server (502, 503, 504). The token's clock starts when its first
request has reached that server. The answers below are the gateway's own and carry `X-Zenzefi-Error`; any other is the
Zenzefi server's and passes as it is. The token is never taken from the query string or a cookie, and never sent on."""


class GatewayNotServed(DomainError):
    """This server cannot serve the gateway."""

    status = 501
    code = "gateway_not_served"
    detail = _(
        "This server cannot serve the gateway. Start everything with 'make run', or the server alone with "
        "'gunicorn -c python:zenzefi.runtime.gunicorn_conf'."
    )


def _refusal(code: str) -> type[DomainError]:
    answer = ANSWERS[code]
    return type(code, (DomainError,), {"status": answer.status, "code": code, "detail": answer.text})


def _refusals(*codes: str) -> dict[int, OpenApiResponse]:
    return error_responses(*map(_refusal, codes))


_INVALID = ("token_missing", "token_invalid", "token_revoked", "token_held", "token_expired", "owner_disabled")
_OWN_ANSWERS = _refusals(
    "bad_request",
    *_INVALID,
    "device_missing",
    "device_malformed",
    "address_forbidden",
    "path_ambiguous",
    "method_overridden",
    "scope_forbidden",
    "request_timeout",
    "device_conflict",
    "body_too_large",
    "upstream_unreachable",
    "upstream_invalid",
    "connect_timeout",
    "upstream_unavailable",
    "upstream_busy",
    "upstream_timeout",
    "gateway_closed",
    "total_timeout",
) | {429: OpenApiResponse(LimitRefusalSerializer, "A limit of the token: its rate, requests at once, or a quota.")}


class _Anything(BaseContentNegotiation):
    """The sentence is for everyone, whatever they accept or send."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        return parsers[0]

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        return renderers[0], renderers[0].media_type


class _GatewayView(APIView):
    authentication_classes = ()
    permission_classes = (AllowAny,)
    throttle_classes = ()
    content_negotiation_class = _Anything


def _documented(method: str, *, body: bool = False) -> Any:
    return extend_schema(
        operation_id=f"proxy_{method.lower()}",
        tags=["Gateway"],
        summary=f"{method} through the gateway",
        description=_DESCRIPTION,
        auth=_AUTH,
        parameters=[
            _DEVICE,
            OpenApiParameter("path", str, OpenApiParameter.PATH, description="Path on the Zenzefi server."),
        ],
        request={"*/*": OpenApiTypes.BINARY} if body else None,
        responses={
            (200, "*/*"): OpenApiResponse(OpenApiTypes.BINARY, "Whatever the Zenzefi server answers."),
            **_OWN_ANSWERS,
        },
    )


class RelayView(_GatewayView):
    @_documented("GET")
    def get(self, request: Request, path: str = "") -> Response:
        raise GatewayNotServed

    @_documented("POST", body=True)
    def post(self, request: Request, path: str = "") -> Response:
        raise GatewayNotServed

    @_documented("PUT", body=True)
    def put(self, request: Request, path: str = "") -> Response:
        raise GatewayNotServed

    @_documented("PATCH", body=True)
    def patch(self, request: Request, path: str = "") -> Response:
        raise GatewayNotServed

    @_documented("DELETE")
    def delete(self, request: Request, path: str = "") -> Response:
        raise GatewayNotServed

    def head(self, request: Request, path: str = "") -> Response:
        raise GatewayNotServed

    def options(self, request: Request, path: str = "") -> Response:  # type: ignore[override]
        raise GatewayNotServed


class StatusView(_GatewayView):
    @extend_schema(
        operation_id="proxy_status",
        tags=["Gateway"],
        summary="What is left of a token",
        description="Never activates the token, claims no device and counts against no limit.",
        auth=_AUTH,
        responses={200: GatewayStatusSerializer, **_refusals("bad_request", *_INVALID, "gateway_closed")},
    )
    def get(self, request: Request) -> Response:
        raise GatewayNotServed


class DevicesView(GenericAPIView[Any]):
    serializer_class = TokenDeviceSerializer

    @extend_schema(
        summary="Devices of a token, the one seen last first",
        description="Those that used it lately, a few seconds behind. A seat is freed by "
        "`POST /tokens/{token_id}/release-device`.",
        tags=["Tokens"],
        responses={200: TokenDeviceSerializer(many=True), **error_responses(400, 401, TokenNotFound)},
    )
    def get(self, request: Request, token_id: uuid.UUID) -> Response:
        token = tokens_selectors.token_of(request.user, token_id)
        page = self.paginate_queryset(selectors.devices_of(token.pk))
        context = {"holders": selectors.seat_holders(token.pk)}
        return self.get_paginated_response(TokenDeviceSerializer(page, many=True, context=context).data)
