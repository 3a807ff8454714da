from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from tokens.price_lists import PriceList, PricePlan, plan_of, read_price_list
from tokens.services import apply_price_list
from zenzefi.lib.errors import DomainError


class Command(BaseCommand):
    help = (
        "Compare a price list (YAML) with the prices there are: the difference, and what last month's sales would have "
        "been. 'plan' changes nothing; 'apply' schedules what differs."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("action", choices=["plan", "apply"])
        parser.add_argument("file", type=Path)
        parser.add_argument("--no-input", action="store_true", help="Apply without asking.")

    def handle(self, *args: Any, action: str, file: Path, no_input: bool, **options: Any) -> None:
        try:
            price_list = read_price_list(file.read_text(encoding="utf-8"))
            plan = plan_of(price_list)
            self._show(price_list, plan)
            unknown = [f"{line.duration_hours} h" for line in plan.lines if line.price is None]
            if unknown:
                raise CommandError(f"Not on the price list: {', '.join(unknown)}.")
            if action == "plan":
                return
            if not no_input and input("Type 'yes' to schedule these prices: ") != "yes":
                raise CommandError("Nothing was changed.")
            changes = apply_price_list(price_list=price_list)
        except (OSError, UnicodeDecodeError) as exc:
            raise CommandError(f"{file} cannot be read: {exc}") from None
        except DomainError as refused:
            raise CommandError(str(refused.detail)) from None
        for change in changes:
            self.stdout.write(f"Scheduled: {change}")
        if not changes:
            self.stdout.write("Every price holds already: nothing was changed.")

    def _show(self, price_list: PriceList, plan: PricePlan) -> None:
        moment = price_list.effective_at
        self.stdout.write(f"From {moment:%Y-%m-%d %H:%M %Z}:" if moment else "From now on:")
        header = ("hours", "price", "new", "difference", "sold", "paid", "would be")
        rows = [header]
        for line in plan.lines:
            price = "none" if line.price is None else str(line.price)
            change = "unchanged" if line.price == line.new_price else f"{line.difference:+}"
            rows.append(
                (
                    str(line.duration_hours),
                    price,
                    str(line.new_price),
                    change,
                    str(line.sold),
                    str(line.revenue),
                    str(line.would_be),
                )
            )
        revenue = sum(line.revenue for line in plan.lines)
        would_be = sum(line.would_be for line in plan.lines)
        rows.append(
            ("all", "", "", "", str(sum(line.sold for line in plan.lines)), f"{revenue:.2f}", f"{would_be:.2f}")
        )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            self.stdout.write("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
        self.stdout.write(
            f"Sold, paid and would be: tokens bought alone in {plan.since:%B %Y}; bundles keep their prices. "
            f"Difference of that month: {would_be - revenue:+.2f} ZNC."
        )
