"""Referrals in answers. Of other people only what they may be recognised by: never an e-mail address."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext_lazy as _
from rest_framework import serializers

from referrals.selectors import masked
from zenzefi.lib.money import MoneyField


class ReferredUserSerializer(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    username = serializers.SerializerMethodField(help_text=_("Masked: a***r."))
    created_at = serializers.DateTimeField()
    has_made_qualifying_purchase = serializers.BooleanField()

    def get_username(self, user: Any) -> str:
        return masked(user.username)


class ReferralsSerializer(serializers.Serializer[Any]):
    referral_code = serializers.CharField()
    referral_link = serializers.URLField(help_text=_("Where somebody registers with the code."))
    total_referrals = serializers.IntegerField()
    qualifying_referrals = serializers.IntegerField(help_text=_("Those who made a purchase that earns a bonus."))
    total_bonus_earned = MoneyField(help_text=_("ZNC, less what was taken back after refunds."))
    referred_users = ReferredUserSerializer(many=True, help_text=_("Latest first, as many as limit says."))
