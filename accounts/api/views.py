"""The accounts API."""

from __future__ import annotations

import uuid
from typing import Any

from django.utils.translation import get_language
from django.utils.translation import gettext as _
from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework.exceptions import ValidationError
from rest_framework.generics import ListAPIView
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts import selectors, services
from accounts.api.serializers import (
    LoginSerializer,
    LogoutSerializer,
    ProfileSerializer,
    RefreshSerializer,
    RegisterSerializer,
    SessionSerializer,
    TokenPairSerializer,
    UserSerializer,
)
from accounts.exceptions import (
    InvalidCredentials,
    InvalidRefreshToken,
    MailDomainBlocked,
    RefreshReused,
    SessionNotFound,
    UnknownReferralCode,
    WrongPassword,
)
from accounts.models import SignInSession, User
from zenzefi.lib import ratelimit
from zenzefi.lib.network import client_address
from zenzefi.lib.parsers import expect_no_fields
from zenzefi.lib.ratelimit import AuthRateThrottle
from zenzefi.lib.schema import error_responses


def _parsed(serializer: Any) -> dict[str, Any]:
    serializer.is_valid(raise_exception=True)
    return dict(serializer.validated_data)


def _user(request: Request) -> User:
    assert isinstance(request.user, User)
    return request.user


def _session(request: Request) -> SignInSession:
    assert isinstance(request.auth, SignInSession)
    return request.auth


def _caller(request: Request) -> dict[str, str]:
    return {
        "address": client_address(request._request),
        "user_agent": request.headers.get("User-Agent", "").replace("\x00", ""),
    }


def _token_pair(signed_in: services.SignedIn) -> Response:
    # RFC 6749 §5.1: an answer with tokens is not for caches.
    return Response(TokenPairSerializer(signed_in).data, headers={"Cache-Control": "no-store"})


class RegisterView(APIView):
    authentication_classes = ()
    permission_classes = (AllowAny,)
    throttle_classes = (AuthRateThrottle,)

    @extend_schema(
        tags=["Accounts"],
        summary="Register",
        request=RegisterSerializer,
        responses={201: UserSerializer, **error_responses(400, 413, 415, UnknownReferralCode, MailDomainBlocked)},
        examples=[
            OpenApiExample(
                "A new user",
                value={"email": "ada@example.com", "username": "ada", "password": "correct horse battery"},
                request_only=True,
            )
        ],
    )
    def post(self, request: Request) -> Response:
        fields = _parsed(RegisterSerializer(data=request.data))
        fields["referral_code"] = fields.get("referral_code") or ""
        user = services.register_user(
            **fields, language=get_language() or "en", address=client_address(request._request)
        )
        return Response(UserSerializer(user).data, status=201)


class LoginView(APIView):
    authentication_classes = ()
    permission_classes = (AllowAny,)
    throttle_classes = (AuthRateThrottle,)

    @extend_schema(
        tags=["Accounts"],
        summary="Sign in",
        description="The address counts in any case. An unknown address, a wrong password and a disabled user are "
        "answered alike.",
        request=LoginSerializer,
        responses={200: TokenPairSerializer, **error_responses(400, 413, 415, InvalidCredentials)},
        examples=[
            OpenApiExample(
                "Sign in",
                value={"email": "ada@example.com", "password": "correct horse battery"},
                request_only=True,
            )
        ],
    )
    def post(self, request: Request) -> Response:
        fields = _parsed(LoginSerializer(data=request.data))
        return _token_pair(services.sign_in(**fields, **_caller(request)))


class RefreshView(APIView):
    authentication_classes = ()
    permission_classes = (AllowAny,)

    @extend_schema(
        tags=["Accounts"],
        summary="Exchange a refresh token for the next pair",
        description="The token is spent by this. Repeated within ten seconds, say because the answer was lost, it "
        "gets the same successor; used again later it ends the session.",
        request=RefreshSerializer,
        responses={200: TokenPairSerializer, **error_responses(400, 413, 415, InvalidRefreshToken, RefreshReused)},
    )
    def post(self, request: Request) -> Response:
        fields = _parsed(RefreshSerializer(data=request.data))
        return _token_pair(services.refresh_session(**fields, **_caller(request)))


class LogoutView(APIView):
    @extend_schema(
        tags=["Accounts"],
        summary="Sign out",
        description="Ends the session of the access token, and that of the refresh token if it is another one. "
        "Both tokens are refused from then on.",
        request=LogoutSerializer,
        responses={204: None, **error_responses(400, 401, 413, 415)},
    )
    def post(self, request: Request) -> Response:
        fields = _parsed(LogoutSerializer(data=request.data))
        services.sign_out(session=_session(request), **fields)
        return Response(status=204)


class MeView(APIView):
    @extend_schema(tags=["Accounts"], summary="Who am I", responses={200: UserSerializer, **error_responses(401)})
    def get(self, request: Request) -> Response:
        return Response(UserSerializer(_user(request)).data)

    @extend_schema(
        tags=["Accounts"],
        summary="Change my data",
        description="email and password need current_password, and end every other session.",
        request=ProfileSerializer,
        responses={200: UserSerializer, **error_responses(400, 401, 413, 415, WrongPassword, MailDomainBlocked)},
    )
    def patch(self, request: Request) -> Response:
        fields = _parsed(ProfileSerializer(data=request.data))
        if {"email", "password"} & fields.keys():
            if "current_password" not in fields:
                raise ValidationError({"current_password": [_("This field is required.")]})
            # A stolen access token must not serve to guess the password it came from.
            ratelimit.enforce(request._request, "auth", f"password:{request.user.pk}")
        user = services.update_profile(user=_user(request), session=_session(request), **fields)
        return Response(UserSerializer(user).data)


class SessionsView(ListAPIView):
    serializer_class = SessionSerializer

    def get_queryset(self) -> Any:
        if getattr(self, "swagger_fake_view", False):
            return SignInSession.objects.none()
        return selectors.live_sessions(_user(self.request))

    @extend_schema(
        tags=["Accounts"],
        summary="Where I am signed in",
        responses={200: SessionSerializer(many=True), **error_responses(400, 401)},
    )
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return super().get(request, *args, **kwargs)


class SessionView(APIView):
    @extend_schema(
        tags=["Accounts"],
        summary="End one of my sessions",
        responses={204: None, **error_responses(400, 401, 413, 415, SessionNotFound)},
    )
    def delete(self, request: Request, session_id: uuid.UUID) -> Response:
        expect_no_fields(request)
        services.end_session(user=_user(request), session_id=session_id)
        return Response(status=204)
