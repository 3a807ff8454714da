"""Workers killed and neighbours gone while people buy: bounded errors, nothing acknowledged is lost."""

from __future__ import annotations

import contextlib
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.stack import Customer, Stack, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Buyer(threading.Thread):
    """Buys one-hour tokens without pause, repeating each purchase under its key until it is answered.

    Keeps what was acknowledged and every status that came; anything above 503 or a hang is an error.
    """

    def __init__(self, stack: Stack) -> None:
        super().__init__(daemon=True)
        self.customer: Customer = stack.customer(balance="5000.00")
        self.stack = stack
        self.acknowledged: dict[str, str] = {}
        self.statuses: dict[int | str, int] = {}
        self.longest_answer = 0.0
        self.ended = threading.Event()

    def run(self) -> None:
        authorization = self.customer.http.headers["Authorization"]
        with self.stack.client(headers={"Authorization": authorization}) as http:
            while not self.ended.is_set():
                key = secrets.token_hex(12)
                while not self._attempt(http, key) and not self.ended.is_set():
                    time.sleep(0.05)

    def _attempt(self, http: httpx.Client, key: str) -> bool:
        begin = time.monotonic()
        try:
            response = http.post(
                "/api/v1/tokens/purchase", json={"duration_hours": 1}, headers={"Idempotency-Key": key}
            )
        except httpx.TransportError as error:
            self._count(type(error).__name__)
            return False
        finally:
            self.longest_answer = max(self.longest_answer, time.monotonic() - begin)
        self._count(response.status_code)
        if response.status_code == 201:
            self.acknowledged[key] = response.json()["id"]
            return True
        return False

    def _count(self, outcome: int | str) -> None:
        self.statuses[outcome] = self.statuses.get(outcome, 0) + 1

    def assert_nothing_lost_or_doubled(self) -> None:
        """Every acknowledged purchase is there once, and the balance is what they cost together."""
        first_page = self.customer.get("/tokens/my-tokens?active_only=false&limit=1")
        bought = first_page["total"]
        # The last attempt may have been committed while its answer was cut off.
        assert len(self.acknowledged) <= bought <= len(self.acknowledged) + 1
        assert len(set(self.acknowledged.values())) == len(self.acknowledged)
        assert self.customer.balance() == f"{5000 - bought}.00"


@contextlib.contextmanager
def _buying(stack: Stack, count: int) -> Iterator[list[Buyer]]:
    """Have so many people buy, each once at least, until the block ends."""
    buyers = [Buyer(stack) for _ in range(count)]
    try:
        for buyer in buyers:
            buyer.start()
        wait_until(lambda: all(buyer.acknowledged for buyer in buyers), seconds=120, what="every buyer bought once")
        yield buyers
    finally:
        for buyer in buyers:
            buyer.ended.set()
        for buyer in buyers:
            if buyer.ident is not None:
                buyer.join(60)
    assert not any(buyer.is_alive() for buyer in buyers)


def _wait_until_all_buy_again(buyers: list[Buyer]) -> None:
    before = {buyer: len(buyer.acknowledged) for buyer in buyers}
    wait_until(
        lambda: all(len(buyer.acknowledged) > before[buyer] for buyer in buyers),
        seconds=60,
        what="everyone buys again",
    )


def _assert_all_is_well(stack: Stack, buyers: list[Buyer]) -> None:
    for buyer in buyers:
        buyer.assert_nothing_lost_or_doubled()
        assert {status for status in buyer.statuses if isinstance(status, int)} <= {201, 409, 503}
    stack.manage("reconcile")


def _kill_one_of(workers: list[psutil.Process]) -> bool:
    """Return whether there was one to kill: where one was killed a moment ago, the next may not have come yet."""
    if not workers:
        return False
    try:
        secrets.choice(workers).kill()
    except psutil.NoSuchProcess:
        return False
    return True


def test_web_workers_killed_in_the_middle_of_purchases(battered_stack: Stack):
    away = []
    with _buying(battered_stack, 6) as buyers:
        for _ in range(20):
            wait_until(lambda: _kill_one_of(battered_stack.web_workers()), seconds=60, what="a web worker runs")
            away.append(wait_until(battered_stack.healthy, seconds=60, what="the service is back"))
            time.sleep(0.2)
    # Shown by `pytest -rP`; a figure to look at, not to fail on.
    sys.stdout.write(f"Served again after {sorted(away)[10]:.2f} s (median), {max(away):.2f} s at most\n")
    _assert_all_is_well(battered_stack, buyers)


def _processes(var_dir: Path, name: str) -> list[psutil.Process]:
    """Return the embedded server of a data directory by the name of its program, and its children."""
    found = []
    for process in psutil.process_iter(["name", "cmdline", "cwd"]):
        if process.info["name"] != name:
            continue
        text = " ".join(process.info["cmdline"] or []) + str(process.info["cwd"] or "")
        if str(var_dir) in text:
            found.append(process)
    assert found, f"No {name} of {var_dir} runs"
    # PostgreSQL's children come and go.
    for process in list(found):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [child for child in process.children(recursive=True) if child not in found]
    return found


@pytest.mark.parametrize("name", ["postgres", "redis-server"])
def test_a_neighbour_is_frozen_and_thawed(battered_stack: Stack, name: str):
    token = battered_stack.customer().buy()["token"]
    visitor = battered_stack.customer(balance="0.00")
    assert visitor.proxied(token, "json").status_code == 200
    with _buying(battered_stack, 3) as buyers:
        family = _processes(battered_stack.var_dir, name)
        begin = time.monotonic()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)
        try:
            deadline = time.monotonic() + 8
            proxied = []
            while time.monotonic() < deadline:
                proxied.append(visitor.proxied(token, "json").status_code)
                time.sleep(0.1)
        finally:
            for process in reversed(family):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)
        frozen_for = time.monotonic() - begin

        # The gateway goes on: from Redis while PostgreSQL is away, from PostgreSQL while Redis is.
        assert set(proxied) == {200}
        _wait_until_all_buy_again(buyers)
    _assert_all_is_well(battered_stack, buyers)
    # Nobody waits on once it is back.
    assert max(buyer.longest_answer for buyer in buyers) < frozen_for + 10


@pytest.mark.parametrize("name", ["postgres", "redis-server"])
def test_a_neighbour_is_killed_and_started_again(battered_stack: Stack, name: str):
    with _buying(battered_stack, 3) as buyers:
        for process in _processes(battered_stack.var_dir, name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        wait_until(battered_stack.healthy, seconds=60, what="the service is ready again")
        _wait_until_all_buy_again(buyers)
    _assert_all_is_well(battered_stack, buyers)
