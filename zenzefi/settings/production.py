"""Production: the base settings, tightened. Refuses to start with a value that is unsafe to serve with."""

from __future__ import annotations

from zenzefi.settings.base import *
from zenzefi.settings.env import ConfigurationError

ENVIRONMENT = "production"

for _name in (
    "SECRET_KEY",
    "DATABASE_URL",
    "REDIS_URL",
    "ZENZEFI_TARGET_URL",
    "ALLOWED_HOSTS",
    "BACKEND_URL",
):
    if not env.is_set(_name):
        raise ConfigurationError(f"{_name} must be set in production.")
if len(SECRET_KEY) < 50 or len(set(SECRET_KEY)) < 10 or SECRET_KEY.startswith("change"):
    raise ConfigurationError("SECRET_KEY must be at least 50 random characters in production.")
if DEBUG:
    raise ConfigurationError("DEBUG must be false in production.")
if "mock" in env.items("PAYMENT_PROVIDERS"):
    raise ConfigurationError("PAYMENT_PROVIDERS must not contain mock in production.")
PAYMENT_PROVIDERS = env.items("PAYMENT_PROVIDERS")
if len(METRICS_TOKEN) < 16:
    raise ConfigurationError("METRICS_TOKEN must be at least 16 characters in production.")
if not BACKEND_URL.startswith("https://"):
    raise ConfigurationError("BACKEND_URL must start with https:// in production.")
if "*" in ALLOWED_HOSTS:
    raise ConfigurationError("ALLOWED_HOSTS must name hosts, not *, in production.")

SESSION_COOKIE_SECURE = True
CSRF_COOKIE_SECURE = True
CSRF_TRUSTED_ORIGINS = [BACKEND_URL]
SECURE_SSL_REDIRECT = env.boolean("SECURE_SSL_REDIRECT", True)
# Health probes of an orchestrator come over plain HTTP from inside.
SECURE_REDIRECT_EXEMPT = [r"^health(/|$)", r"^metrics$"]
SECURE_HSTS_SECONDS = env.integer("SECURE_HSTS_SECONDS", 31_536_000)
SECURE_HSTS_INCLUDE_SUBDOMAINS = True
SECURE_HSTS_PRELOAD = True
# A header only the trusted proxy may set; zenzefi.lib.middleware drops it from anyone else.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
WHITENOISE_USE_FINDERS = False
LOGGING["formatters"]["line"]["json"] = True
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
}
