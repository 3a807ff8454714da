from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand

from wallet.reconciliation import reconcile

_SHOWN = 20


class Command(BaseCommand):
    help = "Prove that the ledger is right; exits with 1 and names the rows when it is not."

    def handle(self, *args: Any, **options: Any) -> None:
        outcomes = reconcile()
        width = max(len(outcome.name) for outcome in outcomes)
        for outcome in outcomes:
            verdict = f"DRIFT in {len(outcome.drifts)}" if outcome.drifts else "ok"
            self.stdout.write(f"{outcome.name:<{width}}  {verdict}")
            for drift in outcome.drifts[:_SHOWN]:
                self.stdout.write(f"    {drift.row}: {drift.problem}")
            if len(outcome.drifts) > _SHOWN:
                self.stdout.write(f"    and {len(outcome.drifts) - _SHOWN} more")
        if any(outcome.drifts for outcome in outcomes):
            self.stderr.write("The ledger does not reconcile.")
            sys.exit(1)
        self.stdout.write("The ledger reconciles: drift 0.00.")
