from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class TokensConfig(AppConfig):
    name = "tokens"
    verbose_name = _("Access tokens")

    def ready(self) -> None:
        from referrals.services import Suspicion, register_evidence
        from tokens.reconciliation import register_checks
        from tokens.selectors import share_device

        register_checks()
        register_evidence(Suspicion.SAME_DEVICE, share_device)
