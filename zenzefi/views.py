"""Pages and probes of the project itself: front page, health, metrics, API documentation."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from typing import Any

import redis
from django.conf import settings
from django.db import DatabaseError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.utils import timezone, translation
from django.utils.cache import patch_cache_control, patch_vary_headers
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.renderers import OpenApiJsonRenderer, OpenApiYamlRenderer
from drf_spectacular.utils import OpenApiResponse, extend_schema
from prometheus_client import REGISTRY as PROCESS_REGISTRY
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from rest_framework import serializers
from rest_framework.authentication import SessionAuthentication
from rest_framework.exceptions import APIException
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.permissions import AllowAny
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.settings import api_settings
from rest_framework.views import APIView

from wallet import selectors as wallet
from zenzefi.lib import health
from zenzefi.lib.errors import error_body
from zenzefi.lib.network import is_local_caller

View = Callable[[HttpRequest], HttpResponseBase]

#: Seconds that ``/health`` waits for checks; what is slower is reported from the last run.
QUICK_SECONDS = 0.5

# The pages load nothing from elsewhere and cannot be framed.
_FRONT_POLICY = (
    "default-src 'none'; style-src 'nonce-{nonce}'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
# Swagger UI and ReDoc write style elements and draw icons from data: URLs; ReDoc searches in a worker.
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def read_only(view: View) -> View:
    """Answer 405 to anything but GET and HEAD, in the API's own error form."""

    # Exempt: nothing here changes anything, and a POST should get its 405.
    @csrf_exempt
    @wraps(view)
    def guarded(request: HttpRequest) -> HttpResponseBase:
        if request.method not in {"GET", "HEAD"}:
            detail = translation.gettext("Method not allowed.")
            return JsonResponse(error_body(detail, "method_not_allowed"), status=405, headers={"Allow": "GET, HEAD"})
        return view(request)

    return guarded


@read_only
def front(request: HttpRequest) -> HttpResponse:
    """Say what this is and where to go; JSON for ``Accept: application/json``."""
    version = settings.SPECTACULAR_SETTINGS["VERSION"]
    if request.get_preferred_type(["text/html", "application/json"]) == "application/json":
        response: HttpResponse = JsonResponse(
            {"message": settings.SPECTACULAR_SETTINGS["TITLE"], "version": version, "docs": "/docs"}
        )
    else:
        nonce = secrets.token_urlsafe(16)
        context = {
            "nonce": nonce,
            "version": version,
            "origin": request.build_absolute_uri("/").rstrip("/"),
            "status": health.monitor.report(wait=QUICK_SECONDS).status,
            "mock_payments": "mock" in settings.PAYMENT_PROVIDERS,
        }
        response = render(request, "front.html", context)
        response["Content-Security-Policy"] = _FRONT_POLICY.format(nonce=nonce)
    patch_vary_headers(response, ["Accept", "Accept-Language"])
    patch_cache_control(response, no_cache=True)
    return response


@read_only
def favicon(request: HttpRequest) -> HttpResponse:
    """Serve the icon where browsers look without being told."""
    icon = (settings.BASE_DIR / "zenzefi" / "static" / "zenzefi" / "favicon.ico").read_bytes()
    response = HttpResponse(icon, content_type="image/x-icon")
    patch_cache_control(response, public=True, max_age=86400)
    return response


# --- Health


