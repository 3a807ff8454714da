from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class BundlesConfig(AppConfig):
    name = "bundles"
    verbose_name = _("Bundles")

    def ready(self) -> None:
        from bundles.reconciliation import register_checks

        register_checks()
