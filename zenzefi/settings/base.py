"""Settings common to every environment; also the whole of the default, local one.

``production`` tightens them and refuses unsafe values, ``test`` shortens what tests wait for.
"""

from __future__ import annotations

import os
import secrets
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import django_stubs_ext
import psycopg.conninfo
from django.utils.translation import gettext_lazy as _

from zenzefi.runtime import embedded
from zenzefi.settings import openapi
from zenzefi.settings.env import BASE_DIR, ConfigurationError, Environment

# Lets classes name their model, ModelAdmin[User], as the types do; must run before any app is imported.
django_stubs_ext.monkeypatch()

env = Environment.load()

ENVIRONMENT = "local"
HOST = env.string("HOST", "127.0.0.1")
PORT = env.integer("PORT", 8000, minimum=1, maximum=65535)
UNIX_SOCKET = env.socket_path("UNIX_SOCKET")
VAR_DIR = env.path("VAR_DIR", "var") or Path()
WEB_WORKERS = env.integer("WEB_WORKERS", min(2, os.cpu_count() or 1), minimum=1, maximum=256)
DEBUG = env.boolean("DEBUG", False)
LOG_LEVEL = env.string("LOG_LEVEL", "INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
BACKEND_URL = env.url("BACKEND_URL", f"http://{HOST}:{PORT}")
FRONTEND_URL = env.url("FRONTEND_URL", BACKEND_URL)
ALLOWED_HOSTS = env.items("ALLOWED_HOSTS", f"localhost,127.0.0.1,[::1],{HOST}")
CORS_ALLOWED_ORIGINS = env.urls(
    "CORS_ALLOWED_ORIGINS",
    "http://localhost:61000,https://localhost:61000,http://127.0.0.1:61000,https://127.0.0.1:61000",
)
TRUSTED_PROXIES = env.networks("TRUSTED_PROXIES")
METRICS_TOKEN = env.string("METRICS_TOKEN")


def _local_secret_key() -> str:
    """Return the key of this data directory, made on first use, so that local sign-ins survive a restart."""
    path = VAR_DIR / "secret_key"
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        VAR_DIR.mkdir(parents=True, exist_ok=True)
        # O_EXCL: of several processes that start at once one writes the key and the others read it.
        # The content is linked into place whole, so no reader sees an empty file.
        draft = path.with_name(f"secret_key.{os.getpid()}")
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_urlsafe(64), encoding="ascii")
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        draft.unlink()
        return path.read_text(encoding="ascii").strip()


SECRET_KEY = env.string("SECRET_KEY") or _local_secret_key()

# --- Applications, from the top of the import order to its bottom
INSTALLED_APPS = [
    "zenzefi.runtime",
    "analytics",
    "proxy",
    "bundles",
    "tokens",
    "referrals",
    "wallet",
    "accounts",
    "notifications",
    "zenzefi.lib",
    "pgtrigger",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "corsheaders",
    "django_prometheus",
    "zenzefi.apps.BackOfficeConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
]

MIDDLEWARE = [
    "django_prometheus.middleware.PrometheusBeforeMiddleware",
    "zenzefi.lib.middleware.RequestIDMiddleware",
    "zenzefi.lib.middleware.OptionalTrailingSlashMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "zenzefi.lib.staticfiles.StaticFilesMiddleware",
    "corsheaders.middleware.CorsMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "zenzefi.lib.middleware.BodyLimitMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "zenzefi.lib.middleware.ServiceUnavailableMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_prometheus.middleware.PrometheusAfterMiddleware",
]

ROOT_URLCONF = "zenzefi.urls"
ASGI_APPLICATION = "zenzefi.asgi.application"
WSGI_APPLICATION = "zenzefi.wsgi.application"
APPEND_SLASH = False

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "zenzefi" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

# --- PostgreSQL
DATABASE_URL = env.string("DATABASE_URL") or embedded.database_url(VAR_DIR)
DATABASE_POOL_SIZE = env.integer("DATABASE_POOL_SIZE", 20, minimum=2, maximum=1000)
DATABASE_TIMEOUT = env.seconds("DATABASE_TIMEOUT", "3")


