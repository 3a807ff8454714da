"""The wallet over HTTP."""

from __future__ import annotations

from typing import Any

from django.http import StreamingHttpResponse
from django.utils.translation import gettext as _
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.generics import GenericAPIView
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from wallet import selectors, services
from wallet.api.serializers import (
    BalanceSerializer,
    MockPurchaseResultSerializer,
    MockPurchaseSerializer,
    StatementQuerySerializer,
    StatementSerializer,
    TransactionFilterSerializer,
    TransactionSerializer,
)
from wallet.exceptions import BalanceLimitExceeded
from wallet.statements import Statement
from zenzefi.lib.errors import NotFound
from zenzefi.lib.idempotency import IDEMPOTENCY_KEY, IDEMPOTENCY_REFUSALS, run_idempotently
from zenzefi.lib.schema import error_responses
from zenzefi.lib.streaming import streaming_response


class BalanceView(APIView):
    @extend_schema(summary="Balance", tags=["Wallet"], responses={200: BalanceSerializer, **error_responses(401)})
    def get(self, request: Request) -> Response:
        return Response(BalanceSerializer(selectors.balance_of(request.user)).data)


class TransactionsView(GenericAPIView[Any]):
    serializer_class = TransactionSerializer

    @extend_schema(
        summary="Transactions",
        description="The caller's side of every transfer, newest first.",
        tags=["Wallet"],
        parameters=[TransactionFilterSerializer],
        responses={200: TransactionSerializer(many=True), **error_responses(400, 401)},
    )
    def get(self, request: Request) -> Response:
        filters = TransactionFilterSerializer(data=request.query_params)
        filters.is_valid(raise_exception=True)
        transactions = selectors.transactions_of(
            request.user,
            kind=filters.validated_data.get("transaction_type"),
            created_after=filters.validated_data.get("created_after"),
            created_before=filters.validated_data.get("created_before"),
        )
        page = self.paginate_queryset(transactions)  # type: ignore[arg-type]
        return self.get_paginated_response(TransactionSerializer(page, many=True).data)


class AlwaysJSON(DefaultContentNegotiation):
    """``?format=`` is the view's own parameter, and a caller that accepts CSV only is not refused."""

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        renderer = renderers[0]
        return renderer, renderer.media_type


class StatementView(APIView):
    content_negotiation_class = AlwaysJSON

    @extend_schema(
        summary="Statement",
        description="Opening balance, every transaction of the period in its order, and closing balance; the opening "
        "balance less what was owed plus all amounts is the closing balance less what is owed.",
        tags=["Wallet"],
        parameters=[StatementQuerySerializer],
        responses={
            (200, "application/json"): StatementSerializer,
            (200, "text/csv"): OpenApiTypes.STR,
            **error_responses(400, 401),
        },
    )
    def get(self, request: Request) -> StreamingHttpResponse:
        context = {"registered_at": request.user.created_at}  # type: ignore[union-attr]
        query = StatementQuerySerializer(data=request.query_params, context=context)
        query.is_valid(raise_exception=True)
        start, end, form = (query.validated_data[name] for name in ("from", "to", "format"))
        statement = Statement(request.user, start=start, end=end)
        if form == "json":
            return streaming_response(request._request, statement.as_json(), content_type="application/json")
        answer = streaming_response(request._request, statement.as_csv(), content_type="text/csv; charset=utf-8")
        name = f"statement-{start:%Y%m%d}-{end:%Y%m%d}.csv"
        answer.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        return answer


class MockPurchaseView(APIView):
    @extend_schema(
        summary="Top up without paying",
        description="Only while the mock payment provider is on; 404 otherwise.",
        tags=["Wallet"],
        parameters=[IDEMPOTENCY_KEY],
        request=MockPurchaseSerializer,
        responses={
            201: MockPurchaseResultSerializer,
            **error_responses(400, 401, 413, 415, BalanceLimitExceeded, NotFound, *IDEMPOTENCY_REFUSALS),
        },
    )
    def post(self, request: Request) -> Response:
        services.demand_mock_payments()
        body = MockPurchaseSerializer(data=request.data)
        body.is_valid(raise_exception=True)

        def flow() -> tuple[int, Any]:
            topped_up = services.top_up_mock(user=request.user, amount=body.validated_data["amount"])
            answer = {
                "success": True,
                "amount": topped_up.amount,
                "new_balance": topped_up.balance,
                "message": _("The balance was topped up."),
            }
            return 201, MockPurchaseResultSerializer(answer).data

        return run_idempotently(request, flow)
