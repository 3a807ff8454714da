"""Everything of the gateway that changes state outside the data plane."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import redis
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import connection, transaction
from django.db.models import F, Q

from proxy import keys
from proxy.models import MeterBatch, Session, TokenLimits
from proxy.quotas import count_usage
from proxy.redis_link import Script
from tokens import selectors as tokens_selectors
from tokens import services as tokens_services
from tokens.exceptions import TokenNotUsable
from zenzefi.lib import clock
from zenzefi.lib import redis as redis_client

logger = logging.getLogger(__name__)

#: Token id, user id, device, address, user agent, requests, bytes in, bytes out, first and last moment in ms.
MeterRow = Sequence[Any]

#: Digests of one eviction call: Redis serves nobody else while a script runs.
_EVICT_AT_ONCE = 500


# --- credentials


@lru_cache(maxsize=8)
def _script(name: str) -> Script:
    return Script(name)


def _run(name: str, script_keys: list[str], arguments: list[Any]) -> Any:
    client: Any = redis_client.client()
    script = _script(name)
    try:
        return client.evalsha(script.sha, len(script_keys), *script_keys, *arguments)
    except redis.exceptions.NoScriptError:
        return client.eval(script.source.decode(), len(script_keys), *script_keys, *arguments)


def evict_credentials(*, digests: Iterable[str], revoked: bool) -> int:
    """Make the gateway look these tokens up again; with ``revoked`` refuse them without looking.

    Every worker is told and cuts what is open and no longer allowed. Raises
    :class:`redis.exceptions.RedisError` when Redis does not answer.
    """
    todo = list(digests)
    for start in range(0, len(todo), _EVICT_AT_ONCE):
        part = todo[start : start + _EVICT_AT_ONCE]
        names = [name for digest in part for name in (keys.credential(digest), keys.generation(digest))]
        _run("evict", names, [keys.changes_channel(), keys.TOMBSTONE_SECONDS, int(revoked), *part])
    return len(todo)


def release_claim(*, token_id: uuid.UUID, device_id: str = "") -> None:
    """Let the next device that comes have the seat of one device, or of all.

    Raises :class:`redis.exceptions.RedisError`.
    """
    _run("release", [keys.device(token_id), keys.seats(token_id)], [device_id])


def evict_recent_changes(*, since: timedelta) -> int:
    """Evict what changed lately, once for each change, in case the eviction at commit did not reach Redis.

    That it was done is noted in Redis, after it was done: one that comes back with what it knew before does not know
    of that either. Returns how many were evicted.

    Raises :class:`redis.exceptions.RedisError`; the next run makes up for it.
    """
    moment = clock.now() - since
    changes = [(row.digest, row.changed_at, row.revoked) for row in tokens_selectors.changed_since(moment)]
    users = get_user_model()._default_manager.filter(
        # Of a new account both moments are read at once; that it was made changed no token.
        Q(is_active=False) | Q(updated_at__gt=F("created_at") + timedelta(milliseconds=1)),
        updated_at__gte=moment,
    )
    for user_id, updated_at in users.values_list("pk", "updated_at"):
        changes += [(digest, updated_at, False) for _token_id, digest in tokens_selectors.digests_of_user(user_id)]
    limits = TokenLimits.objects.filter(updated_at__gte=moment).values_list("token__digest", "updated_at")
    changes += [(digest, updated_at, False) for digest, updated_at in limits]
    evicted = 0
    for start in range(0, len(changes), _EVICT_AT_ONCE):
        evicted += _evict_once(changes[start : start + _EVICT_AT_ONCE], remember=since * 2)
    return evicted


def _evict_once(changes: Sequence[tuple[str, datetime, bool]], *, remember: timedelta) -> int:
    client: Any = redis_client.client()
    notes = [keys.swept(digest, changed_at) for digest, changed_at, _revoked in changes]
    due = [
        (note, digest, revoked)
        for note, known, (digest, _changed_at, revoked) in zip(notes, client.mget(notes), changes, strict=True)
        if known is None
    ]
    evict_credentials(digests=[digest for _note, digest, revoked in due if revoked], revoked=True)
    evict_credentials(digests=[digest for _note, digest, revoked in due if not revoked], revoked=False)
    pipeline = client.pipeline(transaction=False)
    for note, _digest, _revoked in due:
        pipeline.set(note, 1, ex=remember)
    pipeline.execute()
    return len(due)


def store_pending_activations(*, older_than: timedelta) -> int:
    """Write activations to PostgreSQL that the gateway could not write itself. Returns how many.

    ``older_than`` leaves those alone that a worker is writing right now.
    Raises :class:`redis.exceptions.RedisError` and :class:`django.db.OperationalError`.
    """
    client: Any = redis_client.client()
    latest = round((clock.now() - older_than).timestamp() * 1000)
    stored = 0
    for field, value in client.hgetall(keys.pending_activations()).items():
        token_id = field.decode()
        activated, _, digest = value.decode().partition(" ")
        if int(activated) > latest:
            continue
        try:
            activation = tokens_services.activate_token(
                token_id=uuid.UUID(token_id),
                at=datetime.fromtimestamp(int(activated) // 1000, UTC).replace(
                    microsecond=int(activated) % 1000 * 1000
                ),
            )
        except TokenNotUsable:
            # Revoked before anybody could write that it was in use.
            evict_credentials(digests=[digest], revoked=True)
            client.hdel(keys.pending_activations(), token_id)
            continue
        _run(
            "settle",
            [keys.credential(digest), keys.generation(digest), keys.pending_activations()],
            [
                token_id,
                round(activation.activated_at.timestamp() * 1000),
                round(activation.expires_at.timestamp() * 1000),
                keys.TOMBSTONE_SECONDS,
            ],
        )
        stored += 1
    return stored


def announce_scope_rules() -> None:
    """Tell the workers, once committed, that path rules changed. They look every few seconds anyway."""
    transaction.on_commit(lambda: _publish(keys.RULES_CHANGED))


def announce_targets() -> None:
    """Tell the workers, once committed, that servers changed. They look every few seconds anyway."""
    transaction.on_commit(lambda: _publish(keys.TARGETS_CHANGED))


def _publish(message: str) -> None:
    try:
        redis_client.client().publish(keys.changes_channel(), message)
    except redis.exceptions.RedisError as exc:
        logger.warning("Workers learn of new %s later: %s", message, exc)


# --- metering

_CLOSE_STALE = """
UPDATE proxy_session s SET ended_at = s.last_activity_at, ended_reason = 'idle'
FROM unnest(%s::uuid[], %s::text[], %s::timestamptz[]) AS r(token_id, device_id, first_seen)
WHERE s.token_id = r.token_id AND s.device_id = r.device_id AND s.ended_at IS NULL
  AND s.last_activity_at < r.first_seen - make_interval(secs => %s)
