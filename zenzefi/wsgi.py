"""The control plane for a WSGI server. The gateway needs ``zenzefi.asgi``; see its docstring."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "zenzefi.settings.base")

application = get_wsgi_application()
