"""Payments, rates and the providers' notifications over HTTP."""

from __future__ import annotations

import json
import logging
import uuid
from typing import Any

from django.core import signing
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.utils.translation import gettext as _
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema, extend_schema_view
from rest_framework.generics import GenericAPIView
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.parsers import FormParser
from rest_framework.permissions import AllowAny, IsAdminUser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from wallet.api.payments_serializers import (
    MockPaymentFormSerializer,
    PaymentSerializer,
    RateSerializer,
    ReceivedSerializer,
    StartPaymentSerializer,
)
from wallet.exceptions import (
    AmountNotPayable,
    BalanceLimitExceeded,
    CurrencyNotAvailable,
    InvalidNotification,
    MalformedNotification,
    NotificationNotProcessed,
    PaymentNotFound,
    PaymentNotPayable,
    ProviderNotAvailable,
    ProviderRefused,
    ProviderUnavailable,
    ReturnUrlRefused,
)
from wallet.models import Payment
from wallet.payments import selectors, services
from wallet.payments.providers import get_provider, mock
from wallet.services import demand_mock_payments
from zenzefi.lib.errors import DomainError, NotFound
from zenzefi.lib.idempotency import IDEMPOTENCY_KEY, IDEMPOTENCY_REFUSALS, key_of
from zenzefi.lib.network import client_address
from zenzefi.lib.parsers import expect_no_fields
from zenzefi.lib.schema import error_responses

logger = logging.getLogger(__name__)


class RatesView(GenericAPIView[Any]):
    permission_classes = [AllowAny]
    serializer_class = RateSerializer

    @extend_schema(
        summary="Exchange rates", tags=["Wallet"], responses={200: RateSerializer(many=True), **error_responses(400)}
    )
    def get(self, request: Request) -> Response:
        page: Any = self.paginate_queryset(selectors.current_rates())
        return self.get_paginated_response(RateSerializer(page, many=True).data)


class PurchaseView(APIView):
    @extend_schema(
        summary="Top up",
        description="Opens a payment at today's rate; the customer pays at payment_url.",
        tags=["Wallet"],
        parameters=[IDEMPOTENCY_KEY],
        request=StartPaymentSerializer,
        responses={
            201: PaymentSerializer,
            **error_responses(
                400,
                401,
                413,
                415,
                AmountNotPayable,
                BalanceLimitExceeded,
                CurrencyNotAvailable,
                ProviderNotAvailable,
                ReturnUrlRefused,
                ProviderRefused,
                ProviderUnavailable,
                *IDEMPOTENCY_REFUSALS,
            ),
        },
    )
    def post(self, request: Request) -> Response:
        body = StartPaymentSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        # Its own idempotency, kept on the payment: the provider is called between two transactions.
        payment = services.start_payment(user=request.user, idempotency_key=key_of(request), **body.validated_data)
        return Response(PaymentSerializer(payment).data, status=201)


class PaymentsView(GenericAPIView[Any]):
    serializer_class = PaymentSerializer

    @extend_schema(
        summary="Payments", tags=["Wallet"], responses={200: PaymentSerializer(many=True), **error_responses(400, 401)}
    )
    def get(self, request: Request) -> Response:
        page: Any = self.paginate_queryset(selectors.payments_of(request.user))
        return self.get_paginated_response(PaymentSerializer(page, many=True).data)


class PaymentView(APIView):
    @extend_schema(
        summary="One payment", tags=["Wallet"], responses={200: PaymentSerializer, **error_responses(401, 404)}
    )
    def get(self, request: Request, payment_id: uuid.UUID) -> Response:
        return Response(PaymentSerializer(selectors.payment_of(request.user, payment_id)).data)


class SimulatePaymentView(APIView):
    permission_classes = [IsAdminUser]

    @extend_schema(
        summary="Pay a mock payment",
        description="For staff, while the mock payment provider is on; 404 otherwise.",
        tags=["Wallet"],
        request=None,
        responses={200: PaymentSerializer, **error_responses(400, 413, 415, 401, 403, 404, PaymentNotPayable)},
    )
    def post(self, request: Request, payment_id: uuid.UUID) -> Response:
        expect_no_fields(request)
        demand_mock_payments()
        payment = services.settle_mock_payment(payment_id=payment_id, succeed=True)
        return Response(PaymentSerializer(payment).data)


