"""Referrals over HTTP."""

from __future__ import annotations

from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.generics import GenericAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from referrals import selectors
from referrals.api.serializers import ReferralsSerializer
from zenzefi.lib.pagination import LimitOffsetPagination
from zenzefi.lib.schema import error_responses


class ReferredUsersPagination(LimitOffsetPagination):
    """The list stands inside the answer, and ``total_referrals`` says how long it is."""

    default_limit = 100


class ReferralsView(GenericAPIView[Any]):
    pagination_class = ReferredUsersPagination
    serializer_class = ReferralsSerializer

    @extend_schema(
        summary="Whom I referred, and what it brought",
        tags=["Referrals"],
        parameters=[
            OpenApiParameter("limit", OpenApiTypes.INT, description="Referred users to list, 1-100; by default 100."),
            OpenApiParameter("offset", OpenApiTypes.INT, description="Referred users to leave out."),
        ],
        responses={200: ReferralsSerializer, **error_responses(400, 401)},
    )
    def get(self, request: Request) -> Response:
        figures = selectors.referral_figures(request.user)
        answer = {
            "referral_code": request.user.referral_code,  # type: ignore[union-attr]
            "referral_link": selectors.referral_link(request.user),
            "total_referrals": figures.total,
            "qualifying_referrals": figures.qualifying,
            "total_bonus_earned": figures.earned,
            "referred_users": self.paginate_queryset(selectors.referees_of(request.user)),
        }
        return Response(ReferralsSerializer(answer).data)