def _database(url: str) -> dict[str, object]:
    if urlsplit(url).scheme not in {"postgres", "postgresql"}:
        raise ConfigurationError("DATABASE_URL must be a URL starting with postgresql://.")
    try:
        parameters = dict(psycopg.conninfo.conninfo_to_dict(url))
    except psycopg.ProgrammingError:
        raise ConfigurationError(
            "DATABASE_URL is not a PostgreSQL connection URL such as postgresql://user:secret@host:5432/name."
        ) from None
    # One port for each host; psycopg would notice only when it connects.
    if not all(port.isdecimal() for port in str(parameters.get("port") or 5432).split(",")):
        raise ConfigurationError("DATABASE_URL has a port that is not a number.")
    if not parameters.get("dbname"):
        raise ConfigurationError("DATABASE_URL names no database.")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parameters.pop("dbname"),
        "USER": parameters.pop("user", "") or "",
        "PASSWORD": parameters.pop("password", "") or "",
        "HOST": parameters.pop("host", "") or "",
        "PORT": str(parameters.pop("port", "") or ""),
        # The pool keeps connections itself; CONN_MAX_AGE under ASGI would leak one a thread.
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": True,
        "ATOMIC_REQUESTS": False,
        "OPTIONS": {
            "connect_timeout": 3,
            **parameters,
            "pool": {
                "min_size": 1,
                "max_size": DATABASE_POOL_SIZE,
                "timeout": DATABASE_TIMEOUT,
                # How long the pool goes on trying to reconnect before it starts afresh; short, so that service
                # returns within seconds when PostgreSQL does.
                "reconnect_timeout": 5,
            },
        },
    }


