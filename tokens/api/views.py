"""Access tokens over HTTP."""

from __future__ import annotations

import uuid
from typing import Any

from django.utils.translation import gettext as _
from drf_spectacular.utils import extend_schema
from rest_framework.generics import GenericAPIView
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts import selectors as accounts_selectors
from tokens import selectors, services
from tokens.api.caching import uncached
from tokens.api.serializers import (
    ActiveOnlySerializer,
    CheckResultSerializer,
    CheckSerializer,
    ChosenTierSerializer,
    OwnTierSerializer,
    PriceSerializer,
    PurchaseResultSerializer,
    PurchaseSerializer,
    ReleaseDeviceSerializer,
    RenewalTermsChangeSerializer,
    RenewalTermsSerializer,
    RevocationSerializer,
    TierChoiceSerializer,
    TierSerializer,
    TokenChangeSerializer,
    TokenSerializer,
    TokenWithSecretSerializer,
    seconds_remaining,
)
from tokens.exceptions import (
    DurationNotSold,
    InvalidNetwork,
    ScopeNotSold,
    TierNotSold,
    TierUnchanged,
    TokenAlreadyRevoked,
    TokenExpired,
    TokenHeld,
    TokenJustRenewed,
    TokenNotFound,
    TokenNotStarted,
    TooManyNetworks,
)
from wallet.exceptions import BalanceLimitExceeded, InsufficientBalance
from zenzefi.lib.idempotency import IDEMPOTENCY_KEY, IDEMPOTENCY_REFUSALS, run_idempotently
from zenzefi.lib.parsers import expect_no_fields
from zenzefi.lib.schema import error_responses


class PricesView(GenericAPIView[Any]):
    permission_classes = [AllowAny]
    serializer_class = PriceSerializer

    @extend_schema(
        summary="Prices", tags=["Tokens"], responses={200: PriceSerializer(many=True), **error_responses(400)}
    )
    def get(self, request: Request) -> Response:
        page = self.paginate_queryset(selectors.prices_for_sale())
        context = {"scopes": selectors.scopes_for_sale()}
        return self.get_paginated_response(PriceSerializer(page, many=True, context=context).data)


class PurchaseView(APIView):
    @extend_schema(
        summary="Buy a token",
        description="The token itself is in this answer and never again. Its clock starts with its first request.",
        tags=["Tokens"],
        parameters=[IDEMPOTENCY_KEY],
        request=PurchaseSerializer,
        responses={
            201: PurchaseResultSerializer,
            **error_responses(
                400, 401, 413, 415, DurationNotSold, ScopeNotSold, InsufficientBalance, *IDEMPOTENCY_REFUSALS
            ),
        },
    )
    def post(self, request: Request) -> Response:
        body = PurchaseSerializer(data=request.data)
        body.is_valid(raise_exception=True)

        def flow() -> tuple[int, Any]:
            bought = services.purchase_token(owner=request.user, **body.validated_data)
            context = {"secret": bought.secret, "balance": bought.balance}
            return 201, PurchaseResultSerializer(bought.token, context=context).data

        return uncached(run_idempotently(request, flow))


class MyTokensView(GenericAPIView[Any]):
    serializer_class = TokenSerializer

    @extend_schema(
        summary="Own tokens, newest first",
        tags=["Tokens"],
        parameters=[ActiveOnlySerializer],
        responses={200: TokenSerializer(many=True), **error_responses(400, 401)},
    )
    def get(self, request: Request) -> Response:
        query = ActiveOnlySerializer(data=request.query_params)
        query.is_valid(raise_exception=True)
        page = self.paginate_queryset(selectors.tokens_of(request.user, **query.validated_data))
        return self.get_paginated_response(TokenSerializer(page, many=True).data)


