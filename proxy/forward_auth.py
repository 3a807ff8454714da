"""The decision alone, for proxies that ask before they carry: Envoy (``ext_authz``), Traefik and Caddy (forward auth).

Such a proxy sends the head of a request. The gateway's own refusal is what it gives its client; otherwise it is told
who asks, carries the request by itself, and never tells what became of it. So what an answer would start and count is
started and counted here, and tokens whose limits somebody has to keep while a request lasts are refused. The proxy
proves itself by ``EDGE_SECRET``; what it says of the request is believed, as it is what it will carry.
"""

from __future__ import annotations

import logging
import re
from time import monotonic, time

from proxy.decisions import LET_GO, Decision
from proxy.exceptions import MalformedRequest, Refused
from proxy.gateway import REFUSED_METHODS, RELAY_ALLOWS, Gateway, new_request_id
from proxy.headers import Incoming, is_request_id, read_request
from zenzefi.lib.asgi import Scope, Send
from zenzefi.lib.streaming import BODY_FOLLOWS

logger = logging.getLogger(__name__)

#: Before the path of the request that is judged (``path_prefix`` of Envoy's ``http_service``).
ENVOY = b"/edge/envoy"
#: Where the request that is judged stands in ``X-Forwarded-Method`` and ``X-Forwarded-Uri``.
FORWARD_AUTH = b"/edge/forward-auth"
#: The outcome of a request that a proxy was allowed to carry.
LET_THROUGH = "let_through"

# The origin form (RFC 9112 §3.2.1), without fragment; how it is encoded is not looked at.
_TARGET = re.compile(rb"/[\x21\x22\x24-\x7e]*")
# In capitals: "delete" is a method that no rule of a scope means, and DELETE to a server that is not strict.
_METHOD = re.compile(rb"[A-Z]+(?:-[A-Z]+)*")
_EMPTY_END = {"type": "http.response.body", "body": b"", "more_body": False}


async def answer(gateway: Gateway, scope: Scope, send: Send) -> None:
    """Answer what a proxy asks about one request."""
    if not gateway._started:
        await gateway.ensure_started()
    started = monotonic()
    judged = scope
    request_id = b""
    found: Incoming | None = None
    refused: Refused | None = None
    decision: Decision | None = None
    address = ""
    try:
        try:
            found = read_request(scope["headers"], scope["http_version"])
            request_id = found.request_id
            if not request_id or not is_request_id(request_id):
                request_id = new_request_id()
            if not found.edge or gateway.edge.servers(found.edge) is None:
                raise Refused("not_found")
            judged = _judged(scope)
            below = gateway.below_prefix(judged)
            if below in (b"status", b"status/"):
                raise MalformedRequest("the status is no path of a server")
        except MalformedRequest as exc:
            logger.info("Malformed request to be judged: %s", exc)
            raise Refused("bad_request") from None
        method: str = judged["method"]
        if method in REFUSED_METHODS:
            raise Refused("method_not_allowed", headers=RELAY_ALLOWS)
        client = scope.get("client")
        address, _ = gateway._forwarding.of(client[0] if client else "", scope["scheme"], found)
        digest, decision = await gateway.admit(found, below, method, address, mode=LET_GO)
        if not decision.activated:
            await _activate(gateway, digest, decision)
        gateway.meter.count(
            decision.token_id,
            found.device,
            decision.user_id,
            address,
            found.user_agent,
            1,
            0,
            0,
            int(time() * 1000),
        )
        headers = [
            (b"content-length", b"0"),
            (b"cache-control", b"no-store"),
            (b"x-request-id", request_id),
            (b"x-user-id", decision.user_id),
            (b"x-token-id", decision.token_id),
            *gateway.limit_headers(decision),
        ]
        code = LET_THROUGH
        await send({"type": "http.response.start", "status": 200, "headers": headers, BODY_FOLLOWS: True})
        await send(_EMPTY_END)
    except Refused as refusal:
        code, refused = refusal.code, refusal
        request_id = request_id or new_request_id()
        await gateway.refuse(send, refusal, found, request_id, scope["method"], started, monotonic())
    except Exception:
        logger.exception("A request could not be decided on")
        refused = Refused("internal_error")
        code = refused.code
        request_id = request_id or new_request_id()
        await gateway.refuse(send, refused, found, request_id, scope["method"])
    gateway.metrics.answered(code)
    if gateway.access_log is not None:
        gateway.access_log.answered(
            *("http", judged["method"], code, refused, found, request_id, address),
            arrived=started,
            decided=monotonic(),
            decision=decision,
        )


def _judged(scope: Scope) -> Scope:
    """Return the scope of the request that is asked about.

    Raises :class:`MalformedRequest`, and :class:`Refused` where nobody is to ask.
    """
    raw: bytes = scope.get("raw_path") or b""
    if raw.startswith(ENVOY + b"/"):
        return {**scope, "raw_path": raw[len(ENVOY) :]}
    if raw != FORWARD_AUTH:
        raise Refused("not_found")
    methods, targets = [], []
    for name, value in scope["headers"]:
        if name == b"x-forwarded-method":
            methods.append(value)
        elif name == b"x-forwarded-uri":
            targets.append(value)
    if len(methods) != 1 or not _METHOD.fullmatch(methods[0]):
        raise MalformedRequest("X-Forwarded-Method is not one method")
    if len(targets) != 1 or not _TARGET.fullmatch(targets[0]):
        raise MalformedRequest("X-Forwarded-Uri is not one path")
    path, _, query = targets[0].partition(b"?")
    return {**scope, "method": methods[0].decode("ascii"), "raw_path": path, "query_string": query}


async def _activate(gateway: Gateway, digest: str, decision: Decision) -> None:
    """Start the token's clock, as no answer of a server will. Raises :class:`Refused` where nothing may be started."""
    try:
        gateway.upstream.require(decision.scope)
        if not await gateway.activate(digest, decision):
            raise Refused("token_revoked")
    except Refused:
        gateway.validator.give_back_request(decision.token_id, decision.limits)
        raise
