from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class ProxyConfig(AppConfig):
    name = "proxy"
    verbose_name = _("Gateway")

    def ready(self) -> None:
        from proxy import receivers  # noqa: F401 - connects them
        from proxy.selectors import share_address, share_device
        from referrals.services import Suspicion, register_evidence

        register_evidence(Suspicion.SAME_DEVICE, share_device)
        register_evidence(Suspicion.SAME_ADDRESS, share_address)
