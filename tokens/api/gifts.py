"""Gifts of access tokens over HTTP."""

from __future__ import annotations

import uuid
from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.generics import GenericAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from tokens import selectors, services
from tokens.api.caching import uncached
from tokens.api.serializers import (
    GiftSerializer,
    GiftWithCodeSerializer,
    NewGiftSerializer,
    TokenWithSecretSerializer,
)
from tokens.api.throttles import GiftClaimRateThrottle
from tokens.exceptions import (
    GiftAlreadyClaimed,
    GiftAwaitsApproval,
    GiftCancelled,
    GiftExpired,
    GiftLimitReached,
    GiftNotFound,
    GiftToSelf,
    GiftUnavailable,
    OwnGift,
    TokenActivated,
    TokenAlreadyRevoked,
    TokenExpired,
    TokenHeld,
    TokenNotFound,
)
from zenzefi.lib.idempotency import IDEMPOTENCY_KEY, IDEMPOTENCY_REFUSALS, run_idempotently
from zenzefi.lib.parsers import expect_no_fields
from zenzefi.lib.ratelimit import ApiRateThrottle
from zenzefi.lib.schema import error_responses


class GiveView(APIView):
    @extend_schema(
        summary="Give a token away",
        description="The code is in this answer and never again: hand it to the recipient yourself. Only a token that "
        "was never used can be given away. Until somebody claims the gift the token is held: its secret is refused "
        "and nothing about it changes. What is not claimed in time comes back, as does what you cancel. A gift of a "
        "token that lasts long waits for staff first.",
        tags=["Gifts"],
        parameters=[IDEMPOTENCY_KEY],
        request=NewGiftSerializer,
        responses={
            201: GiftWithCodeSerializer,
            **error_responses(
                400,
                401,
                413,
                415,
                GiftToSelf,
                TokenNotFound,
                TokenAlreadyRevoked,
                TokenExpired,
                TokenHeld,
                TokenActivated,
                GiftLimitReached,
                *IDEMPOTENCY_REFUSALS,
            ),
        },
    )
    def post(self, request: Request, token_id: uuid.UUID) -> Response:
        body = NewGiftSerializer(data=request.data)
        body.is_valid(raise_exception=True)

        def flow() -> tuple[int, Any]:
            offered = services.offer_gift(token_id=token_id, giver=request.user, **body.validated_data)
            context = {"user": request.user, "code": offered.code}
            return 201, GiftWithCodeSerializer(offered.gift, context=context).data

        return uncached(run_idempotently(request, flow))


class GiftsView(GenericAPIView[Any]):
    serializer_class = GiftSerializer

    @extend_schema(
        summary="Gifts sent and received, newest first",
        tags=["Gifts"],
        responses={200: GiftSerializer(many=True), **error_responses(400, 401)},
    )
    def get(self, request: Request) -> Response:
        page = self.paginate_queryset(selectors.gifts_of(request.user))
        return self.get_paginated_response(GiftSerializer(page, many=True, context={"user": request.user}).data)


class GiftView(APIView):
    @extend_schema(
        summary="Take a gift back",
        description="The token works again with the secret it had.",
        tags=["Gifts"],
        responses={
            204: None,
            **error_responses(400, 401, 413, 415, GiftNotFound, GiftAlreadyClaimed, GiftCancelled, GiftExpired),
        },
    )
    def delete(self, request: Request, gift_id: uuid.UUID) -> Response:
        expect_no_fields(request)
        services.cancel_gift(gift_id=gift_id, giver=request.user)
        return Response(status=204)


class ClaimView(APIView):
    throttle_classes = [ApiRateThrottle, GiftClaimRateThrottle]

    @extend_schema(
        summary="Claim a gift",
        description="The token is yours, with a new secret that is in this answer and never again. The first claim "
        "wins. Revoking such a token pays back whoever bought it.",
        tags=["Gifts"],
        parameters=[
            OpenApiParameter(
                "code",
                str,
                OpenApiParameter.PATH,
                description="GIFT-XXXX-XXXX-XXXX-XXXX, in any case, with or without dashes.",
            ),
            IDEMPOTENCY_KEY,
        ],
        request=None,
        responses={
            200: TokenWithSecretSerializer,
            **error_responses(
                400,
                401,
                413,
                415,
                OwnGift,
                GiftNotFound,
                GiftAwaitsApproval,
                GiftAlreadyClaimed,
                GiftCancelled,
                GiftExpired,
                GiftUnavailable,
                *IDEMPOTENCY_REFUSALS,
            ),
        },
    )
    def post(self, request: Request, code: str) -> Response:
        expect_no_fields(request)

        def flow() -> tuple[int, Any]:
            claimed = services.claim_gift(code=code, claimer=request.user)
            return 200, TokenWithSecretSerializer(claimed.token, context={"secret": claimed.secret}).data

        return uncached(run_idempotently(request, flow))
