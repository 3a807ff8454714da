"""The wallet over HTTP."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext as _
from drf_spectacular.utils import extend_schema
from rest_framework.generics import GenericAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from wallet import selectors, services
from wallet.api.serializers import (
    BalanceSerializer,
    MockPurchaseResultSerializer,
    MockPurchaseSerializer,
    TransactionFilterSerializer,
    TransactionSerializer,
)
from wallet.exceptions import BalanceLimitExceeded
from zenzefi.lib.errors import NotFound
from zenzefi.lib.idempotency import IDEMPOTENCY_KEY, IDEMPOTENCY_REFUSALS, run_idempotently
from zenzefi.lib.schema import error_responses


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
