"""The data plane: a pure ASGI application that admits, relays, limits and meters requests to the Zenzefi servers.

One request: read the head, decide in one round trip (:mod:`proxy.validation`), relay it (:mod:`proxy.relay`, or
:mod:`proxy.websocket`) unless a carrier in front takes it from here (:mod:`proxy.edge`), count what passed.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
from random import getrandbits
from time import monotonic, time
from typing import Any

from django.conf import settings
from django.db import DatabaseError

from proxy import answers, breaker, keys, metering, selectors, targets, timing, tracing, upstream_services
from proxy.access_log import AccessLog
from proxy.cors import Cors
from proxy.database import Database, DatabaseAway
from proxy.decisions import (
    ADMIT,
    DEVICE_MALFORMED,
    DEVICE_MISSING,
    DEVICE_OK,
    LOOK,
    RECHECK,
    Decision,
    Outcome,
    ValidationAway,
    moment,
)
from proxy.edge import Edge, may_be_carried, may_be_sent_again
from proxy.exceptions import MalformedRequest, Refused
from proxy.gate import Gate
from proxy.headers import (
    Forwarding,
    Incoming,
    is_device_id,
    is_request_id,
    read_request,
)
from proxy.last_known import LastKnown
from proxy.limit_answers import LimitHeaders
from proxy.limits import NONE, Limits
from proxy.metering import Meter
from proxy.metrics import Metrics
from proxy.pacing import Paces
from proxy.pool import Pool
from proxy.probes import Prober
from proxy.redis_link import RedisAway, RedisLink
from proxy.relay import Relay
from proxy.scopes import Rule, ScopeTable
from proxy.streams import TICK, Exchange, Registry
from proxy.targets import TargetSpec
from proxy.validation import SCRIPTS, Validator
from proxy.websocket import relay_websocket
from tokens import secrets
from zenzefi.lib import health
from zenzefi.lib.asgi import END, Receive, Scope, Send
from zenzefi.lib.streaming import ANSWER

logger = logging.getLogger(__name__)

PREFIX = b"/api/v1/proxy"
#: Refused in any case: TRACE would show the upstream's view of the headers, CONNECT opens a tunnel.
REFUSED_METHODS = frozenset({"TRACE", "CONNECT"})
#: What a 405 names instead (RFC 9110 §15.5.6): of the relay, and of the status.
RELAY_ALLOWS = ((b"allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),)
_STATUS_ALLOWS = ((b"allow", b"GET, HEAD"),)

_REFUSALS = {
    Outcome.UNKNOWN: "token_invalid",
    Outcome.REVOKED: "token_revoked",
    Outcome.HELD: "token_held",
    Outcome.EXPIRED: "token_expired",
    Outcome.OWNER_DISABLED: "owner_disabled",
    Outcome.DEVICE_MISSING: "device_missing",
    Outcome.DEVICE_MALFORMED: "device_malformed",
    Outcome.PATH_AMBIGUOUS: "path_ambiguous",
    Outcome.SCOPE_FORBIDDEN: "scope_forbidden",
    Outcome.DEVICE_CONFLICT: "device_conflict",
    Outcome.RATE_LIMITED: "rate_limited",
    Outcome.GATEWAY_CLOSED: "gateway_closed",
    Outcome.ADDRESS_FORBIDDEN: "address_forbidden",
    Outcome.CONCURRENCY_LIMITED: "concurrency_limited",
    Outcome.QUOTA_EXCEEDED: "quota_exceeded",
    Outcome.GATEWAY_ONLY: "gateway_only",
}
#: The outcome of a request that a carrier in front was told to take to a server.
HANDED_OVER = "handed_over"


class Gateway:
    """One worker's gateway. ``start`` and ``stop`` belong to the lifespan; a request starts it if nobody did."""

    def __init__(self) -> None:
        self._started = False
        self._starting: asyncio.Lock | None = None
        self._tasks: list[asyncio.Task[None]] = []

    # --- life

    async def start(self) -> None:
        """Connect to the neighbours. A neighbour that is away does not keep the worker from starting."""
        if self._started:
            return
        conf = settings.GATEWAY
        timeout = settings.REDIS_TIMEOUT
        health.draining.clear()
        self.database = Database(threads=4, timeout=settings.DATABASE_TIMEOUT + 1, backlog=256)
        self.link = RedisLink(settings.REDIS_URL, timeout=timeout, scripts=(*SCRIPTS, *breaker.SCRIPTS))
        self._changes = RedisLink(
            settings.REDIS_URL, timeout=timeout, subscribe=keys.changes_channel(), on_message=self._on_change
        )
        self.registry = Registry()
        self.registry.on_expiry = self._on_expiry
        self.validator = Validator(self.link, self.database, self.registry.count_of)
        self.paces = Paces()
        self.gate = Gate(self.database, self.registry)
        self.meter = Meter(self.link, self.database, self.registry)
        self.upstream = Pool(self.link, on_outage=self._note_outage)
        self._prober = Prober(self.upstream, self.link)
        self._specs: list[TargetSpec] | None = None
        self._loading_targets = asyncio.Lock()
        self.metrics = Metrics(self)
        self.body_max = int(conf["body_max_bytes"])
        self._forwarding = Forwarding()
        self.edge = Edge(settings.EDGE_SECRET)
        self.cors = Cors(settings.CORS_ALLOWED_ORIGINS)
        self._limit_headers = LimitHeaders(settings.RATE_LIMITS["proxy"])
        self.access_log = AccessLog() if conf.get("access_log") else None
        # Digests of tokens admitted before: their shape need not be looked at again.
        self._well_formed: set[str] = set()
        self._table: ScopeTable | None = None
        self._rules: list[Rule] | None = None
        self._last_known = LastKnown(self.link)
        self._loading_rules = asyncio.Lock()
        self._background: set[asyncio.Task[Any]] = set()
        logging.getLogger("uvicorn.error").addFilter(_expected_hangups)
        await asyncio.gather(
            self.link.start(), self._changes.start(), self._load_rules(), self._load_targets(), self.gate.load()
        )
        if self._rules is None or self._specs is None:
            await self._start_with_last_known()
        self.upstream.start()
        loop = self._loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._ticking(), name="gateway-tick"),
            loop.create_task(self._every_second(), name="gateway-second"),
            loop.create_task(self._refresh_rules(), name="gateway-rules"),
            loop.create_task(self.gate.keep_looking(self.link), name="gateway-gate"),
            loop.create_task(self._refresh_targets(), name="gateway-targets"),
            loop.create_task(self._prober.run(), name="gateway-prober"),
        ]
        # What is loaded by now stays for good; it need not be looked through again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(25_000, 20, 20)
        self._started = True

    async def stop(self) -> None:
        """Cut what is still open and hand over every count. The server has waited for the grace period before."""
        if not self._started:
            return
        self._started = False
        health.draining.set()
        for exchange in self.registry:
            exchange.interrupt("shutting_down")
        await self.registry.wait_empty(2.0)
        for task in [*self._tasks, *self._background]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._background, return_exceptions=True)
        await self.meter.drain()
        self.metrics.flush()
        await asyncio.gather(self.link.stop(), self._changes.stop(), self.upstream.close())
        self.database.stop()

    async def ensure_started(self) -> None:
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            await self.start()

    # --- background

    async def _ticking(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            try:
                self.link.check()
                self._changes.check()
                self.registry.tick()
            except Exception:
                # As below: no deadline would hold any more.
                logger.exception("The gateway's clock failed")

    async def _every_second(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            try:
                self.meter.add_running()
                await self.meter.flush()
                self.metrics.flush()
                old = monotonic() - 0.9
                for exchange in self.registry:
                    if exchange.started < old and not exchange.ended:
                        self.keep(loop.create_task(self._look_after(exchange)))
            except Exception:
                # This loop must outlive any surprise: without it nothing is metered or cut.
                logger.exception("The gateway's housekeeping failed")

    async def _look_after(self, exchange: Exchange) -> None:
        """Keep an open exchange's device claim alive; cut the exchange if its token may not be used any more."""
        try:
            renewal = await self.validator.renew(exchange)
            if renewal.closed:
                exchange.interrupt("gateway_closed")
            if renewal.taken:
                exchange.interrupt("device_conflict")
            if exchange.pace is not None:
                exchange.pace.share(renewal.workers)
            limits = exchange.limits
            if renewal.generation != exchange.generation or limits.bytes_per_day or limits.bytes_per_month:
                await self._recheck(exchange)
                exchange.generation = renewal.generation
        except (RedisAway, ValidationAway):
            # Without Redis a stream is asked about in PostgreSQL, as far as new requests leave room.
            if self.validator.has_spare_questions():
                try:
                    await self._recheck(exchange)
                except ValidationAway:
                    pass

    async def _recheck(self, exchange: Exchange) -> None:
        decision = await self.validator.decide(
            exchange.digest,
            exchange.device,
            DEVICE_OK,
            self._open_scopes(exchange.below, exchange.method),
            exchange.address,
            mode=RECHECK,
        )
        if decision.outcome != Outcome.OK:
            exchange.interrupt(_REFUSALS[Outcome(decision.outcome)])
            return
        if decision.expires:
            if decision.token_id != exchange.token_id:
                # Its successor goes on with it; what passed so far belongs to the token that has ended.
                self.meter.add(exchange)
                exchange.token_id = decision.token_id
                self._apply_limits(exchange, decision.limits)
            exchange.expires = decision.expires
        exchange.scope = decision.scope
        if decision.limits != exchange.limits:
            self._apply_limits(exchange, decision.limits)
        self._check_path(exchange)

    def _check_path(self, exchange: Exchange) -> None:
        """Cut an exchange whose path is not open any more, after rules or the token's scope changed."""
        table = self._table
        if table is not None and not table.is_open(exchange.scope.decode("ascii"), exchange.below, exchange.method):
            exchange.interrupt("scope_forbidden")

    def _apply_limits(self, exchange: Exchange, limits: Limits) -> None:
        exchange.limits = limits
        exchange.pace = self.paces.of(exchange.token_id, limits.bandwidth) if limits.bandwidth else None

    def enter(self, exchange: Exchange, decision: Decision, below: bytes, method: str) -> None:
        """Take down what was decided on, and what holds for the exchange while it lasts."""
        exchange.scope, exchange.below, exchange.method = decision.scope, below, method
        exchange.token_id = decision.token_id
        exchange.user_id = decision.user_id
        exchange.generation = decision.generation
        exchange.expires = decision.expires
        exchange.lease = decision.lease
        if decision.limits is not NONE:
            self._apply_limits(exchange, decision.limits)
        self.registry.add(exchange)

    def leave(self, exchange: Exchange) -> None:
        """The exchange is over: free what it held, count what it moved."""
        exchange.end()
        self.registry.discard(exchange)
        if exchange.limits is not NONE:
            self.validator.give_back(exchange)
        self.meter.add(exchange)

    def _on_expiry(self, exchange: Exchange) -> None:
        self.keep(asyncio.get_running_loop().create_task(self._go_on_or_end(exchange)))

    async def _go_on_or_end(self, exchange: Exchange) -> None:
        try:
            await self._recheck(exchange)
        except ValidationAway:
            exchange.interrupt("token_expired")

    def _on_change(self, message: bytes) -> None:
        text = message.decode("latin-1")
        loop = asyncio.get_running_loop()
        if text == keys.RULES_CHANGED:
            tasks = [loop.create_task(self._load_rules())]
        elif text == keys.GATE_CHANGED:
            tasks = [loop.create_task(self.gate.load())]
        elif text == keys.TARGETS_CHANGED:
            tasks = [loop.create_task(self._load_targets())]
        elif text == keys.UPSTREAM_CHANGED:
            self.upstream.look()
            return
        else:
            tasks = [loop.create_task(self._look_after(exchange)) for exchange in self.registry.of_digest(text)]
        for task in tasks:
            self.keep(task)

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Hold on to a task that nobody awaits; the loop itself would not."""
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def activate(self, digest: str, decision: Decision) -> bool:
        """As :meth:`Validator.activate`, and to its end even when the exchange is cut meanwhile.

        What it notes first would otherwise stay noted, and start the clock of a token that was given away since.
        """
        task = asyncio.get_running_loop().create_task(self.validator.activate(digest, decision))
        self.keep(task)
        return await asyncio.shield(task)

    async def _start_with_last_known(self) -> None:
        """PostgreSQL is away: serve as the other workers do until it answers."""
        rules, specs = await self._last_known.read()
        if self._rules is None and rules is not None:
            self._table = ScopeTable(rules)
        if self._specs is None:
            # Better the environment's than none.
            await self.upstream.apply(targets.from_settings() if specs is None else specs)

    async def _load_rules(self) -> None:
        # One at a time: of two answers the older one must not be applied last.
        async with self._loading_rules:
            try:
                rules = await self.database.run(selectors.scope_rules)
            except (DatabaseAway, DatabaseError) as exc:
                # Also before the migrations of this version have run.
                logger.warning("Path rules could not be read: %s", exc)
                return
        self._last_known.keep_rules(rules)
        if rules != self._rules:
            self._rules = rules
            self._table = ScopeTable(rules)
            for exchange in self.registry:
                self._check_path(exchange)

    async def _refresh_rules(self) -> None:
        while True:
            await asyncio.sleep(5.0 if self._rules is not None else 0.5)
            try:
                await self._load_rules()
            except Exception:
                logger.exception("Path rules could not be read")

    async def _load_targets(self) -> None:
        # As above.
        async with self._loading_targets:
            try:
                specs = await self.database.run(selectors.upstream_targets)
            except (DatabaseAway, DatabaseError) as exc:
                logger.warning("The servers could not be read: %s", exc)
                return
            self._last_known.keep_targets(specs)
            if specs == self._specs:
                return
            self._specs = specs
            await self.upstream.apply(specs)
        for exchange in self.registry:
            if self.upstream.is_cut(exchange):
                exchange.interrupt("upstream_unavailable")

    async def _refresh_targets(self) -> None:
        while True:
            # Without Redis nobody tells of a change.
            await asyncio.sleep(5.0 if self._specs is not None and self.link.up else 1.0)
            try:
                await self._load_targets()
            except Exception:
                logger.exception("The servers could not be read")

    async def _note_outage(self, names: list[str]) -> bool:
        try:
            await self.database.run(upstream_services.note_outage, target_names=names)
        except (DatabaseAway, DatabaseError) as exc:
            logger.warning("The outage cannot be written down yet: %s", exc)
            return False
        return True

    # --- requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._started:
            await self.ensure_started()
        if scope["type"] == "websocket":
            await relay_websocket(self, scope, receive, send)
        else:
            await self._http(scope, receive, send)

    def below_prefix(self, scope: Scope) -> bytes:
        """Return the raw path below the public prefix, without its slash. Raises :class:`MalformedRequest`."""
        raw = scope.get("raw_path") or scope["path"].encode("latin-1", "replace")
        if raw.startswith(b"/api/v1/proxy/"):
            return raw[14:]
        if raw == PREFIX:
            return b""
        # "/api/v1/prox%79/": it decodes to ours, but the bytes would be matched and sent as something else.
        raise MalformedRequest("the path's prefix is encoded")

    def _open_scopes(self, below: bytes, method: str) -> bytes | None:
        """Return the restricted scopes that open a path, see :meth:`proxy.scopes.ScopeTable.scopes_of`."""
        table = self._table
        return b"" if table is None else table.scopes_of(below, method)

    async def admit(
        self, found: Incoming, below: bytes, method: str, address: str, *, mode: bytes = ADMIT
    ) -> tuple[str, Decision]:
        """Return the token's digest and the decision that lets the request pass. Raises :class:`Refused`.

        ``RECHECK`` is for what has been admitted and counted before, ``LET_GO`` for what is never heard of again.
        """
        if self.gate.closed:
            raise Refused("gateway_closed")
        digest = self.digest_of(found)
        if found.device_seen == 1 and is_device_id(found.device):
            device_state = DEVICE_OK
        elif not found.device:
            device_state = DEVICE_MISSING
        else:
            device_state = DEVICE_MALFORMED
        open_scopes = self._open_scopes(below, method)
        overridden = found.overrides and open_scopes is not None and found.means_another_method(method)
        if overridden:
            # As ambiguous as a path that means two: rules for methods would judge the one and the server do the other.
            open_scopes = None
        try:
            decision = await self.validator.decide(digest, found.device, device_state, open_scopes, address, mode=mode)
        except ValidationAway:
            raise Refused("service_unavailable") from None
        outcome = decision.outcome
        if outcome == 0:
            if digest not in self._well_formed:
                if len(self._well_formed) >= 10_000:
                    self._well_formed.clear()
                self._well_formed.add(digest)
            return digest, decision
        if outcome == Outcome.SCOPE_FORBIDDEN and self._table is None:
            # The rules were never read; that is our trouble, not the caller's.
            raise Refused("service_unavailable")
        if overridden and outcome == Outcome.PATH_AMBIGUOUS:
            raise Refused("method_overridden")
        raise self._refusal(decision)

    def _refusal(self, decision: Decision) -> Refused:
        code = _REFUSALS[Outcome(decision.outcome)]
        if decision.rule:
            headers, details = self._limit_headers.of_refusal(decision)
            return Refused(code, headers=headers, details=details, decision=decision)
        if decision.outcome == Outcome.ADDRESS_FORBIDDEN:
            return Refused(code, details={"rule": "allowed_ips"}, decision=decision)
        return Refused(code, decision=decision)

    def digest_of(self, found: Incoming) -> str:
        """Return the token's digest, after looking at its shape alone. Raises :class:`Refused`."""
        if not found.tokens:
            raise Refused("token_missing")
        token = found.token.decode("latin-1")
        digest = secrets.digest(token)
        if found.tokens > 1 or (digest not in self._well_formed and not secrets.is_well_formed(token)):
            raise Refused("token_invalid" if token else "token_missing")
        return digest

    def limit_headers(self, decision: Decision) -> tuple[tuple[bytes, bytes], ...]:
        return () if decision.remaining < 0 else self._limit_headers.of(decision)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = monotonic()
        method: str = scope["method"]
        request_id = b""
        found: Incoming | None = None
        digest = address = code = ""
        refused: Refused | None = None
        handed: Decision | None = None
        carried_to: str | None = None
        deciding = False
        decided = 0.0
        try:
            try:
                found = read_request(scope["headers"], scope["http_version"])
                request_id = found.request_id
                if not request_id or not is_request_id(request_id):
                    request_id = new_request_id()
                below = self.below_prefix(scope)
            except MalformedRequest as exc:
                logger.info("Malformed request: %s", exc)
                raise Refused("bad_request", headers=((b"connection", b"close"),)) from None
            if found.length is not None and found.length > self.body_max:
                raise Refused("body_too_large")
            if method in REFUSED_METHODS:
                raise Refused("method_not_allowed", headers=RELAY_ALLOWS)
            if (
                found.origin
                and method == "OPTIONS"
                and (preflight := self.cors.preflight(found.origin, scope["headers"]))
            ):
                await send({"type": "http.response.start", "status": 200, "headers": preflight})
                await send(END)
                code = "preflight"
                return
            if found.max_forwards and self._is_for_us(found, method):
                headers = [*RELAY_ALLOWS, (b"content-length", b"0"), (b"x-request-id", request_id)]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send(END)
                code = "options"
                return
            if below in (b"status", b"status/"):
                code = "status"
                await self._status(method, found, request_id, send)
                return
            client = scope.get("client")
            address, forwarding = self._forwarding.of(client[0] if client else "", scope["scheme"], found)
            deciding = True
            carriers = self.edge.servers(found.edge) if found.edge else None
            if carriers is None:
                digest, decision = await self.admit(found, below, method, address)
            else:
                self.edge.restore(found)
                failure, failed = self.edge.failure(found)
                mode = RECHECK if failure else ADMIT
                digest, decision = await self.admit(found, below, method, address, mode=mode)
                if failure:
                    self.upstream.suspect(failed)
                    if not may_be_sent_again(failure, method):
                        # It was counted when it was handed over, and no server has answered it.
                        self.validator.give_back_request(decision.token_id, decision.limits)
                        raise Refused(failure)
                elif may_be_carried(found, method, decision) and (
                    target := self.upstream.hand_over(decision.scope, carriers)
                ):
                    lines, count = self.edge.handover(
                        target,
                        below=below,
                        query=scope["query_string"],
                        found=found,
                        decision=decision,
                        address=address,
                        forwarding=forwarding,
                        request_id=request_id,
                        arrived=started,
                        rate=self.limit_headers(decision),
                    )
                    await send({"type": ANSWER, "lines": lines, "count": count})
                    code, handed, decided = HANDED_OVER, decision, monotonic()
                    carried_to = target.spec.name
                    return
        except Refused as refusal:
            code, refused = refusal.code, refusal
            decided = monotonic() if deciding else 0.0
            request_id = request_id or new_request_id()
            await self.refuse(send, refusal, found, request_id, method, started, decided)
            return
        except Exception:
            logger.exception("A request could not be decided on")
            refused = Refused("internal_error")
            code = refused.code
            request_id = request_id or new_request_id()
            await self.refuse(send, refused, found, request_id, method)
            return
        finally:
            if code:
                self.metrics.answered(code)
                if self.access_log is not None:
                    self.access_log.answered(
                        *("http", method, code, refused, found, request_id, address),
                        arrived=started,
                        decided=decided,
                        decision=handed,
                        target=carried_to,
                    )

        # Named, the loop need not be looked for, which costs a system call.
        task = asyncio.current_task(self._loop)
        assert task is not None
        exchange = Exchange(digest, found.device, task, receive)
        exchange.user_agent = found.user_agent
        exchange.address = address
        self.enter(exchange, decision, below, method)
        trace = tracing.lines_of(found, request_id)
        forwarding += trace
        relay = Relay(self, scope, receive, send, found, below, decision, exchange, forwarding, request_id, started)
        outcome = "error"
        try:
            outcome = await relay.run()
        finally:
            if self.access_log is not None:
                self.access_log.relayed(exchange, relay, outcome, request_id, trace[tracing.TRACE_ID])
            self.leave(exchange)
            self.metrics.relayed(outcome, exchange, relay.first_byte, started, relay.overhead)

    @staticmethod
    def _is_for_us(found: Incoming, method: str) -> bool:
        """RFC 9110 §7.6.2: whether an OPTIONS has no hop left. Otherwise it loses one, and other methods ignore it."""
        left = found.max_forwards
        if method == "OPTIONS" and left.isdigit() and len(left) < 10:
            if int(left) == 0:
                return True
            left = b"%d" % (int(left) - 1)
        found.lines.append(b"max-forwards: %b\r\n" % left)
        return False

    async def refuse(
        self,
        send: Send,
        refusal: Refused,
        found: Incoming | None,
        request_id: bytes,
        method: str,
        arrived: float = 0.0,
        decided: float = 0.0,
    ) -> None:
        """Send one of our own answers, with its times where a decision was asked for."""
        self.metrics.refused(refusal.code)
        language = found.accept_language if found is not None else b""
        status, headers, body = answers.build(refusal.code, request_id, language, refusal.headers, refusal.details)
        if found is not None:
            if found.expects_continue:
                # The client may or may not send the body it announced; only closing leaves no doubt.
                headers.append((b"connection", b"close"))
            if found.origin:
                headers.extend(self.cors.headers(found.origin))
        if decided:
            headers.append(timing.of_refusal(arrived, decided))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _status(self, method: str, found: Incoming, request_id: bytes, send: Send) -> None:
        """``GET /proxy/status``: about the token itself; claims nothing, counts nothing, starts nothing."""
        if method not in ("GET", "HEAD"):
            raise Refused("method_not_allowed", headers=_STATUS_ALLOWS)
        if self.gate.closed:
            raise Refused("gateway_closed")
        digest = self.digest_of(found)
        try:
            decision = await self.validator.decide(digest, b"", DEVICE_OK, b"", mode=LOOK)
        except ValidationAway:
            raise Refused("service_unavailable") from None
        if decision.outcome != Outcome.OK:
            raise self._refusal(decision)
        usage = await metering.live_usage(self.link, decision.token_id)
        expires = decision.expires
        body = json.dumps(
            {
                "connected": True,
                "user_id": decision.user_id.decode(),
                "token_id": decision.token_id.decode(),
                "is_activated": bool(decision.activated),
                "status": "active" if decision.activated else "ready",
                "activated_at": _iso(decision.activated),
                "expires_at": _iso(expires),
                "duration_hours": decision.duration // 3_600_000,
                "time_remaining_seconds": max(0, int((expires - time() * 1000) // 1000)) if expires else None,
                "scope": decision.scope.decode(),
                "limits": self._limit_headers.shown(decision.limits),
                "usage": usage,
            }
        ).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-request-id", request_id),
        ]
        if found.origin:
            headers.extend(self.cors.headers(found.origin))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body, "more_body": False})


def _expected_hangups(record: logging.LogRecord) -> bool:
    """Drop the server's complaints about what we do on purpose: cutting an answer, refusing a handshake."""
    return record.msg not in (
        "ASGI callable returned without completing response.",
        "ASGI callable returned without completing handshake.",
    )


def new_request_id() -> bytes:
    """Return an id for a request that brought none: unique, not secret, so without a system call."""
    return b"%032x" % getrandbits(128)


def _iso(milliseconds: int) -> str | None:
    if not milliseconds:
        return None
    return moment(milliseconds).isoformat(timespec="microseconds").replace("+00:00", "Z")