class NotificationView(APIView):
    """A provider speaks here. It proves who it is by its signature or address, not by signing in."""

    authentication_classes = []
    permission_classes = [AllowAny]
    throttle_classes = []

    @extend_schema(
        summary="A payment provider's notification",
        description="The body is the provider's own. 403 when its origin is not proven; 503 when it must be resent.",
        tags=["Wallet"],
        request=OpenApiTypes.OBJECT,
        responses={
            200: ReceivedSerializer,
            **error_responses(
                404, 413, MalformedNotification, InvalidNotification, NotificationNotProcessed, ProviderUnavailable
            ),
        },
    )
    def post(self, request: Request, provider: str | None = None) -> Response:
        # The raw bytes: a signature is over them, not over what they parse to.
        body = request._request.body
        name = provider or _provider_of(request, body)
        try:
            get_provider(name)
        except ProviderNotAvailable:
            raise NotFound from None
        try:
            services.receive_notification(
                provider=name, body=body, headers=request.headers, address=client_address(request._request)
            )
        except DomainError as exc:
            if exc.status in {403, 503} or isinstance(exc, MalformedNotification):
                raise
            logger.exception("A notification of %s was not processed", name)
            raise NotificationNotProcessed from exc
        return Response({"received": True})


@extend_schema_view(post=extend_schema(operation_id="webhooks_payment_provider_create"))
class NamedNotificationView(NotificationView):
    """The same, on an address that names the provider."""


def _provider_of(request: Request, body: bytes) -> str:
    """Return who speaks on the address that all providers share; whether it is true is found out later."""
    if "Stripe-Signature" in request.headers:
        return "stripe"
    if mock.SIGNATURE_HEADER in request.headers:
        return "mock"
    try:
        payload = json.loads(body)
    except ValueError:
        raise MalformedNotification from None
    if isinstance(payload, dict) and payload.get("type") == "notification":
        return "yookassa"
    # Unsigned, and nobody's form: refused like a wrong signature.
    return "mock"


_POLICY = "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; frame-ancestors 'none'"
_SALT = "mock-payment-page"


class _AnyAccept(DefaultContentNegotiation):
    """A page is HTML and a refusal JSON, whatever a browser says it accepts."""

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        return renderers[0], renderers[0].media_type


_PAYMENT_ID = OpenApiParameter("payment_id", OpenApiTypes.UUID, required=True)
_HTML = (200, "text/html")


class MockPaymentView(APIView):
    """The mock provider's payment page. Looking at it changes nothing; its two buttons work once.

    Nobody is signed in here: the form carries a signed token of its own.
    """

    authentication_classes = []
    permission_classes = [AllowAny]
    parser_classes = [FormParser]
    content_negotiation_class = _AnyAccept

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        demand_mock_payments()

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(request, response, *args, **kwargs)
        response["Cache-Control"] = "no-store"
        response["Content-Security-Policy"] = _POLICY
        return response

    @extend_schema(
        summary="The mock provider's page",
        description="While the mock payment provider is on; 404 otherwise.",
        tags=["Wallet"],
        parameters=[_PAYMENT_ID],
        responses={_HTML: OpenApiTypes.STR, **error_responses(404)},
    )
    def get(self, request: Request) -> HttpResponse:
        return _page(request, selectors.mock_payment(_payment_id(request.query_params.get("payment_id"))))

    @extend_schema(
        summary="Pay or cancel on the mock provider's page",
        description="303 to return_url when it is done; the page again when the form is stale (403) or was used (409).",
        tags=["Wallet"],
        parameters=[_PAYMENT_ID],
        request={"application/x-www-form-urlencoded": MockPaymentFormSerializer},
        responses={303: OpenApiResponse(description="Done."), **error_responses(404)},
    )
    def post(self, request: Request) -> HttpResponse:
        payment = selectors.mock_payment(_payment_id(request.query_params.get("payment_id")))
        form = MockPaymentFormSerializer(data=request.data)
        if not form.is_valid() or not _is_for(form.validated_data["token"], payment):
            return _page(request, payment, status=403)
        try:
            services.settle_mock_payment(payment_id=payment.pk, succeed=form.validated_data["action"] == "pay")
        except PaymentNotPayable:
            payment.refresh_from_db()
            return _page(request, payment, status=409)
        return HttpResponseRedirect(payment.return_url, status=303)


def _is_for(token: str, payment: Payment) -> bool:
    try:
        signed: str = signing.loads(token, salt=_SALT, max_age=mock.PAGE_LIFETIME)
    except signing.BadSignature:
        return False
    return signed == str(payment.pk)


def _payment_id(text: str | None) -> uuid.UUID:
    try:
        return uuid.UUID(text or "")
    except ValueError:
        raise PaymentNotFound from None


def _page(request: Request, payment: Payment, *, status: int = 200) -> HttpResponse:
    context = {
        "payment": payment,
        "amount": PaymentSerializer(payment).data["amount"],
        "token": signing.dumps(str(payment.pk), salt=_SALT),
        "pending": payment.status == Payment.Status.PENDING,
        "refused": _("This form is no longer valid. Please try again.") if status == 403 else "",
    }
    return render(request._request, "wallet/mock_payment.html", context, status=status)
