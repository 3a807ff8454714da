"""``manage.py edge_config DIRECTORY``: what an nginx in front must be told of the servers and of us."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from proxy import edge_config, selectors
from zenzefi.settings.env import ConfigurationError


class Command(BaseCommand):
    help = (
        "Write the part of the nginx configuration of edge mode that depends on servers and settings into a folder, "
        "'zenzefi' beside nginx.conf. To be repeated, and nginx reloaded, when servers were changed; until then the "
        "gateway itself carries what goes to those. The files hold secrets: only their owner can read them."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("directory", type=Path)

    def handle(self, *args: Any, directory: Path, **options: Any) -> None:
        try:
            files = edge_config.render(selectors.upstream_targets())
        except ConfigurationError as exc:
            raise CommandError(str(exc)) from None
        try:
            changed = edge_config.write(files, directory)
        except OSError as exc:
            raise CommandError(f"{directory} cannot be written: {exc.strerror}.") from None
        for name in changed:
            self.stdout.write(f"{directory / name}")
        self.stdout.write("Reload nginx now." if changed else "Nothing has changed.")
