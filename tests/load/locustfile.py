"""A day of customers, for locust: they register, pay, buy, and then mostly use what they bought.

    locust -f tests/load/locustfile.py --headless -u 50 -r 5 -t 2m --host http://127.0.0.1:8000

Everybody comes from one address here, so start the server with RATE_LIMIT_AUTH=100000/3600 for this.
"""

import secrets
from typing import Any

from locust import HttpUser, between, task
from locust.exception import StopUser

SMALL_PATHS = ("json", "system/version", "certificates/filter?query=unit-00", "certificates/details/7")


class Customer(HttpUser):
    """One person with one device."""

    wait_time = between(0.1, 1.0)

    def on_start(self) -> None:
        name = f"load{secrets.token_hex(6)}"
        account = {"email": f"{name}@example.com", "password": secrets.token_urlsafe(18)}
        self._call("POST", "/auth/register", 201, json={**account, "username": name})
        access = self._call("POST", "/auth/login", 200, json=account)["access_token"]
        self.client.headers["Authorization"] = f"Bearer {access}"
        self.gateway_headers = {"X-Device-ID": f"device-{name}"}
        self._call("POST", "/currency/mock-purchase", 201, json={"amount": "100.00"})
        self._buy()

    def _call(self, method: str, path: str, status: int, **arguments: Any) -> Any:
        """Reports any other status as a failure; without an account or a token there is nothing to go on with."""
        with self.client.request(method, f"/api/v1{path}", catch_response=True, **arguments) as answer:
            if answer.status_code == status:
                return answer.json()
            answer.failure(f"{answer.status_code} instead of {status}")
        raise StopUser

    def _buy(self) -> None:
        key = {"Idempotency-Key": secrets.token_hex(16)}
        bought = self._call("POST", "/tokens/purchase", 201, json={"duration_hours": 1}, headers=key)
        self.token_id = bought["id"]
        self.gateway_headers["X-Access-Token"] = bought["token"]

    @task(60)
    def read_small(self) -> None:
        path = secrets.choice(SMALL_PATHS)
        name = f"/api/v1/proxy/{path.partition('?')[0]}"
        self.client.get(f"/api/v1/proxy/{path}", headers=self.gateway_headers, name=name)

    @task(5)
    def read_large(self) -> None:
        self.client.get("/api/v1/proxy/bytes/1000000", headers=self.gateway_headers)

    @task(5)
    def send_large(self) -> None:
        body = b"u" * 1_000_000
        with self.client.post(
            "/api/v1/proxy/echo", data=body, headers=self.gateway_headers, catch_response=True
        ) as answer:
            if answer.content != body:
                answer.failure("the echo differs from what was sent")

    @task(8)
    def look_at_status(self) -> None:
        self.client.get("/api/v1/proxy/status", headers=self.gateway_headers)

    @task(5)
    def look_at_account(self) -> None:
        self.client.get("/api/v1/currency/balance")
        self.client.get("/api/v1/tokens/my-tokens")

    @task(1)
    def replace_token(self) -> None:
        """Gives the token back and buys another; what is refused meanwhile is refused rightly."""
        name = "/api/v1/tokens/{id}"
        with self.client.delete(f"/api/v1/tokens/{self.token_id}", name=name, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"{answer.status_code} instead of 200")
        self._call("POST", "/currency/mock-purchase", 201, json={"amount": "1.00"})
        self._buy()
