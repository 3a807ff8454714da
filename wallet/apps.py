from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class WalletConfig(AppConfig):
    name = "wallet"
    verbose_name = _("Wallet")

    def ready(self) -> None:
        from wallet import receivers  # noqa: F401 - connects them
        from wallet.payments.reconciliation import register_checks

        register_checks()
