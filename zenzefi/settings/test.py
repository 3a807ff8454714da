"""Settings of the test suite: real PostgreSQL and Redis, short waits, cheap password hashes."""

from __future__ import annotations

import os
from pathlib import Path

# Data and servers of its own, thrown away at will. A process that the suite starts inherits the value as it is.
_var_dir = Path(os.environ.get("VAR_DIR") or "var")
if _var_dir.name != "test":
    os.environ["VAR_DIR"] = str(_var_dir / "test")

from zenzefi.settings.base import *  # noqa: E402

ENVIRONMENT = "test"
DEBUG = False
SECRET_KEY = "tests-only-" + "0123456789abcdefghijklmnopqrstuvwxyz" * 2

# Each xdist worker has its own keys, as it has its own database.
_worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
REDIS_PREFIX = f"zentest:{_worker}:"
CACHES["default"]["KEY_PREFIX"] = f"{REDIS_PREFIX}cache"
CELERY_BROKER_TRANSPORT_OPTIONS = {
    **CELERY_BROKER_TRANSPORT_OPTIONS,
    "global_keyprefix": f"{REDIS_PREFIX}celery:",
}

# A busy machine is no Redis that is away. Tests of one that is say for themselves how long it is waited for.
REDIS_TIMEOUT = 10.0
CACHES["default"]["OPTIONS"] = {"SOCKET_CONNECT_TIMEOUT": REDIS_TIMEOUT, "SOCKET_TIMEOUT": REDIS_TIMEOUT}

# Argon2 at its cheapest: still the algorithm of production, so upgrades and verification run the same code.
PASSWORD_HASHERS = ["tests.hashers.CheapArgon2PasswordHasher"]
EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
ALLOWED_HOSTS = ["testserver", "localhost", "127.0.0.1"]
WHITENOISE_AUTOREFRESH = True