class TokenView(APIView):
    @extend_schema(
        summary="One token",
        tags=["Tokens"],
        responses={200: TokenSerializer, **error_responses(401, TokenNotFound)},
    )
    def get(self, request: Request, token_id: uuid.UUID) -> Response:
        return Response(TokenSerializer(selectors.token_of(request.user, token_id)).data)

    @extend_schema(
        summary="Change a token",
        description="What is left out stays. Networks count from the next request on; open streams from elsewhere end. "
        "A token with auto_renew gets a successor of the same duration and scope, "
        "at the price of that day, when less than 24 hours or a tenth of its duration is left, whichever is less. The "
        "successor starts when the token ends and goes on with its secret and its device. When it cannot be bought, "
        "for want of balance or by the daily cap, nothing is taken and the renewal pauses until it is switched on "
        "again. Switching it off leaves a successor that is bought already; revoke that to have its price back.",
        tags=["Tokens"],
        request=TokenChangeSerializer,
        responses={
            200: TokenSerializer,
            **error_responses(
                *(400, 401, 413, 415, TokenNotFound, TokenAlreadyRevoked, TokenExpired, TokenHeld),
                *(InvalidNetwork, TooManyNetworks),
            ),
        },
    )
    def patch(self, request: Request, token_id: uuid.UUID) -> Response:
        body = TokenChangeSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        token = services.update_token(token_id=token_id, owner=request.user, **body.validated_data)
        return Response(TokenSerializer(token).data)

    @extend_schema(
        summary="Revoke a token",
        description="Pays back what its unused time cost; a token that was never used, all that was paid. For a token "
        "that was a gift that goes to whoever paid for it. A successor that was bought for the token is revoked with "
        "it, and refund_amount holds what both pay back. Revoking a successor before its time pays back all of it and "
        "leaves the token that it renews to its end.",
        tags=["Tokens"],
        responses={
            200: RevocationSerializer,
            **error_responses(
                400,
                401,
                413,
                415,
                TokenNotFound,
                TokenAlreadyRevoked,
                TokenExpired,
                TokenHeld,
                TokenJustRenewed,
                BalanceLimitExceeded,
            ),
        },
    )
    def delete(self, request: Request, token_id: uuid.UUID) -> Response:
        expect_no_fields(request)
        revocation = services.revoke_token(
            token_id=token_id, actor=request.user, owner=request.user, refund=True, reason="owner"
        )
        answer = {
            "revoked": True,
            "refund_amount": revocation.received,
            "new_balance": revocation.balance,
            "message": _("The token was revoked."),
        }
        return Response(RevocationSerializer(answer).data)


class RotateView(APIView):
    @extend_schema(
        summary="Replace a token's secret",
        description="The new secret is in this answer and never again; the old one is refused at once. Price, expiry "
        "and device stay.",
        tags=["Tokens"],
        parameters=[IDEMPOTENCY_KEY],
        request=None,
        responses={
            200: TokenWithSecretSerializer,
            **error_responses(
                400,
                401,
                413,
                415,
                TokenNotFound,
                TokenAlreadyRevoked,
                TokenExpired,
                TokenHeld,
                TokenNotStarted,
                *IDEMPOTENCY_REFUSALS,
            ),
        },
    )
    def post(self, request: Request, token_id: uuid.UUID) -> Response:
        expect_no_fields(request)

        def flow() -> tuple[int, Any]:
            rotated = services.rotate_token(token_id=token_id, owner=request.user)
            return 200, TokenWithSecretSerializer(rotated.token, context={"secret": rotated.secret}).data

        return uncached(run_idempotently(request, flow))


class ReleaseDeviceView(APIView):
    @extend_schema(
        summary="Let another device use the token at once",
        description="Frees the seat of one device, or of all.",
        tags=["Tokens"],
        request=ReleaseDeviceSerializer,
        responses={200: TokenSerializer, **error_responses(400, 401, 413, 415, TokenNotFound)},
    )
    def post(self, request: Request, token_id: uuid.UUID) -> Response:
        body = ReleaseDeviceSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        token = services.release_device(token_id=token_id, owner=request.user, **body.validated_data)
        return Response(TokenSerializer(token).data)


