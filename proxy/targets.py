"""What a Zenzefi server is to the gateway: data, from rows or from the environment."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ssl
import tempfile
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings

ACTIVE, DRAINING, DISABLED = "active", "draining", "disabled"


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """One server as configured. Equal specs are served by one pool of connections."""

    #: Names its state in Redis; of a row its id, of the environment a digest of the address.
    id: str
    #: For people and metrics.
    name: str
    url: str
    weight: int = 1
    #: Scopes it serves; empty: all.
    scopes: frozenset[bytes] = frozenset()
    state: str = ACTIVE
    #: ``Host`` to send instead of the address's own.
    host: str = ""
    #: Connections per worker; 0: as the settings say.
    max_connections: int = 0
    #: Whether answers 502, 503 and 504 count as failures of the server.
    counts_gateway_errors: bool = False
    #: Whether a carrier in front may take requests to it.
    carried_at_edge: bool = True
    #: Asked for regularly; empty: never.
    probe_path: str = ""
    ca_certificates: str = ""
    client_certificate: str = ""
    client_key: str = field(default="", repr=False)

    @property
    def is_secure(self) -> bool:
        return self.url.startswith("https:")

    @property
    def carrier_key(self) -> str:
        """Names the server to a carrier in front (:mod:`proxy.edge`).

        Another one with every change of what a carrier is configured with: one that has not been told of the change
        does not know the new name, and is given nothing to carry to the old address.
        """
        reached = (self.id, self.url, self.host, self.ca_certificates, self.client_certificate, self.client_key)
        return hashlib.sha256("\0".join(reached).encode()).hexdigest()[:16]

    def reaches_like(self, other: TargetSpec) -> bool:
        """Whether connections made for one can carry requests meant for the other."""
        ours = (self.url, self.host, self.max_connections, self.ca_certificates)
        theirs = (other.url, other.host, other.max_connections, other.ca_certificates)
        return (
            ours == theirs
            and self.client_certificate == other.client_certificate
            and self.client_key == other.client_key
        )


def from_settings() -> list[TargetSpec]:
    """Return the servers that ``ZENZEFI_TARGET_URL`` names."""
    return [
        TargetSpec(
            id=f"env-{hashlib.sha256(url.encode()).hexdigest()[:12]}-{number}",
            name=f"env-{number}",
            url=url.rstrip("/"),
        )
        for number, url in enumerate(settings.ZENZEFI_TARGET_URLS, start=1)
    ]


def host_of(url: str) -> str:
    """Return host and port of an address, without credentials."""
    return urlsplit(url).netloc.rpartition("@")[2]


def make_tls_context(spec: TargetSpec | None = None) -> ssl.SSLContext:
    """Return a verifying context: the server's own authority, else ``ZENZEFI_CA_FILE``, else the system's.

    Raises :class:`ssl.SSLError` and :class:`OSError` for certificates that cannot be used.
    """
    if spec is not None and spec.ca_certificates:
        context = ssl.create_default_context(cadata=spec.ca_certificates)
    else:
        cafile = settings.ZENZEFI_CA_FILE
        context = ssl.create_default_context(cafile=str(cafile) if cafile else None)
    context.set_alpn_protocols(["http/1.1"])
    if spec is not None and spec.client_certificate:
        # OpenSSL takes these from files only. This one is ours alone and gone at once.
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(f"{spec.client_certificate.strip()}\n{spec.client_key.strip()}\n")
            file.flush()
            # Without a callback OpenSSL would ask the terminal for the password of an encrypted key.
            context.load_cert_chain(file.name, password=lambda: b"")
    return context


class KeyUnreadable(Exception):
    """A private key was stored under a ``SECRET_KEY`` that has changed since."""


def _cipher() -> Fernet:
    secret = hmac.digest(settings.SECRET_KEY.encode(), b"upstream client key", "sha256")
    return Fernet(base64.urlsafe_b64encode(secret))


def seal_key(pem: str) -> bytes:
    """Return a private key as it is stored: encrypted under ``SECRET_KEY``."""
    return _cipher().encrypt(pem.encode())


def unseal_key(sealed: bytes) -> str:
    """Return a stored private key. Raises :class:`KeyUnreadable`."""
    try:
        return _cipher().decrypt(sealed).decode()
    except InvalidToken as exc:
        raise KeyUnreadable from exc