DATABASES = {"default": _database(DATABASE_URL)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- Redis
REDIS_URL = env.url("REDIS_URL", embedded.redis_url(VAR_DIR), schemes=("redis", "rediss", "unix"))
REDIS_PREFIX = env.string("REDIS_PREFIX", "zen:")
REDIS_TIMEOUT = env.seconds("REDIS_TIMEOUT", "1")

CACHES = {
    "default": {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": REDIS_URL,
        "KEY_PREFIX": f"{REDIS_PREFIX}cache",
        "OPTIONS": {
            "SOCKET_CONNECT_TIMEOUT": REDIS_TIMEOUT,
            "SOCKET_TIMEOUT": REDIS_TIMEOUT,
        },
    }
}

# --- Users and sign-in
AUTH_USER_MODEL = "accounts.User"
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {
        "NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator",
        "OPTIONS": {"user_attributes": ("username", "email", "full_name")},
    },
    {
        "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
        "OPTIONS": {"min_length": 8},
    },
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
ACCESS_TOKEN_LIFETIME = timedelta(minutes=15)
REFRESH_TOKEN_LIFETIME = timedelta(days=30)
# A client whose answer was lost may repeat a refresh for this long and gets the same successor.
REFRESH_REUSE_GRACE = timedelta(seconds=10)

# --- Limits
RATE_LIMITS = {
    "auth": env.rate("RATE_LIMIT_AUTH", "5/3600"),
    "api": env.rate("RATE_LIMIT_API", "100/60"),
    "proxy": env.rate("RATE_LIMIT_PROXY", "1000/60"),
    "gift_claim": env.rate("RATE_LIMIT_GIFT_CLAIM", "10/3600"),
}
JSON_BODY_MAX_BYTES = env.integer("JSON_BODY_MAX_BYTES", 1_048_576, minimum=1024)
DATA_UPLOAD_MAX_MEMORY_SIZE = JSON_BODY_MAX_BYTES
IDEMPOTENCY_RETENTION = timedelta(hours=24)

# --- Referrals
# Days back in which a device or an address that referee and referrer share holds the bonus for review.
REFERRAL_FRAUD_WINDOW_DAYS = env.integer("REFERRAL_FRAUD_WINDOW_DAYS", 30, minimum=1, maximum=3650)

# --- Renewals
# ZNC that an account's tokens may spend on renewing themselves in a day of UTC, unless the account sets its own.
RENEWAL_DAILY_CAP = env.amount("RENEWAL_DAILY_CAP")

# --- Gifts
# Days in which a gift can be claimed.
GIFT_VALID_DAYS = env.integer("GIFT_VALID_DAYS", 14, minimum=1, maximum=3650)
# Gifts that one user may make within 24 hours.
GIFTS_PER_DAY = env.integer("GIFTS_PER_DAY", 10, minimum=1, maximum=10_000)
# Gifts of tokens that last longer wait for staff.
GIFT_APPROVAL_ABOVE_HOURS = env.integer("GIFT_APPROVAL_ABOVE_HOURS", 24, maximum=1_000_000)

# --- Payments
_PROVIDER_SECRETS = {
    "mock": (),
    "stripe": ("STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET"),
    "yookassa": ("YOOKASSA_SHOP_ID", "YOOKASSA_SECRET_KEY"),
}
PAYMENT_PROVIDERS = env.items("PAYMENT_PROVIDERS", "mock")
for _provider in PAYMENT_PROVIDERS:
    if _provider not in _PROVIDER_SECRETS:
        raise ConfigurationError(
            f"PAYMENT_PROVIDERS knows no provider {_provider!r}; it knows: {', '.join(_PROVIDER_SECRETS)}."
        )
    for _name in _PROVIDER_SECRETS[_provider]:
        if not env.is_set(_name):
            raise ConfigurationError(f"{_name} must be set while PAYMENT_PROVIDERS contains {_provider}.")
# Seconds that one call to a provider may take.
PAYMENT_PROVIDER_TIMEOUT = env.seconds("PAYMENT_PROVIDER_TIMEOUT", "10")
STRIPE_SECRET_KEY = env.string("STRIPE_SECRET_KEY")
STRIPE_WEBHOOK_SECRET = env.string("STRIPE_WEBHOOK_SECRET")
STRIPE_API_BASE = env.url("STRIPE_API_BASE", "https://api.stripe.com")
YOOKASSA_SHOP_ID = env.string("YOOKASSA_SHOP_ID")
YOOKASSA_SECRET_KEY = env.string("YOOKASSA_SECRET_KEY")
YOOKASSA_API_URL = env.url("YOOKASSA_API_URL", "https://api.yookassa.ru/v3")
YOOKASSA_CURRENCIES = env.items("YOOKASSA_CURRENCIES", "RUB")
# Where its notifications come from, as its documentation lists them.
YOOKASSA_NETWORKS = env.networks(
    "YOOKASSA_NETWORKS",
    "185.71.76.0/27,185.71.77.0/27,77.75.153.0/25,77.75.156.11,77.75.156.35,77.75.154.128/25,"
    "2a02:5180:0:1509::/64,2a02:5180:0:2655::/64,2a02:5180:0:1533::/64,2a02:5180:0:2669::/64",
)

# --- Gateway
ZENZEFI_TARGET_URLS = env.urls("ZENZEFI_TARGET_URL")
ZENZEFI_CA_FILE = env.existing_file("ZENZEFI_CA_FILE")
DEVICE_IDLE_SECONDS = env.integer("DEVICE_IDLE_SECONDS", 300, minimum=1)
SESSION_IDLE_SECONDS = env.integer("SESSION_IDLE_SECONDS", 3600, minimum=1)
GATEWAY: dict[str, Any] = {
    # Seconds. The first five bound one proxied request; total does not apply to streams (SSE, WebSocket).
    "connect_timeout": env.seconds("GATEWAY_CONNECT_TIMEOUT", "5"),
    # From the first byte of a request's head, or the connection's beginning, until the head is whole.
    "head_timeout": env.seconds("GATEWAY_HEAD_TIMEOUT", "20"),
    "first_byte_timeout": env.seconds("GATEWAY_FIRST_BYTE_TIMEOUT", "60"),
    # How long a client may leave unread what it was sent.
    "unread_timeout": env.seconds("GATEWAY_UNREAD_TIMEOUT", "60"),
    # Bytes and fields of a request's head; of an answer's with the interim ones before it; how many of these.
    "head_max_bytes": env.integer("GATEWAY_HEAD_MAX_BYTES", 64 * 2**10, minimum=1024, maximum=2**24),
    "head_max_fields": env.integer("GATEWAY_HEAD_MAX_FIELDS", 200, minimum=10, maximum=10_000),
    "upstream_head_max_bytes": env.integer("GATEWAY_UPSTREAM_HEAD_MAX_BYTES", 256 * 2**10, minimum=1024, maximum=2**24),
    "upstream_head_max_fields": env.integer("GATEWAY_UPSTREAM_HEAD_MAX_FIELDS", 1000, minimum=10, maximum=100_000),
    "upstream_max_interim": env.integer("GATEWAY_UPSTREAM_MAX_INTERIM", 100, minimum=0, maximum=10_000),
    # Bytes of one WebSocket message, either way.
    "websocket_max_bytes": env.integer("GATEWAY_WEBSOCKET_MAX_BYTES", 16 * 2**20, minimum=1024, maximum=2**30),
    # Seconds between two pings to either side of a WebSocket.
    "websocket_ping": env.seconds("GATEWAY_WEBSOCKET_PING", "20", minimum="0.1"),
    # Bytes of one request's body.
    "body_max_bytes": env.integer("GATEWAY_BODY_MAX_BYTES", 10 * 2**30, minimum=1, maximum=10**12 - 1),
    "idle_timeout": env.seconds("GATEWAY_IDLE_TIMEOUT", "60"),
    "total_timeout": env.seconds("GATEWAY_TOTAL_TIMEOUT", "3600"),
    # Connections to the upstream per worker process.
    "max_upstream_connections": env.integer("GATEWAY_MAX_UPSTREAM_CONNECTIONS", 1024, minimum=1),
    # How long a validation may be answered from Redis before PostgreSQL is asked again.
    "cache_seconds": env.integer("GATEWAY_CACHE_SECONDS", 300, minimum=1),
    "negative_cache_seconds": env.integer("GATEWAY_NEGATIVE_CACHE_SECONDS", 10, minimum=1),
    # Requests a second that one process may validate in PostgreSQL while Redis is down.
    "fallback_rate": env.integer("GATEWAY_FALLBACK_RATE", 50, minimum=1),
    # How long a request counts against its token's requests at once after its worker was last heard of.
    "lease_seconds": env.seconds("GATEWAY_LEASE_SECONDS", "30"),
    # Failures in a row after which a server gets no requests, for how many seconds at first and at most.
    "eject_after": env.integer("GATEWAY_EJECT_AFTER", 5, minimum=1),
    "eject_seconds": env.seconds("GATEWAY_EJECT_SECONDS", "1"),
    "eject_max_seconds": env.seconds("GATEWAY_EJECT_MAX_SECONDS", "15"),
    # Seconds between two probes of a server and for each; results in a row that turn the verdict.
    "probe_interval": env.seconds("GATEWAY_PROBE_INTERVAL", "5", minimum="0.1"),
    "probe_timeout": env.seconds("GATEWAY_PROBE_TIMEOUT", "2"),
    "probe_rise": env.integer("GATEWAY_PROBE_RISE", 2, minimum=1),
    "probe_fall": env.integer("GATEWAY_PROBE_FALL", 3, minimum=1),
    "shutdown_grace": env.seconds("GATEWAY_SHUTDOWN_GRACE", "10"),
    # A line of JSON per proxied request and WebSocket. At thousands a second it costs more than the relaying.
    "access_log": env.boolean("GATEWAY_ACCESS_LOG", False),
}
# What a carrier in front proves itself with, and where its log is received; without a secret there is no edge mode.
EDGE_SECRET = env.secret("EDGE_SECRET")
EDGE_LOG = env.datagram_address("EDGE_LOG", "127.0.0.1:5140")

# --- E-mail
EMAIL_URL = env.string("EMAIL_URL", "file")
DEFAULT_FROM_EMAIL = env.string("DEFAULT_FROM_EMAIL", "Zenzefi <noreply@zenzefi.invalid>")


def _mail_settings(url: str) -> dict[str, object]:
    if url == "file":
        return {
            "EMAIL_BACKEND": "django.core.mail.backends.filebased.EmailBackend",
            "EMAIL_FILE_PATH": VAR_DIR / "mail",
        }
    if url == "console":
        return {"EMAIL_BACKEND": "django.core.mail.backends.console.EmailBackend"}
    parts = urlsplit(url)
    if parts.scheme in {"smtp", "smtps"} and parts.hostname:
        return {
            "EMAIL_BACKEND": "django.core.mail.backends.smtp.EmailBackend",
            "EMAIL_HOST": parts.hostname,
            "EMAIL_PORT": parts.port or (465 if parts.scheme == "smtps" else 587),
            "EMAIL_HOST_USER": parts.username or "",
            "EMAIL_HOST_PASSWORD": parts.password or "",
            "EMAIL_USE_SSL": parts.scheme == "smtps",
            "EMAIL_TIMEOUT": 10,
        }
    raise ConfigurationError("EMAIL_URL must be file, console, smtp://user:secret@host:port or smtps://...")


globals().update(_mail_settings(EMAIL_URL))


# --- Celery
def _broker_url(url: str) -> str:
    """Kombu spells a Unix socket ``redis+socket://`` and the database ``virtual_host``."""
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return url
    database = dict(pair.split("=", 1) for pair in parts.query.split("&") if "=" in pair).get("db", "0")
    return f"redis+socket://{parts.path}?virtual_host={database}"


CELERY_BROKER_URL = _broker_url(REDIS_URL)
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "global_keyprefix": f"{REDIS_PREFIX}celery:",
    "visibility_timeout": 3600,
    "socket_timeout": 5,
    "socket_connect_timeout": 2,
}
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_TIME_LIMIT = 300
CELERY_TASK_SOFT_TIME_LIMIT = 240
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_TIMEZONE = "UTC"
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
# Each app keeps its schedule beside its tasks; zenzefi.celery puts them together.