"""

# Counts arrive seconds after they were made. Those of a session that has ended meanwhile are its own: a row for them
# would be an open session of a token or device that is out. What is cut when a session ends is over two seconds later.
_ADD_TO_ENDED = """
UPDATE proxy_session s SET
  requests = s.requests + r.requests,
  bytes_in = s.bytes_in + r.bytes_in,
  bytes_out = s.bytes_out + r.bytes_out,
  started_at = LEAST(s.started_at, r.first_seen),
  last_activity_at = GREATEST(s.last_activity_at, LEAST(r.last_seen, s.ended_at))
FROM (
  SELECT *, (SELECT e.id FROM proxy_session e WHERE e.token_id = u.token_id AND e.device_id = u.device_id
             ORDER BY e.ended_at DESC NULLS FIRST LIMIT 1) AS newest
  FROM unnest(%s::uuid[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::timestamptz[], %s::timestamptz[])
       AS u(token_id, device_id, requests, bytes_in, bytes_out, first_seen, last_seen)
) r
WHERE s.id = r.newest AND r.last_seen < s.ended_at + make_interval(
  secs => CASE WHEN s.ended_reason IN ('revoked', 'expired', 'owner_disabled', 'device_changed') THEN 2 ELSE 0 END)
RETURNING s.token_id::text, s.device_id
"""

# A token with one seat is with the device that used it last; as for limits, its own row counts before its tier's.
_CLOSE_CHANGED = """
UPDATE proxy_session s SET ended_at = r.first_seen, ended_reason = 'device_changed'
FROM unnest(%s::uuid[], %s::text[], %s::timestamptz[]) AS r(token_id, device_id, first_seen)
     JOIN tokens_accesstoken t ON t.id = r.token_id
     JOIN accounts_user u ON u.id = t.owner_id
     LEFT JOIN proxy_tokenlimits own ON own.token_id = t.id
     LEFT JOIN proxy_tierlimits tier ON tier.tier_id = u.tier_id
WHERE s.token_id = r.token_id AND s.device_id <> r.device_id AND s.ended_at IS NULL
  AND s.last_activity_at < r.first_seen AND COALESCE(own.seats, tier.seats, 1) = 1
"""

# Rows of tokens that are gone are left out by the join: their counts belong to nobody any more.
_ADD = """
INSERT INTO proxy_session AS s (id, token_id, user_id, device_id, client_address, user_agent, requests, bytes_in,
                                bytes_out, started_at, last_activity_at, ended_reason)
SELECT gen_random_uuid(), t.id, t.owner_id, r.device_id, NULLIF(r.address, '')::inet, r.user_agent, r.requests,
       r.bytes_in, r.bytes_out, r.first_seen, r.last_seen, ''
FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[],
            %s::timestamptz[], %s::timestamptz[])
     AS r(token_id, device_id, address, user_agent, requests, bytes_in, bytes_out, first_seen, last_seen)
