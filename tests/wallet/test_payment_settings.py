"""What the start refuses about payments, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def start_with(**variables: str) -> str:
    """Read the settings under these variables; return "started", or the sentence that says why not."""
    code = "import sys\ntry:\n    import zenzefi.settings.base\nexcept Exception as exc:\n    sys.exit(str(exc))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True
    )
    return "started" if done.returncode == 0 else done.stderr.strip()


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"PAYMENT_PROVIDERS": "paypal"}, "PAYMENT_PROVIDERS knows no provider 'paypal'"),
        ({"PAYMENT_PROVIDERS": "stripe"}, "STRIPE_SECRET_KEY"),
        ({"PAYMENT_PROVIDERS": "stripe", "STRIPE_SECRET_KEY": "sk_test_1"}, "STRIPE_WEBHOOK_SECRET"),
        ({"PAYMENT_PROVIDERS": "mock,yookassa"}, "YOOKASSA_SHOP_ID"),
        ({"YOOKASSA_NETWORKS": "somewhere"}, "YOOKASSA_NETWORKS"),
    ],
)
def test_what_is_missing_is_named(variables, named):
    assert named in start_with(**variables)


def test_a_provider_with_its_secrets_starts():
    complete = {
        "PAYMENT_PROVIDERS": "stripe,yookassa",
        "STRIPE_SECRET_KEY": "sk_test_1",
        "STRIPE_WEBHOOK_SECRET": "whsec_1",
        "YOOKASSA_SHOP_ID": "1",
        "YOOKASSA_SECRET_KEY": "s",
    }
    assert start_with(**complete) == "started"
