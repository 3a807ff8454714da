"""An invented certificate inventory that behaves like one: what the demo upstream serves.

Every name, key identifier and serial number is made up; the "PEM" blocks hold a hash and are no certificates.
"""

import base64
import hashlib
import itertools
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

TYPES = ("ROOT_CA", "BACKEND_CA", "DIAGNOSTIC_USER", "VARIANT_CODING", "ENHANCED_RIGHTS", "TIME")
ROLES = ("none", "supplier", "development", "production", "after_sales")
COLUMNS = (
    "id",
    "type",
    "subject",
    "issuer",
    "serial_number",
    "valid_from",
    "valid_until",
    "active_for_testing",
)
INVENTORY_SIZE = 60
# How far one look at the metrics carries an update run: ten looks finish it, without a clock.
UPDATE_STEP = 6

PEM_BEGIN = b"-----BEGIN CERTIFICATE-----"
PEM_END = b"-----END CERTIFICATE-----"


class UnknownCertificateError(LookupError):
    """No such certificate, or it was removed."""


@dataclass(frozen=True, slots=True)
class Certificate:
    id: str
    type: str
    role: str
    subject: str
    issuer: str
    serial_number: str
    key_identifier: str
    valid_from: str
    valid_until: str
    active_for_testing: bool = False

    def pem(self) -> bytes:
        """PEM-shaped bytes, the same for the same certificate."""
        payload = b"".join(hashlib.sha256(f"{self.serial_number}/{part}".encode()).digest() for part in range(16))
        lines = textwrap.wrap(base64.b64encode(payload).decode(), 64)
        return b"\n".join([PEM_BEGIN, *(line.encode() for line in lines), PEM_END, b""])

    def summary(self) -> dict[str, Any]:
        return asdict(self)


def _invent(number: int, *, subject: str | None = None, seed: bytes | None = None) -> Certificate:
    digest = hashlib.sha256(seed if seed is not None else f"demo-{number}".encode()).hexdigest()
    kind = TYPES[number % len(TYPES)]
    return Certificate(
        id=str(number),
        type=kind,
        role=ROLES[number % len(ROLES)],
        subject=subject or f"CN=demo-unit-{number:03d},O=Example Workshop",
        issuer=f"CN=Example Backend CA {number % 3 + 1},O=Example Trust",
        serial_number=digest[:16].upper(),
        key_identifier=digest[16:56],
        valid_from=f"2026-{number % 12 + 1:02d}-01T00:00:00Z",
        valid_until=f"2028-{number % 12 + 1:02d}-01T00:00:00Z",
    )


class CertificateStore:
    """Deterministic: two stores that saw the same calls hold the same certificates."""

    def __init__(self, size: int = INVENTORY_SIZE) -> None:
        self._present = {str(number): _invent(number) for number in range(1, size + 1)}
        self._removed: dict[str, Certificate] = {}
        self._numbers = itertools.count(size + 1)
        self.column_order: list[str] = list(COLUMNS)
        self.column_visibility: dict[str, bool] = dict.fromkeys(COLUMNS, True)
        self.update_state = "idle"
        self._update_done = 0
        self.integrity_log: list[str] = []

    def find(self, *, query: str = "", kind: str = "", active: bool | None = None) -> list[Certificate]:
        """Certificates whose id, subject, issuer, serial number or key identifier contains the query."""
        wanted = query.casefold()
        return [
            certificate
            for certificate in self._present.values()
            if (not kind or certificate.type == kind.upper())
            and (active is None or certificate.active_for_testing is active)
            and any(
                wanted in text.casefold()
                for text in (
                    certificate.id,
                    certificate.subject,
                    certificate.issuer,
                    certificate.serial_number,
                    certificate.key_identifier,
                )
            )
        ]

    def get(self, certificate_id: str) -> Certificate:
        """Raises UnknownCertificateError."""
        try:
            return self._present[certificate_id]
        except KeyError:
            raise UnknownCertificateError(certificate_id) from None

    def add(self, pem: bytes, *, label: str = "") -> list[Certificate]:
        """One certificate per PEM block; raises ValueError when there is none."""
        blocks = [part.split(PEM_END)[0] for part in pem.split(PEM_BEGIN)[1:] if PEM_END in part]
        if not blocks:
            raise ValueError("no PEM block found")
        added = []
        for block in blocks:
            number = next(self._numbers)
            subject = f"CN={label or 'imported'}-{number:03d},O=Example Workshop"
            certificate = _invent(number, subject=subject, seed=b"".join(block.split()))
            self._present[certificate.id] = certificate
            added.append(certificate)
        return added

    def remove(self, ids: Iterable[str]) -> list[str]:
        """Ids that were present and are now removed."""
        removed = []
        for certificate_id in ids:
            certificate = self._present.pop(certificate_id, None)
            if certificate is not None:
                self._removed[certificate_id] = replace(certificate, active_for_testing=False)
                removed.append(certificate_id)
        return removed

    def restore(self, ids: Iterable[str] | None = None) -> list[str]:
        """Ids brought back; None brings back everything that was removed."""
        restored = []
        for certificate_id in list(self._removed) if ids is None else ids:
            certificate = self._removed.pop(certificate_id, None)
            if certificate is not None:
                self._present[certificate_id] = certificate
                restored.append(certificate_id)
        return restored

    def set_active(self, certificate_id: str, active: bool) -> Certificate:
        """Raises UnknownCertificateError."""
        certificate = replace(self.get(certificate_id), active_for_testing=active)
        self._present[certificate_id] = certificate
        return certificate

    def start_update(self) -> None:
        self.update_state = "running"
        self._update_done = 0

    def cancel_update(self) -> bool:
        """False when no update was running."""
        if self.update_state != "running":
            return False
        self.update_state = "canceled"
        return True

    def update_metrics(self) -> dict[str, Any]:
        total = len(self._present)
        if self.update_state == "running":
            self._update_done = min(total, self._update_done + UPDATE_STEP)
            if self._update_done == total:
                self.update_state = "done"
        return {"state": self.update_state, "checked": min(self._update_done, total), "total": total}

    def check_integrity(self) -> dict[str, Any]:
        """A report; what it found is also kept as the log."""
        issuers = sorted({certificate.issuer for certificate in self._present.values()})
        self.integrity_log = [f"checked {certificate.subject}: ok" for certificate in self._present.values()]
        return {"checked": len(self._present), "removed": len(self._removed), "issuers": issuers, "ok": True}

    def reorder_columns(self, columns: Sequence[str]) -> None:
        """Raises ValueError unless every known column is named once."""
        if sorted(columns) != sorted(COLUMNS):
            raise ValueError("every column must be named once")
        self.column_order = list(columns)

    def show_columns(self, visibility: dict[str, bool]) -> None:
        """Raises ValueError for an unknown column or a value that is not a boolean."""
        if not set(visibility) <= set(COLUMNS) or not all(isinstance(v, bool) for v in visibility.values()):
            raise ValueError("unknown column, or not a boolean")
        self.column_visibility.update(visibility)
