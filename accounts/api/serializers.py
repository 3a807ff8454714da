"""Shapes of the accounts API. Unknown fields are ignored throughout."""

from __future__ import annotations

from django.conf import settings
from rest_framework import serializers

from accounts.models import SignInSession, User
from accounts.services.registration import PASSWORD_MAX_LENGTH
from accounts.services.sessions import SignedIn
from zenzefi.lib.fields import EmailField, StringField


class UserSerializer(serializers.ModelSerializer[User]):
    class Meta:
        model = User
        fields = [
            "id",
            "email",
            "username",
            "full_name",
            "language",
            "is_active",
            "is_superuser",
            "referral_code",
            "created_at",
            "updated_at",
        ]
        read_only_fields = fields


class RegisterSerializer(serializers.Serializer[None]):
    email = EmailField(max_length=254)
    username = StringField(min_length=3, max_length=50)
    password = StringField(max_length=PASSWORD_MAX_LENGTH, trim_whitespace=False)
    full_name = StringField(max_length=150, required=False, allow_blank=True)
    referral_code = StringField(max_length=32, required=False, allow_blank=True, allow_null=True)


class LoginSerializer(serializers.Serializer[None]):
    email = EmailField(max_length=254)
    password = StringField(max_length=PASSWORD_MAX_LENGTH, trim_whitespace=False)


class RefreshSerializer(serializers.Serializer[None]):
    refresh_token = StringField(max_length=255)


class LogoutSerializer(serializers.Serializer[None]):
    refresh_token = StringField(max_length=255, required=False, allow_blank=True)


class ProfileSerializer(serializers.Serializer[None]):
    full_name = StringField(max_length=150, required=False, allow_blank=True)
    language = serializers.ChoiceField(choices=settings.LANGUAGES, required=False)
    email = EmailField(max_length=254, required=False)
    password = StringField(max_length=PASSWORD_MAX_LENGTH, trim_whitespace=False, required=False)
    current_password = StringField(
        max_length=PASSWORD_MAX_LENGTH,
        trim_whitespace=False,
        required=False,
        help_text="Needed to change email or password.",
    )


class TokenPairSerializer(serializers.Serializer[SignedIn]):
    access_token = serializers.CharField()
    token_type = serializers.CharField(default="bearer")
    expires_in = serializers.IntegerField(help_text="Lifetime of the access token in seconds.")
    refresh_token = serializers.CharField()


class SessionSerializer(serializers.ModelSerializer[SignInSession]):
    current = serializers.SerializerMethodField(help_text="Whether this request was made in it.")

    class Meta:
        model = SignInSession
        fields = ["id", "address", "user_agent", "created_at", "last_used_at", "expires_at", "current"]
        read_only_fields = fields

    def get_current(self, session: SignInSession) -> bool:
        return session == self.context["request"].auth
