"""The platform against the model of :mod:`tests.ledger.model`, step by step, on examples that Hypothesis makes up.

``make test`` runs the same seeds every time, within seconds. ``make test-long`` goes on with new ones for
``LEDGER_SECONDS``, from ``LEDGER_SEED`` or a seed of its own, which the last line and a failure name.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from django.test import Client
from django.utils import timezone
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import run_state_machine_as_test
from rest_framework.test import APIClient

from tests.ledger.model import DAILY_CAP
from tests.ledger.paying import Paying
from tests.ledger.renewing import Renewing
from tests.ledger.subscribing import Subscribing
from tests.ledger.world import Clock, decimal, prove
from tests.wallet.providers import StripeServer, serving
from zenzefi.settings.env import RatePolicy

#: Of one run, from seeds that follow each other: the long profile looks at the time between batches.
#: Each begins with other usual walks, of six.
BATCH = 6
CI_BATCHES = 6
#: What must have happened in ``make test``, where it is the same every time, or the run proves less than it says.
HAPPENED = {
    "tokens purchase",
    "tokens purchase: insufficient_balance",
    "bundles purchase",
    "bundles purchase: insufficient_balance",
    "unused token refunded",
    "used token refunded",
    "claim",
    "given token revoked",
    "revoke: token_already_revoked",
    "payment pending -> succeeded",
    "news again",
    "request repeated",
    "referral_bonus",
    "referral_reversal",
    "owes",
    "chargeback",
    "chargeback_reversal",
    "refunds cross",
    "disputes cross",
    "renewed in time",
    "renewed late",
    "renewed at another price",
    "given token renewed",
    "renewal.failed: insufficient_balance",
    "renewal.failed: daily_cap_reached",
    "renewal.failed: token_expired",
    "renewal switched on after a pause: renewed",
    "taken over",
    "token revoked with its successor",
    "successor revoked before its start",
    "successor revoked in use",
    "subscription",
    "tier renewed",
    "tier changed with a credit",
    "tier.ended: cancelled",
    "tier.ended: insufficient_balance",
    "tier.ended: set_by_staff",
}


class Machine(Renewing, Subscribing, Paying):
    """Everything that moves money."""


@pytest.fixture
def machine(
    settings: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[type[Machine]]:
    """A machine with a clock, a bank and a tally of its own, whose requests no limit stops."""
    # Every call of its SDK is a line.
    caplog.set_level(logging.WARNING, logger="stripe")
    caplog.set_level(logging.CRITICAL, logger="wallet")
    settings.RATE_LIMITS = {**settings.RATE_LIMITS, "api": RatePolicy(10**9, 1)}
    settings.RENEWAL_DAILY_CAP = decimal(DAILY_CAP)
    clock = Clock()
    monkeypatch.setattr(timezone, "now", clock.now)
    with serving(StripeServer, settings) as server:
        settings.PAYMENT_PROVIDERS = ["mock", "stripe"]
        means = {"clock": clock, "client": APIClient(), "providers": Client(), "stripe": server, "tally": Counter()}
        yield type("Machine", (Machine,), means)


def run(machine: type[Machine], *, examples: int, seed: int, steps: int) -> None:
    """Run some examples that follow from the seed."""
    options = hypothesis_settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        print_blob=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(hypothesis.seed(seed)(machine), settings=options)
    except BaseException as exc:
        exc.add_note(f"Again with: make test-long LEDGER_SEED={seed}")
        raise


@pytest.mark.slow
@pytest.mark.timeout(int(os.environ.get("LEDGER_SECONDS", "420")) + 480)
@pytest.mark.django_db
def test_the_platform_and_the_model_keep_the_same_books(machine, record_property):
    long = hypothesis_settings.get_current_profile_name() == "long"
    seconds = int(os.environ.get("LEDGER_SECONDS", "420"))
    seed = int(os.environ.get("LEDGER_SEED") or random.SystemRandom().randrange(10**9)) if long else 0
    began = time.monotonic()
    batches = 0
    while time.monotonic() - began < seconds if long else batches < CI_BATCHES:
        begun = type("Machine", (machine,), {"begins": batches})
        run(begun, examples=BATCH, seed=seed + batches, steps=60 if long else 22)
        batches += 1
    record_property(
        "summary",
        f"Ledger against its model: {machine.tally['steps']} steps in {machine.tally['examples']} examples, "
        f"{time.monotonic() - began:.0f} s, from seed {seed}.",
    )
    if not long:
        assert HAPPENED - {what for what, times in machine.tally.items() if times} == set()


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_the_same_with_every_step_committed(machine):
    """Nothing above relies on one transaction around it all; and ``manage.py reconcile`` itself finds nothing."""
    machine.commits = True
    run(machine, examples=3, seed=1, steps=30)
    prove()
