"""Reads of referrals."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db.models import Count, Exists, F, OuterRef, QuerySet, Sum

from referrals.models import ReferralBonus
from zenzefi.lib.money import ZERO


@dataclass(frozen=True, slots=True)
class ReferralFigures:
    """How many a user referred, how many of them made a qualifying purchase, and the ZNC that this has brought."""

    total: int
    qualifying: int
    earned: Decimal


def referral_figures(user: Any) -> ReferralFigures:
    """Return a user's figures; what was taken back again does not count as earned."""
    bonuses = ReferralBonus.objects.filter(referrer=user).aggregate(
        qualifying=Count("pk"), earned=Sum(F("paid_out") - F("taken_back"))
    )
    return ReferralFigures(
        total=get_user_model()._default_manager.filter(referred_by=user).count(),
        qualifying=bonuses["qualifying"],
        earned=bonuses["earned"] or ZERO,
    )


def referees_of(user: Any) -> QuerySet[Any]:
    """Return whom a user referred, latest first, with ``has_made_qualifying_purchase``.

    A bonus that is held or was rejected counts too: the purchase was made, and a review is not shown.
    """
    bonuses = ReferralBonus.objects.filter(referee=OuterRef("pk"))
    return (
        get_user_model()
        ._default_manager.filter(referred_by=user)
        .annotate(has_made_qualifying_purchase=Exists(bonuses))
        .order_by("-created_at", "-pk")
    )


def referral_link(user: Any) -> str:
    """Return the address at which somebody registers with the user's code."""
    return f"{settings.FRONTEND_URL.rstrip('/')}/register?{urlencode({'ref': user.referral_code})}"


def masked(username: str) -> str:
    """Return a username so that who knows it recognises it: ``alexander`` as ``a***r``, a short one as ``b***``."""
    return f"{username[0]}***{username[-1] if len(username) > 4 else ''}"
