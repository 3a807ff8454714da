"""Bundles over HTTP."""

from __future__ import annotations

import uuid
from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework.generics import GenericAPIView
from rest_framework.permissions import SAFE_METHODS, BasePermission, IsAdminUser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from bundles import selectors, services
from bundles.api.serializers import (
    ActiveOnlySerializer,
    BundleFieldsSerializer,
    BundleSerializer,
    PurchasedBundleSerializer,
    StaffBundleSerializer,
)
from bundles.exceptions import BundleNameTaken, BundleNotFound, BundleNotSold, PriceOutOfRange, PricesDisagree
from tokens.exceptions import DurationNotSold, ScopeNotSold
from wallet.exceptions import InsufficientBalance
from zenzefi.lib.idempotency import IDEMPOTENCY_KEY, IDEMPOTENCY_REFUSALS, run_idempotently
from zenzefi.lib.parsers import expect_no_fields
from zenzefi.lib.schema import error_responses

#: What may be wrong with a bundle besides its fields.
_UNSELLABLE = (DurationNotSold, ScopeNotSold, PricesDisagree, PriceOutOfRange, BundleNameTaken)


class ReadsForAllWritesForStaff(BasePermission):
    def has_permission(self, request: Request, view: APIView) -> bool:
        return request.method in SAFE_METHODS or IsAdminUser().has_permission(request, view)


class BundlesView(GenericAPIView[Any]):
    permission_classes = [ReadsForAllWritesForStaff]
    serializer_class = BundleSerializer

    @extend_schema(
        summary="Bundles, cheapest first",
        tags=["Bundles"],
        parameters=[ActiveOnlySerializer],
        responses={200: BundleSerializer(many=True), **error_responses(400)},
    )
    def get(self, request: Request) -> Response:
        query = ActiveOnlySerializer(data=request.query_params)
        query.is_valid(raise_exception=True)
        page = self.paginate_queryset(selectors.bundles(**query.validated_data))
        return self.get_paginated_response(BundleSerializer(page, many=True).data)

    @extend_schema(
        summary="Make a bundle",
        description="For staff. Without prices they follow from the price list and the discount.",
        tags=["Bundles"],
        request=BundleFieldsSerializer,
        responses={201: StaffBundleSerializer, **error_responses(400, 401, 403, 413, 415, *_UNSELLABLE)},
    )
    def post(self, request: Request) -> Response:
        body = BundleFieldsSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        bundle = services.create_bundle(actor=request.user, **body.validated_data)
        return Response(StaffBundleSerializer(bundle).data, status=201)


class BundleView(APIView):
    permission_classes = [ReadsForAllWritesForStaff]

    @extend_schema(
        summary="One bundle",
        tags=["Bundles"],
        responses={200: BundleSerializer, **error_responses(BundleNotFound)},
    )
    def get(self, request: Request, bundle_id: uuid.UUID) -> Response:
        return Response(BundleSerializer(selectors.bundle(bundle_id)).data)

    @extend_schema(
        summary="Change a bundle",
        description="For staff. Another number of tokens or another duration prices it anew from today's price list; "
        "what was bought stays as it was.",
        tags=["Bundles"],
        request=BundleFieldsSerializer(partial=True),
        responses={
            200: StaffBundleSerializer,
            **error_responses(400, 401, 403, 413, 415, BundleNotFound, *_UNSELLABLE),
        },
    )
    def patch(self, request: Request, bundle_id: uuid.UUID) -> Response:
        body = BundleFieldsSerializer(data=request.data, partial=True)
        body.is_valid(raise_exception=True)
        bundle = services.edit_bundle(actor=request.user, bundle_id=bundle_id, **body.validated_data)
        return Response(StaffBundleSerializer(bundle).data)

    @extend_schema(
        summary="Switch a bundle off",
        description="For staff. It is no longer sold, but stays.",
        tags=["Bundles"],
        responses={204: None, **error_responses(400, 401, 403, 413, 415, BundleNotFound)},
    )
    def delete(self, request: Request, bundle_id: uuid.UUID) -> Response:
        expect_no_fields(request)
        services.switch_off_bundle(actor=request.user, bundle_id=bundle_id)
        return Response(status=204)


class PurchaseView(APIView):
    @extend_schema(
        summary="Buy a bundle",
        description="One debit and all tokens, or nothing. The tokens themselves are in this answer and never again.",
        tags=["Bundles"],
        parameters=[IDEMPOTENCY_KEY],
        request=None,
        responses={
            201: PurchasedBundleSerializer,
            **error_responses(
                400, 401, 413, 415, BundleNotFound, BundleNotSold, InsufficientBalance, *IDEMPOTENCY_REFUSALS
            ),
        },
    )
    def post(self, request: Request, bundle_id: uuid.UUID) -> Response:
        expect_no_fields(request)

        def flow() -> tuple[int, Any]:
            bought = services.purchase_bundle(buyer=request.user, bundle_id=bundle_id)
            return 201, PurchasedBundleSerializer(bought).data

        return run_idempotently(request, flow)