class CheckView(APIView):
    permission_classes = [AllowAny]

    @extend_schema(
        summary="Check a token",
        description="Says whether the gateway would let the token in. Never activates it.",
        tags=["Tokens"],
        request=CheckSerializer,
        responses={200: CheckResultSerializer, **error_responses(400, 413, 415)},
    )
    def post(self, request: Request) -> Response:
        body = CheckSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        token = selectors.check_token(body.validated_data["token"])
        if token is None:
            answer: dict[str, Any] = dict.fromkeys(("status", "expires_at", "time_remaining_seconds"))
            answer["valid"] = False
        else:
            answer = {
                "valid": token.is_usable and token.owner.is_active,
                "status": token.status().value,
                "expires_at": token.expires_at,
                "time_remaining_seconds": seconds_remaining(token),
            }
        return Response(CheckResultSerializer(answer).data)


class RenewalTermsView(APIView):
    @extend_schema(
        summary="Default of renewal",
        description="Whether tokens bought from now on renew themselves.",
        tags=["Tokens"],
        responses={200: RenewalTermsSerializer, **error_responses(401)},
    )
    def get(self, request: Request) -> Response:
        return Response(RenewalTermsSerializer(selectors.renewal_terms_of(request.user)).data)

    @extend_schema(
        summary="Change the default of renewal",
        description="Tokens bought from now on, one by one, with this duration and this scope, are bought with "
        "auto_renew on; null stands for any. Those of bundles are not, and no token that was bought before is changed: "
        "PATCH /tokens/{id} switches a single one. The daily cap holds for all renewals of the account.",
        tags=["Tokens"],
        request=RenewalTermsChangeSerializer,
        responses={
            200: RenewalTermsSerializer,
            **error_responses(400, 401, 413, 415, DurationNotSold, ScopeNotSold),
        },
    )
    def put(self, request: Request) -> Response:
        body = RenewalTermsChangeSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        terms = services.set_renewal_terms(user=request.user, **body.validated_data)
        return Response(RenewalTermsSerializer(terms).data)


class TiersView(GenericAPIView[Any]):
    permission_classes = [AllowAny]
    serializer_class = TierSerializer

    @extend_schema(
        summary="Tiers for sale", tags=["Tiers"], responses={200: TierSerializer(many=True), **error_responses(400)}
    )
    def get(self, request: Request) -> Response:
        page = self.paginate_queryset(accounts_selectors.tiers_for_sale())
        return self.get_paginated_response(TierSerializer(page, many=True).data)


class OwnTierView(APIView):
    @extend_schema(summary="Own tier", tags=["Tiers"], responses={200: OwnTierSerializer, **error_responses(401)})
    def get(self, request: Request) -> Response:
        user: Any = request.user
        context = {"subscription": selectors.current_subscription(user)}
        return Response(OwnTierSerializer(user.tier, context=context).data)

    @extend_schema(
        summary="Choose a tier",
        description="Another tier is paid for a month from now on; what is unused of the month that was paid is "
        "credited first, cut to the cent. It is renewed on the same day of each month, the last day where the month is "
        "too short, and ends with one notice when the balance is too small. Choosing free cancels at the end of the "
        "month; choosing the cancelled tier again resumes it. Its limits hold at once.",
        tags=["Tiers"],
        parameters=[IDEMPOTENCY_KEY],
        request=TierChoiceSerializer,
        responses={
            200: ChosenTierSerializer,
            **error_responses(
                400,
                401,
                413,
                415,
                TierNotSold,
                TierUnchanged,
                InsufficientBalance,
                BalanceLimitExceeded,
                *IDEMPOTENCY_REFUSALS,
            ),
        },
    )
    def post(self, request: Request) -> Response:
        body = TierChoiceSerializer(data=request.data)
        body.is_valid(raise_exception=True)

        def flow() -> tuple[int, Any]:
            chosen = services.choose_tier(user=request.user, **body.validated_data)
            context = {"subscription": chosen.subscription, "balance": chosen.balance}
            return 200, ChosenTierSerializer(chosen.tier, context=context).data

        return run_idempotently(request, flow)
