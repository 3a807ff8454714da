from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class ProxyConfig(AppConfig):
    name = "proxy"
    verbose_name = _("Gateway")

    def ready(self) -> None:
        from proxy import receivers  # noqa: F401 - connects them
        from proxy.selectors import share_address, share_device, upstreams_to_check
        from referrals.services import Suspicion, register_evidence
        from zenzefi.lib import health

        register_evidence(Suspicion.SAME_DEVICE, share_device)
        register_evidence(Suspicion.SAME_ADDRESS, share_address)
        health.register_upstreams(upstreams_to_check)