JOIN tokens_accesstoken t ON t.id = r.token_id
ON CONFLICT (token_id, device_id) WHERE ended_at IS NULL DO UPDATE SET
  requests = s.requests + EXCLUDED.requests,
  bytes_in = s.bytes_in + EXCLUDED.bytes_in,
  bytes_out = s.bytes_out + EXCLUDED.bytes_out,
  client_address = COALESCE(EXCLUDED.client_address, s.client_address),
  user_agent = CASE WHEN EXCLUDED.user_agent = '' THEN s.user_agent ELSE EXCLUDED.user_agent END,
  started_at = LEAST(s.started_at, EXCLUDED.started_at),
  last_activity_at = GREATEST(s.last_activity_at, EXCLUDED.last_activity_at)
"""


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds // 1000, UTC).replace(microsecond=milliseconds % 1000 * 1000)


def _merge(batches: Iterable[Sequence[MeterRow]]) -> list[list[Any]]:
    """Return one row per token and device, in the order in which every caller locks them."""
    merged: dict[tuple[str, str], list[Any]] = {}
    for rows in batches:
        for row in rows:
            known = merged.get((row[0], row[2]))
            if known is None:
                merged[row[0], row[2]] = list(row)
                continue
            for index in (5, 6, 7):
                known[index] += row[index]
            known[8] = min(known[8], row[8])
            if row[9] >= known[9]:
                known[3], known[4], known[9] = row[3], row[4], row[9]
    return [merged[pair] for pair in sorted(merged)]


def apply_batches(batches: Sequence[tuple[uuid.UUID, Sequence[MeterRow]]]) -> int:
    """Add batches of counts to the sessions, each once however often it comes. Returns how many were new."""
    with transaction.atomic(durable=True):
        fresh = []
        # In one order, so that two workers with the same batches wait for each other instead of deadlocking.
        for identity, rows in sorted(batches, key=lambda batch: batch[0]):
            with connection.cursor() as cursor:
                cursor.execute(
                    "INSERT INTO proxy_meterbatch (id, applied_at) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                    [identity, clock.now()],
                )
                if cursor.rowcount:
                    fresh.append(rows)
        merged = _merge(fresh)
        if merged:
            columns: list[list[Any]] = [list(column) for column in zip(*merged, strict=True)]
            tokens, _users, devices, addresses, agents, requests, bytes_in, bytes_out, first, last = columns
            firsts = [_moment(value) for value in first]
            lasts = [_moment(value) for value in last]
            count_usage(batches=fresh)
            with connection.cursor() as cursor:
                cursor.execute(_CLOSE_STALE, [tokens, devices, firsts, settings.SESSION_IDLE_SECONDS])
                cursor.execute(_ADD_TO_ENDED, [tokens, devices, requests, bytes_in, bytes_out, firsts, lasts])
                late = set(cursor.fetchall())
                current = [
                    row
                    for row in zip(
                        *(tokens, devices, addresses, agents, requests, bytes_in, bytes_out, firsts, lasts), strict=True
                    )
                    if row[:2] not in late
                ]
                if current:
                    columns = [list(column) for column in zip(*current, strict=True)]
                    cursor.execute(_ADD, columns)
                    cursor.execute(_CLOSE_CHANGED, [columns[0], columns[1], columns[7]])
            tokens_services.record_device_use(
                [
                    (uuid.UUID(token), device, last_seen)
                    for token, device, last_seen in zip(tokens, devices, lasts, strict=True)
                ]
            )
    return len(fresh)


def flush_meter_stream(*, limit: int = 200) -> int:
    """Move batches from Redis to PostgreSQL. Returns how many were taken.

    Safe at any moment: what was applied but not yet deleted is recognised by its id.
    Raises :class:`redis.exceptions.RedisError` and :class:`django.db.OperationalError`.
    """
    client: Any = redis_client.client()
    entries = client.xrange(keys.meter_stream(), count=limit)
    if not entries:
        return 0
    batches = [(uuid.UUID(fields[b"id"].decode()), json.loads(fields[b"rows"])) for _id, fields in entries]
    apply_batches(batches)
    client.xdel(keys.meter_stream(), *(entry for entry, _fields in entries))
    return len(entries)


def forget_old_batches(*, older_than: timedelta) -> int:
    """Delete ids of batches that nobody can send any more."""
    deleted, _ = MeterBatch.objects.filter(applied_at__lt=clock.now() - older_than).delete()
    return deleted


# --- sessions


def end_sessions_of_released_device(*, token_id: uuid.UUID, device_id: str = "") -> int:
    """End a token's sessions because this device, or all, were released. Returns how many."""
    opened = Session.objects.open().filter(token_id=token_id)
    if device_id:
        opened = opened.filter(device_id=device_id)
    return opened.update(ended_at=clock.now(), ended_reason=Session.EndedReason.DEVICE_RELEASED)


def end_refused_sessions(**those: Any) -> int:
    """End the sessions of tokens that are refused now, of all or of those that the lookups name. Returns how many."""
    now = clock.now()
    reasons = Session.EndedReason
    opened = Session.objects.open().filter(**those)
    ended = opened.filter(token__revoked_at__isnull=False).update(ended_at=now, ended_reason=reasons.REVOKED)
    ended += opened.filter(token__expires_at__lte=now).update(ended_at=now, ended_reason=reasons.EXPIRED)
    ended += opened.filter(user__is_active=False).update(ended_at=now, ended_reason=reasons.OWNER_DISABLED)
    return ended


def close_sessions() -> int:
    """End the sessions that are idle or whose token is refused. Returns how many."""
    now = clock.now()
    idle = timedelta(seconds=settings.SESSION_IDLE_SECONDS)
    ended = end_refused_sessions()
    opened = Session.objects.open().filter(last_activity_at__lt=now - idle)
    return ended + opened.update(ended_at=now, ended_reason=Session.EndedReason.IDLE)
