"""``Idempotency-Key``: a POST that moves money happens once, however often it is sent.

The answer is stored in the transaction that moved the money, so after a crash there is either both or neither.
While that transaction is open a second request with the key answers 409. Refused requests change nothing and
are not stored: the same key may try again, say after a top-up.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable
from typing import Any

from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings
from django.db import connection
from django.utils.translation import gettext_lazy as _
from drf_spectacular.utils import OpenApiParameter
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from zenzefi.lib import clock
from zenzefi.lib.errors import Conflict, DomainError
from zenzefi.lib.models import IdempotencyRecord
from zenzefi.lib.transactions import run_in_transaction

#: How the header is documented on every route that honours it.
IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    str,
    OpenApiParameter.HEADER,
    description="1-255 printable characters. The request is carried out once per key; repeating it returns the "
    "first answer, with another body 422, while the first is in flight 409.",
)

_WELL_FORMED = re.compile(r"[\x20-\x7e]{1,255}")


class InvalidIdempotencyKey(DomainError):
    code = "invalid_idempotency_key"
    detail = _("Idempotency-Key must be 1 to 255 printable characters.")


class IdempotencyKeyReused(DomainError):
    status = 422
    code = "idempotency_key_reused"
    detail = _("This Idempotency-Key was used for a different request.")


class RequestInFlight(Conflict):
    code = "request_in_flight"
    detail = _("A request with this Idempotency-Key is still being processed.")


class AnswerUnreadable(Conflict):
    """The request was carried out, but its answer was stored under a ``SECRET_KEY`` that has changed since."""

    code = "idempotent_answer_unreadable"
    detail = _("This request was carried out before; its answer cannot be shown again.")


#: What every route that honours the header may answer because of it.
IDEMPOTENCY_REFUSALS = (InvalidIdempotencyKey, RequestInFlight, IdempotencyKeyReused, AnswerUnreadable)


def _cipher(key: str, user_id: object) -> Fernet:
    secret = hmac.digest(settings.SECRET_KEY.encode(), f"idempotency:{user_id}:{key}".encode(), "sha256")
    return Fernet(base64.urlsafe_b64encode(secret))


def _fingerprint(request: Request) -> bytes:
    """Return a digest of what the request asks: method, path and parsed body."""
    body = json.dumps(request.data, sort_keys=True, default=str, ensure_ascii=True)
    return hashlib.sha256(f"{request.method}\n{request.path}\n{body}".encode()).digest()


def key_of(request: Request) -> str | None:
    """Return the request's ``Idempotency-Key``, if it has one. Raises :class:`InvalidIdempotencyKey`."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _WELL_FORMED.fullmatch(key):
        raise InvalidIdempotencyKey
    return key


def run_idempotently(request: Request, flow: Callable[[], tuple[int, Any]]) -> Response:
    """Run a money-moving flow for the signed-in user, once per ``Idempotency-Key``.

    ``flow`` calls the service and returns ``(status, serialized body)``. Without the header it just runs.
    With it, this function opens the transaction and ``flow`` joins it.

    Raises :class:`InvalidIdempotencyKey` (400), :class:`RequestInFlight` and :class:`AnswerUnreadable` (409),
    :class:`IdempotencyKeyReused` (422), and whatever the flow raises.
    """
    key = key_of(request)
    if key is None:
        status, body = flow()
        return Response(body, status=status)

    assert request.user.is_authenticated
    user_id = request.user.pk
    key_hash = hashlib.sha256(f"{user_id}:{key}".encode()).digest()
    fingerprint = _fingerprint(request)
    return run_in_transaction(lambda: _run_once(user_id, key, key_hash, fingerprint, flow))


def _run_once(
    user_id: Any, key: str, key_hash: bytes, fingerprint: bytes, flow: Callable[[], tuple[int, Any]]
) -> Response:
    lock_id = int.from_bytes(key_hash[:8], "big", signed=True)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [lock_id])
        row = cursor.fetchone()
    if not row or not row[0]:
        raise RequestInFlight
    record = IdempotencyRecord.objects.filter(user_id=user_id, key_hash=key_hash).first()
    if record is not None:
        if bytes(record.request_hash) != fingerprint:
            raise IdempotencyKeyReused
        try:
            stored = _cipher(key, user_id).decrypt(bytes(record.answer))
        except InvalidToken:
            raise AnswerUnreadable from None
        return Response(json.loads(stored), status=record.status, headers={"Idempotent-Replayed": "true"})
    status, body = flow()
    rendered = JSONRenderer().render(body)
    IdempotencyRecord.objects.create(
        user_id=user_id,
        key_hash=key_hash,
        request_hash=fingerprint,
        status=status,
        answer=_cipher(key, user_id).encrypt(rendered),
    )
    return Response(json.loads(rendered), status=status)


def forget_old_records() -> int:
    """Delete records older than ``IDEMPOTENCY_RETENTION`` and return how many there were."""
    horizon = clock.now() - settings.IDEMPOTENCY_RETENTION
    deleted, _by_model = IdempotencyRecord.objects.filter(created_at__lt=horizon).delete()
    return deleted