# --- API
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["accounts.api.authentication.AccessTokenAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_PARSER_CLASSES": ["zenzefi.lib.parsers.StrictJSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PAGINATION_CLASS": "zenzefi.lib.pagination.LimitOffsetPagination",
    "DEFAULT_THROTTLE_CLASSES": ["zenzefi.lib.ratelimit.ApiRateThrottle"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "zenzefi.lib.errors.exception_handler",
    "DATETIME_FORMAT": "%Y-%m-%dT%H:%M:%S.%fZ",
    "COERCE_DECIMAL_TO_STRING": True,
    "UNAUTHENTICATED_USER": "django.contrib.auth.models.AnonymousUser",
    "NUM_PROXIES": 0,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Zenzefi Proxy Platform",
    "DESCRIPTION": openapi.DESCRIPTION,
    "TAGS": openapi.TAGS,
    "VERSION": "1.0.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SERVE_AUTHENTICATION": [],
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "SCHEMA_PATH_PREFIX": r"/api/v1",
    "COMPONENT_SPLIT_REQUEST": True,
    "APPEND_COMPONENTS": {
        "securitySchemes": {
            "GatewayToken": {
                "type": "apiKey",
                "in": "header",
                "name": "X-Access-Token",
                "description": "A token that was bought: the token of /api/v1/tokens/purchase.",
            }
        }
    },
    # Several fields are called status; their generated names would change with every new one.
    "ENUM_NAME_OVERRIDES": {
        "HealthEnum": ["healthy", "degraded", "unhealthy"],
        "TokenStatusEnum": "tokens.models.AccessToken.Status",
        "GiftStatusEnum": "tokens.models.Gift.Status",
        "PaymentStatusEnum": "wallet.models.Payment.Status",
    },
}

# --- Languages, time, static files
LANGUAGE_CODE = "en"
LANGUAGES = [("en", _("English")), ("ru", _("Russian"))]
LOCALE_PATHS = [BASE_DIR / "zenzefi" / "locale"]
USE_I18N = True
USE_TZ = True
TIME_ZONE = "UTC"
STATIC_URL = "/static/"
STATIC_ROOT = VAR_DIR / "static"
STATICFILES_DIRS = [BASE_DIR / "zenzefi" / "static"]
WHITENOISE_USE_FINDERS = True

# --- Security
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SAMESITE = "Lax"
CORS_ALLOW_CREDENTIALS = True
CORS_URLS_REGEX = r"^/(api/|health(/|$))"
CORS_EXPOSE_HEADERS = [
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "Server-Timing",
    "X-Request-ID",
    "X-Zenzefi-Error",
]
CORS_ALLOW_HEADERS = [
    "accept",
    "accept-language",
    "authorization",
    "content-type",
    "idempotency-key",
    "x-access-token",
    "x-device-id",
    "x-request-id",
]

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"request_id": {"()": "zenzefi.lib.logging.RequestIDFilter"}},
    "formatters": {
        "line": {"()": "zenzefi.lib.logging.LineFormatter"},
        "message": {"()": "zenzefi.lib.logging.MessageFormatter"},
    },
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "formatter": "line",
            "filters": ["request_id"],
        },
        "access": {"class": "logging.StreamHandler", "formatter": "message"},
    },
    "root": {"handlers": ["stderr"], "level": LOG_LEVEL},
    "loggers": {
        # The gateway's, one JSON object a line whatever the form of the others. GATEWAY_ACCESS_LOG alone switches it.
        "proxy.access": {"handlers": ["access"], "level": "INFO", "propagate": False},
        # A 4xx is the caller's affair and is in the access log; Django would warn for each.
        "django.request": {"level": "ERROR"},
        "django.security.DisallowedHost": {"level": "CRITICAL"},
        # runserver's own handler would write paths as they are, with the codes of gifts in them.
        "django.server": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
        # One line a task, twice, and one a probe: said only when something is wrong.
        "celery.beat": {"level": "WARNING"},
        "celery.worker.strategy": {"level": "WARNING"},
        "celery.app.trace": {"level": "WARNING"},
        "httpx": {"level": "WARNING"},
    },
}
