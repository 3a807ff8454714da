"""Bundles over HTTP."""

from __future__ import annotations

import uuid
from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework.generics import GenericAPIView
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from bundles import selectors
from bundles.api.serializers import ActiveOnlySerializer, BundleSerializer
from bundles.exceptions import BundleNotFound
from zenzefi.lib.schema import error_responses


class BundlesView(GenericAPIView[Any]):
    permission_classes = [AllowAny]
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


class BundleView(APIView):
    permission_classes = [AllowAny]

    @extend_schema(
        summary="One bundle",
        tags=["Bundles"],
        responses={200: BundleSerializer, **error_responses(BundleNotFound)},
    )
    def get(self, request: Request, bundle_id: uuid.UUID) -> Response:
        return Response(BundleSerializer(selectors.bundle(bundle_id)).data)
