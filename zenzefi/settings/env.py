"""Every environment variable the project reads, parsed and checked in one place.

Nothing else in the project touches ``os.environ`` for configuration. A value that cannot be used raises
:class:`ConfigurationError` with one sentence that names the variable; ``manage.py`` prints it and exits.
``.env`` in the project's root is read first; real environment variables win over it.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from urllib.parse import urlsplit

BASE_DIR = Path(__file__).resolve().parent.parent.parent

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Of ``sun_path`` on Linux, without its end.
SOCKET_PATH_BYTES = 107

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


class ConfigurationError(Exception):
    """A variable is missing or malformed; the message names it."""


@dataclass(frozen=True, slots=True)
class RatePolicy:
    """At most ``limit`` requests in any window of ``seconds``."""

    limit: int
    seconds: int

    @property
    def per_minute(self) -> int:
        """What that comes to in a minute, cut to whole requests."""
        return self.limit * 60 // self.seconds


def _read_env_file(path: Path) -> dict[str, str]:
    """Parse ``NAME=value`` lines; ``#`` starts a comment line, surrounding quotes are removed."""
    values: dict[str, str] = {}
    if not path.is_file():
        return values
    for number, raw in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        name, separator, value = line.partition("=")
        name = name.removeprefix("export ").strip()
        if not separator or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            raise ConfigurationError(f"{path.name} line {number} is not NAME=value.")
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        values[name] = value
    return values


class Environment:
    """Typed access to variables. An empty value counts as unset, so that ``NAME=`` means the default."""

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values
        self.known: dict[str, str] = {}

    @classmethod
    def load(cls, env_file: Path | None = None) -> Environment:
        return cls({**_read_env_file(env_file or BASE_DIR / ".env"), **os.environ})

    def raw(self, name: str, default: str = "") -> str:
        self.known.setdefault(name, default)
        return self._values.get(name, "").strip() or default

    def is_set(self, name: str) -> bool:
        return bool(self._values.get(name, "").strip())

    def string(self, name: str, default: str = "", *, choices: tuple[str, ...] = ()) -> str:
        value = self.raw(name, default)
        if choices and value not in choices:
            raise ConfigurationError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")
        return value

    def boolean(self, name: str, default: bool) -> bool:
        value = self.raw(name, "true" if default else "false").lower()
        if value in _TRUE:
            return True
        if value in _FALSE:
            return False
        raise ConfigurationError(f"{name} must be true or false, not {value!r}.")

    def integer(self, name: str, default: int, *, minimum: int = 0, maximum: int = 2**31 - 1) -> int:
        value = self.raw(name, str(default))
        if not re.fullmatch(r"-?\d{1,12}", value, re.ASCII) or not minimum <= int(value) <= maximum:
            raise ConfigurationError(f"{name} must be a whole number from {minimum} to {maximum}, not {value!r}.")
        return int(value)

    def seconds(self, name: str, default: str, *, minimum: str = "0.001") -> float:
        value = self.raw(name, default)
        try:
            number = Decimal(value)
        except InvalidOperation:
            number = Decimal("NaN")
        if not number.is_finite() or not Decimal(minimum) <= number <= 10_000_000:
            raise ConfigurationError(f"{name} must be a number of seconds, at least {minimum}, not {value!r}.")
        return float(number)

    def amount(self, name: str) -> Decimal | None:
        """Return a positive amount of ZNC; ``None`` when none is set."""
        value = self.raw(name)
        if not value:
            return None
        if not re.fullmatch(r"\d{1,8}(\.\d{1,2})?", value, re.ASCII) or not Decimal(value):
            raise ConfigurationError(f"{name} must be a positive amount such as 50.00, not {value!r}.")
        return Decimal(value)

    def items(self, name: str, default: str = "") -> list[str]:
        return [item.strip() for item in self.raw(name, default).split(",") if item.strip()]

    def url(self, name: str, default: str = "", *, schemes: tuple[str, ...] = ("http", "https")) -> str:
        value = self.raw(name, default)
        return _checked_url(name, value, schemes) if value else ""

    def urls(self, name: str, default: str = "", *, schemes: tuple[str, ...] = ("http", "https")) -> list[str]:
        return [_checked_url(name, value, schemes) for value in self.items(name, default)]

    def rate(self, name: str, default: str) -> RatePolicy:
        value = self.raw(name, default)
        match = re.fullmatch(r"(\d{1,9})/(\d{1,6})", value, re.ASCII)
        if not match or int(match[1]) < 1 or int(match[2]) < 1:
            raise ConfigurationError(f"{name} must be requests/seconds such as 100/60, not {value!r}.")
        return RatePolicy(limit=int(match[1]), seconds=int(match[2]))

    def networks(self, name: str, default: str = "") -> list[IPNetwork]:
        networks: list[IPNetwork] = []
        for item in self.items(name, default):
            try:
                networks.append(ipaddress.ip_network(item, strict=False))
            except ValueError:
                raise ConfigurationError(
                    f"{name} must list addresses or networks such as 10.0.0.0/8, not {item!r}."
                ) from None
        return networks

    def path(self, name: str, default: str = "") -> Path | None:
        value = self.raw(name, default)
        return (BASE_DIR / value).absolute() if value else None

    def socket_path(self, name: str) -> Path | None:
        """Return where a Unix socket is to be; ``None`` when unset."""
        value = self.path(name)
        if value is not None and len(os.fsencode(value)) > SOCKET_PATH_BYTES:
            raise ConfigurationError(
                f"{name} is longer than the {SOCKET_PATH_BYTES} bytes that a socket's path may have."
            )
        return value

    def datagram_address(self, name: str, default: str = "") -> str:
        """Return ``unix:/path`` or ``host:port``, where datagrams are received."""
        value = self.raw(name, default)
        host, _, port = value.rpartition(":")
        if value.startswith("unix:/") or (host and port.isdecimal() and 0 < int(port) < 65536):
            return value
        raise ConfigurationError(f"{name} must be host:port or unix:/path, not {value!r}.")

    def secret(self, name: str) -> str:
        """Return a secret that fits into a configuration file without quoting; empty when unset."""
        value = self.raw(name)
        if value and not re.fullmatch(r"[A-Za-z0-9_-]{32,128}", value):
            # The value is not repeated: it may be a secret that is only too short.
            raise ConfigurationError(f"{name} must be 32 to 128 letters, digits, - and _.")
        return value

    def existing_file(self, name: str) -> Path | None:
        path = self.path(name)
        if path is not None and not path.is_file():
            raise ConfigurationError(f"{name} names a file that does not exist: {str(path)!r}.")
        return path


def _checked_url(name: str, value: str, schemes: tuple[str, ...]) -> str:
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in schemes or (parts.scheme in {"http", "https"} and not parts.hostname):
        raise ConfigurationError(f"{name} must be a URL starting with {' or '.join(schemes)}, not {value!r}.")
    return value.rstrip("/") if parts.scheme in {"http", "https"} else value
