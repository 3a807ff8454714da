"""Reads of bundles."""

from __future__ import annotations

import uuid

from django.db.models import QuerySet

from bundles.exceptions import BundleNotFound
from bundles.models import Bundle


def bundles(*, active_only: bool = True) -> QuerySet[Bundle]:
    """Return the bundles, cheapest first."""
    return Bundle.objects.for_sale() if active_only else Bundle.objects.all()


def bundle(bundle_id: uuid.UUID) -> Bundle:
    """Return one bundle, switched off or not. Raises :class:`BundleNotFound`."""
    found = Bundle.objects.filter(pk=bundle_id).first()
    if found is None:
        raise BundleNotFound
    return found
