"""The payment providers that are switched on."""

from __future__ import annotations

from importlib import import_module

from django.conf import settings

from wallet.exceptions import ProviderNotAvailable
from wallet.payments.providers.base import PaymentProvider

_CLASSES = {
    "mock": "MockProvider",
    "stripe": "StripeProvider",
    "yookassa": "YooKassaProvider",
}


def get_provider(name: str) -> PaymentProvider:
    """Return a provider by name. Raises :class:`ProviderNotAvailable` unless it is among ``PAYMENT_PROVIDERS``.

    A provider's SDK is imported only where the provider is on.
    """
    if name not in settings.PAYMENT_PROVIDERS or name not in _CLASSES:
        raise ProviderNotAvailable
    module = import_module(f"wallet.payments.providers.{name}")
    provider: PaymentProvider = getattr(module, _CLASSES[name])()
    return provider
