"""How answers that refuse look in the OpenAPI schema: one shape, an example for each cause."""

from __future__ import annotations

from collections import defaultdict

from django.utils import translation
from drf_spectacular.utils import OpenApiExample, OpenApiResponse
from rest_framework import serializers

from zenzefi.lib.errors import Conflict, DomainError, NotFound, PayloadTooLarge, RateLimited, ServiceUnavailable


class ErrorSerializer(serializers.Serializer[None]):
    """The body of every answer that refuses."""

    detail = serializers.CharField(help_text="One sentence for people, in the language of Accept-Language.")
    code = serializers.CharField(help_text="Stable, for programs.")
    request_id = serializers.CharField(help_text="Also in the X-Request-ID header; name it when you ask for help.")
    errors = serializers.DictField(  # type: ignore[assignment]  # a field, whatever Serializer.errors is
        child=serializers.ListField(child=serializers.CharField()),
        required=False,
        help_text="The texts by field, when fields are at fault.",
    )


class _ValidationError(DomainError):
    code = "validation_error"
    detail = "Some fields are not valid."


class _ParseError(DomainError):
    code = "parse_error"
    detail = "The body is not valid JSON."


class _NotAuthenticated(DomainError):
    status = 401
    code = "not_authenticated"
    detail = "Authentication credentials were not provided."


class _PermissionDenied(DomainError):
    status = 403
    code = "permission_denied"
    detail = "You do not have permission to perform this action."


class _UnsupportedMediaType(DomainError):
    status = 415
    code = "unsupported_media_type"
    detail = 'Unsupported media type "text/plain" in request.'


_GENERAL: dict[int, tuple[type[DomainError], ...]] = {
    400: (_ValidationError, _ParseError),
    401: (_NotAuthenticated,),
    403: (_PermissionDenied,),
    404: (NotFound,),
    409: (Conflict,),
    413: (PayloadTooLarge,),
    415: (_UnsupportedMediaType,),
    429: (RateLimited,),
    503: (ServiceUnavailable,),
}


def error_responses(*refusals: int | type[DomainError]) -> dict[int, OpenApiResponse]:
    """Return the ``responses`` of a view's refusals: statuses for the general ones, classes for its own.

    429 and 503 are added, as every route has them.
    """
    causes: dict[int, list[type[DomainError]]] = defaultdict(list)
    for refusal in (*refusals, 429, 503):
        for cause in _GENERAL[refusal] if isinstance(refusal, int) else (refusal,):
            if cause not in causes[cause.status]:
                causes[cause.status].append(cause)
    with translation.override("en"):
        return {
            status: OpenApiResponse(
                ErrorSerializer,
                description=" ".join(str(cause.detail) for cause in group),
                examples=[_example(cause) for cause in group],
            )
            for status, group in sorted(causes.items())
        }


def _example(cause: type[DomainError]) -> OpenApiExample:
    body: dict[str, object] = {
        "detail": str(cause.detail),
        "code": cause.code,
        "request_id": "5f0c9d0a6c0e4b6f9a3f4a4be0f1d2c3",
    }
    if cause is _ValidationError:
        body["errors"] = {"field": ["This field is required."]}
    return OpenApiExample(cause.code, value=body, response_only=True, status_codes=[str(cause.status)])
