"""Payment providers' servers on loopback, as far as the platform speaks with them.

Objects have the fields and the nesting of the providers' references; the state behind them is changed by the tests.
"""

from __future__ import annotations

import base64
import ipaddress
import itertools
import json
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import stripe

SECRET_KEY = "sk_test_loopback"
WEBHOOK_SECRET = "whsec_loopback"
SHOP = ("100500", "test_shop_secret")


class ProviderServer(ABC):
    """An HTTP server that answers for one provider. ``requests`` is what it was asked, ``failing`` answers 500."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.requests: list[tuple[str, str, dict[str, str], dict[str, Any]]] = []
        self.failing = False
        self.silent = 0.0
        #: What becomes of refunds.
        self.refund_status = "succeeded"
        #: How many of the next calls are answered "not yet" (202).
        self.busy = 0
        self.numbers = itertools.count(1)
        #: Answers by idempotency key, as the providers keep them.
        self.answers: dict[str, dict[str, Any]] = {}
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                raw = self.rfile.read(length)
                parts = urlsplit(self.path)
                body = owner.parse(raw, parts.query)
                headers = {name.lower(): value for name, value in self.headers.items()}
                with owner.lock:
                    owner.requests.append((self.command, parts.path, headers, body))
                    status, answer = owner.respond(self.command, parts.path, headers, body)
                if owner.silent:
                    time.sleep(owner.silent)
                payload = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            do_GET = do_POST = _serve

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A caller that hung up, as a timeout does, is no error here."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @abstractmethod
    def parse(self, raw: bytes, query: str) -> dict[str, Any]:
        """Return a request's fields in the encoding that this provider takes."""

    def respond(
        self, method: str, path: str, headers: dict[str, str], body: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        if self.failing:
            return 500, self.error("internal error")
        if self.busy:
            self.busy -= 1
            return 202, {"type": "processing", "description": "Request accepted, but not processed yet."}
        key = headers.get("idempotency-key") or headers.get("idempotence-key")
        if key in self.answers:
            return 200, self.answers[key]
        status, answer = self.route(method, path, headers, body)
        if key and method == "POST" and status == 200:
            self.answers[key] = answer
        return status, answer

    @abstractmethod
    def error(self, message: str) -> dict[str, Any]:
        """Return the body of an error as this provider documents it."""

    @abstractmethod
    def route(
        self, method: str, path: str, headers: dict[str, str], body: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        """Return status and body of one call."""


class StripeServer(ProviderServer):
    def __init__(self) -> None:
        self.sessions: dict[str, dict[str, Any]] = {}
        self.intents: dict[str, dict[str, Any]] = {}
        self.disputes: list[dict[str, Any]] = []
        super().__init__()

    def parse(self, raw: bytes, query: str) -> dict[str, Any]:
        return {name: values[0] for name, values in parse_qs(raw.decode() or query).items()}

    def error(self, message: str) -> dict[str, Any]:
        return {"error": {"type": "invalid_request_error", "message": message}}

    def route(
        self, method: str, path: str, headers: dict[str, str], body: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        if headers.get("authorization") != f"Bearer {SECRET_KEY}":
            return 401, self.error("Invalid API Key provided")
        match method, path.strip("/").split("/")[1:]:
            case "POST", ["checkout", "sessions"]:
                return 200, self._create(body)
            case "GET", ["checkout", "sessions", session_id] if session_id in self.sessions:
                session = dict(self.sessions[session_id])
                if session["payment_intent"] and "expand[0]" in body:
                    session["payment_intent"] = self.intents[session["payment_intent"]]
                return 200, session
            case "GET", ["payment_intents", intent_id] if intent_id in self.intents:
                return 200, self.intents[intent_id]
            case "GET", ["disputes"]:
                found = [one for one in self.disputes if one["payment_intent"] == body["payment_intent"]]
                return 200, {"object": "list", "data": found, "has_more": False, "url": "/v1/disputes"}
            case "POST", ["refunds"] if body.get("payment_intent") in self.intents:
                return self._refund(body)
        return 404, self.error("No such object")

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        session_id = f"cs_test_{next(self.numbers)}"
        self.sessions[session_id] = {
            "id": session_id,
            "object": "checkout.session",
            "amount_total": int(body["line_items[0][price_data][unit_amount]"]),
            "currency": body["line_items[0][price_data][currency]"],
            "client_reference_id": body["client_reference_id"],
            "metadata": {"payment_id": body["metadata[payment_id]"]},
            "mode": body["mode"],
            "payment_intent": None,
            "payment_status": "unpaid",
            "status": "open",
            "url": f"https://checkout.stripe.com/c/pay/{session_id}",
        }
        return self.sessions[session_id]

    def _refund(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        charge = self.intents[body["payment_intent"]]["latest_charge"]
        if charge["amount_refunded"] + int(body["amount"]) > charge["amount"]:
            return 400, self.error("Refund amount is greater than unrefunded amount on charge")
        if self.refund_status == "succeeded":
            charge["amount_refunded"] += int(body["amount"])
        charge["refunded"] = charge["amount_refunded"] == charge["amount"]
        return 200, {
            "id": f"re_{next(self.numbers)}",
            "object": "refund",
            "amount": int(body["amount"]),
            "payment_intent": body["payment_intent"],
            "status": self.refund_status,
        }

    def pay(self, session_id: str) -> dict[str, Any]:
        """Pay a session as its page would, and return it."""
        session = self.sessions[session_id]
        intent_id = f"pi_{session_id}"
        self.intents[intent_id] = {
            "id": intent_id,
            "object": "payment_intent",
            "amount": session["amount_total"],
            "currency": session["currency"],
            "metadata": dict(session["metadata"]),
            "status": "succeeded",
            "latest_charge": {
                "id": f"ch_{session_id}",
                "object": "charge",
                "amount": session["amount_total"],
                "amount_refunded": 0,
                "currency": session["currency"],
                "metadata": dict(session["metadata"]),
                "payment_intent": intent_id,
                "refunded": False,
                "status": "succeeded",
            },
        }
        session.update(payment_intent=intent_id, payment_status="paid", status="complete")
        return session

    def charge(self, session_id: str, *, refunded: int = 0) -> dict[str, Any]:
        charge: dict[str, Any] = self.intents[f"pi_{session_id}"]["latest_charge"]
        charge["amount_refunded"] = refunded
        return dict(charge)

    def dispute(self, session_id: str, *, status: str, amount: int, number: int = 1) -> dict[str, Any]:
        dispute = {
            "id": f"dp_{session_id}_{number}",
            "object": "dispute",
            "amount": amount,
            "charge": f"ch_{session_id}",
            "currency": self.sessions[session_id]["currency"],
            "metadata": {},
            "payment_intent": f"pi_{session_id}",
            "reason": "fraudulent",
            "status": status,
        }
        self.disputes = [one for one in self.disputes if one["id"] != dispute["id"]] + [dispute]
        return dispute


def stripe_event(kind: str, subject: dict[str, Any], *, event_id: str) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of an event, signed by the SDK itself."""
    body = json.dumps(
        {
            "id": event_id,
            "object": "event",
            "api_version": "2025-03-31.basil",
            "created": int(time.time()),
            "data": {"object": subject},
            "livemode": False,
            "pending_webhooks": 1,
            "request": {"id": None, "idempotency_key": None},
            "type": kind,
        }
    )
    signature = stripe.WebhookSignature.generate_signature_header(body, WEBHOOK_SECRET)
    return body.encode(), {"Stripe-Signature": signature}


class YooKassaServer(ProviderServer):
    def __init__(self) -> None:
        self.payments: dict[str, dict[str, Any]] = {}
        super().__init__()

    def parse(self, raw: bytes, query: str) -> dict[str, Any]:
        return json.loads(raw) if raw else {}

    def error(self, message: str) -> dict[str, Any]:
        return {"type": "error", "id": "0", "code": "invalid_request", "description": message}

    def route(
        self, method: str, path: str, headers: dict[str, str], body: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        expected = base64.b64encode(":".join(SHOP).encode()).decode()
        if headers.get("authorization") != f"Basic {expected}":
            return 401, self.error("wrong shop")
        match method, path.strip("/").split("/")[1:]:
            case "POST", ["payments"]:
                payment_id = f"2d{next(self.numbers):06d}-000f-5000-8000-1bb8dd9c0000"
                self.payments[payment_id] = {
                    "id": payment_id,
                    "status": "pending",
                    "amount": body["amount"],
                    "confirmation": {
                        "type": "redirect",
                        "confirmation_url": f"https://yoomoney.ru/checkout/payments/v2/contract?orderId={payment_id}",
                    },
                    "created_at": "2026-01-01T12:00:00.000Z",
                    "description": body["description"],
                    "metadata": body["metadata"],
                    "paid": False,
                    "recipient": {"account_id": SHOP[0], "gateway_id": "100700"},
                    "refundable": False,
                    "test": True,
                }
                return 200, self.payments[payment_id]
            case "GET", ["payments", payment_id] if payment_id in self.payments:
                return 200, self.payments[payment_id]
            case "POST", ["refunds"] if body.get("payment_id") in self.payments:
                value = body["amount"]["value"] if self.refund_status == "succeeded" else "0.00"
                refunded = self.refund(body["payment_id"], value)
                return 200, {
                    "id": f"r{next(self.numbers)}",
                    "status": self.refund_status,
                    "amount": body["amount"],
                    "payment_id": refunded["id"],
                    "created_at": "2026-01-01T12:30:00.000Z",
                }
        return 404, self.error("not found")

    def pay(self, payment_id: str) -> dict[str, Any]:
        payment = self.payments[payment_id]
        payment.update(
            status="succeeded",
            paid=True,
            refundable=True,
            captured_at="2026-01-01T12:10:00.000Z",
            refunded_amount={"value": "0.00", "currency": payment["amount"]["currency"]},
        )
        return payment

    def cancel(self, payment_id: str) -> dict[str, Any]:
        payment = self.payments[payment_id]
        payment.update(
            status="canceled", cancellation_details={"party": "yoo_money", "reason": "expired_on_confirmation"}
        )
        return payment

    def refund(self, payment_id: str, value: str) -> dict[str, Any]:
        payment = self.payments[payment_id]
        refunded = Decimal(payment["refunded_amount"]["value"]) + Decimal(value)
        payment["refunded_amount"]["value"] = str(refunded)
        return payment


def yookassa_notification(event: str, subject: dict[str, Any]) -> bytes:
    return json.dumps({"type": "notification", "event": event, "object": subject}).encode()


@contextmanager
def serving(kind: type[ProviderServer], settings: Any) -> Iterator[Any]:
    """Put a server in the provider's place, and the platform's settings in front of it."""
    server = kind()
    settings.PAYMENT_PROVIDER_TIMEOUT = 5.0
    if kind is StripeServer:
        settings.PAYMENT_PROVIDERS = ["stripe"]
        settings.STRIPE_SECRET_KEY = SECRET_KEY
        settings.STRIPE_WEBHOOK_SECRET = WEBHOOK_SECRET
        settings.STRIPE_API_BASE = server.url
    else:
        settings.PAYMENT_PROVIDERS = ["yookassa"]
        settings.YOOKASSA_SHOP_ID, settings.YOOKASSA_SECRET_KEY = SHOP
        settings.YOOKASSA_API_URL = f"{server.url}/v3"
        settings.YOOKASSA_NETWORKS = [ipaddress.ip_network("185.71.76.0/27")]
    try:
        yield server
    finally:
        server.close()