class AnswerInJSON(BaseContentNegotiation):
    """Probes get JSON whatever they say they accept."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        return parsers[0]

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        return renderers[0], renderers[0].media_type


class HealthSerializer(serializers.Serializer[Any]):
    status = serializers.ChoiceField(choices=["healthy", "degraded", "unhealthy"])
    timestamp = serializers.DateTimeField()


class CheckSerializer(serializers.Serializer[Any]):
    status = serializers.ChoiceField(choices=["healthy", "degraded", "unhealthy"])
    latency_ms = serializers.FloatField(allow_null=True)
    error = serializers.CharField(allow_null=True)
    urls = serializers.ListField(child=serializers.CharField(), required=False, help_text="Staff and loopback only.")


class DetailedHealthSerializer(HealthSerializer):
    checks = serializers.DictField(child=CheckSerializer())


class ProbeSerializer(serializers.Serializer[Any]):
    status = serializers.CharField()
    timestamp = serializers.DateTimeField()


class _HealthView(APIView):
    """Public, unlimited, and independent of everything that may be down."""

    permission_classes = [AllowAny]
    authentication_classes: list[Any] = []
    throttle_classes: list[Any] = []
    renderer_classes = [JSONRenderer]
    content_negotiation_class = AnswerInJSON

    @staticmethod
    def answer(body: dict[str, Any], status: int) -> Response:
        body["timestamp"] = timezone.now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return Response(body, status=status, headers={"Cache-Control": "no-store"})


class HealthView(_HealthView):
    """Answers at once, from checks that are at most a few seconds old."""

    @extend_schema(
        operation_id="health",
        summary="Health",
        tags=["Health"],
        responses={200: HealthSerializer, 503: OpenApiResponse(HealthSerializer, "Nothing can be served.")},
    )
    def get(self, request: Request) -> Response:
        status = health.monitor.report(wait=QUICK_SECONDS).status
        return self.answer({"status": status}, 503 if status == "unhealthy" else 200)


class LiveView(_HealthView):
    """Looks at nothing but this process."""

    @extend_schema(operation_id="health_live", summary="Liveness", tags=["Health"], responses=ProbeSerializer)
    def get(self, request: Request) -> Response:
        return self.answer({"status": "alive"}, 200)


class ReadyView(_HealthView):
    """Says whether a load balancer should send requests here."""

    @extend_schema(
        operation_id="health_ready",
        summary="Readiness",
        tags=["Health"],
        responses={200: ProbeSerializer, 503: OpenApiResponse(ProbeSerializer, "Starting, draining, or nothing left.")},
    )
    def get(self, request: Request) -> Response:
        reason = health.why_not_ready()
        return self.answer({"status": reason or "ready"}, 503 if reason else 200)


class DetailedHealthView(_HealthView):
    """Each check with its latency. Staff and callers on this machine also see causes and addresses."""

    authentication_classes = [SessionAuthentication, *api_settings.DEFAULT_AUTHENTICATION_CLASSES]

    def perform_authentication(self, request: Request) -> None:
        """Nobody must sign in, and looking a user up needs a database that may be away."""

    @extend_schema(
        operation_id="health_detailed",
        summary="Health of each part",
        tags=["Health"],
        auth=[],
        responses={200: DetailedHealthSerializer, 503: DetailedHealthSerializer},
    )
    def get(self, request: Request) -> Response:
        report = health.monitor.report()
        for_operators = is_local_caller(request._request) or self._is_staff(request, report)
        checks = {name: health.as_json(result, for_operators=for_operators) for name, result in report.checks.items()}
        return self.answer({"status": report.status, "checks": checks}, 503 if report.status == "unhealthy" else 200)

    @staticmethod
    def _is_staff(request: Request, report: health.Report) -> bool:
        if report.checks["database"].outcome.status != "healthy":
            return False
        try:
            return bool(request.user.is_active and request.user.is_staff)
        except (APIException, DatabaseError):
            return False


# --- Metrics


class _HealthCollector(Collector):
    """The latest health of each check as a gauge, for alerts that need no second prober."""

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "zenzefi_check_up", "1 if the check passes, 0.5 if it is degraded, else 0", labels=["check"]
        )
        value = {"healthy": 1.0, "degraded": 0.5, "unhealthy": 0.0}
        for name, result in health.monitor.report(wait=QUICK_SECONDS).checks.items():
            up.add_metric([name], value[result.outcome.status])
        yield up


class _LedgerCollector(Collector):
    """What the last nightly reconciliation found, so that drift can raise an alert."""

    def collect(self) -> Iterator[Metric]:
        try:
            verdict = wallet.last_verdict()
        except redis.RedisError:
            return
        if verdict is None:
            return
        drift = GaugeMetricFamily(
            "zenzefi_ledger_drift_rows", "Rows that contradicted a check of the ledger", labels=["check"]
        )
        for name, rows in verdict.drifts.items():
            drift.add_metric([name], rows)
        yield drift
        yield GaugeMetricFamily(
            "zenzefi_ledger_reconciled_timestamp_seconds", "When the ledger was last reconciled", verdict.at
        )


def _registry() -> CollectorRegistry:
    """Return this deployment's metrics: of this process, or from the files that all of them share."""
    registry = CollectorRegistry()
    if directory := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        MultiProcessCollector(registry, path=directory)
    else:
        registry.register(PROCESS_REGISTRY)
    registry.register(_HealthCollector())
    registry.register(_LedgerCollector())
    return registry


def _may_read_metrics(request: HttpRequest) -> bool:
    offered = request.headers.get("Authorization", "")
    expected = f"Bearer {settings.METRICS_TOKEN}"
    if settings.METRICS_TOKEN and secrets.compare_digest(offered.encode(), expected.encode()):
        return True
    return is_local_caller(request)


@read_only
def metrics(request: HttpRequest) -> HttpResponse:
    """Serve Prometheus's text or OpenMetrics; to anyone who may not read them the page does not exist."""
    if not _may_read_metrics(request):
        raise Http404
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return HttpResponse(encode(_registry()), content_type=content_type, headers={"Cache-Control": "no-store"})


# --- API documentation


@lru_cache(maxsize=8)
def _schema(language: str, form: str) -> bytes:
    with translation.override(language):
        schema = SchemaGenerator().get_schema(request=None, public=True)
        renderer = OpenApiYamlRenderer() if form == "yaml" else OpenApiJsonRenderer()
        return bytes(renderer.render(schema, renderer_context={}))


@read_only
def schema(request: HttpRequest) -> HttpResponse:
    """Serve the OpenAPI document: JSON, or YAML when that is asked for."""
    yaml_types = ["application/yaml", "application/vnd.oai.openapi", "text/yaml"]
    preferred = request.get_preferred_type(["application/json", *yaml_types])
    form = request.GET.get("format") or ("yaml" if preferred in yaml_types else "json")
    if form not in {"json", "yaml"}:
        raise Http404
    response = HttpResponse(
        _schema(translation.get_language() or settings.LANGUAGE_CODE, form), content_type=f"application/{form}"
    )
    patch_vary_headers(response, ["Accept", "Accept-Language"])
    return response


def _documentation(request: HttpRequest, template: str) -> HttpResponse:
    response = render(request, template, {"title": settings.SPECTACULAR_SETTINGS["TITLE"]})
    response["Content-Security-Policy"] = _DOCS_POLICY
    return response


@read_only
def swagger(request: HttpRequest) -> HttpResponse:
    """Swagger UI, from our own static files."""
    return _documentation(request, "docs/swagger.html")


@read_only
def redoc(request: HttpRequest) -> HttpResponse:
    """ReDoc, from our own static files."""
    return _documentation(request, "docs/redoc.html")
