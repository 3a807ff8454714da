"""What ``manage.py edge_config`` writes."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from proxy import edge_config
from proxy.edge_log import tag
from proxy.headers import LEFT_OUT, Rewriter
from proxy.targets import DISABLED, DRAINING, TargetSpec
from tests.proxy.carrier import SECRET, nginx_program

CLEAN = TargetSpec(id="one", name="one", url="http://10.0.0.1:8080/base")


@pytest.fixture(autouse=True)
def secret(settings) -> None:
    settings.EDGE_SECRET = SECRET


def test_without_a_secret_it_is_refused(settings, tmp_path, db):
    settings.EDGE_SECRET = ""
    with pytest.raises(CommandError, match="EDGE_SECRET must be set"):
        call_command("edge_config", str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CommandError, match="EDGE_SECRET must be set"):
        call_command("edge_meter")


def test_only_the_owner_reads_it_and_nothing_changes_twice(settings, tmp_path, db):
    settings.ZENZEFI_TARGET_URLS = ["http://10.0.0.1:8080"]
    directory = tmp_path / "zenzefi"
    out = StringIO()
    call_command("edge_config", str(directory), stdout=out)
    assert "Reload nginx now." in out.getvalue()
    assert SECRET not in out.getvalue()
    for path in directory.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path
    out = StringIO()
    call_command("edge_config", str(directory), stdout=out)
    assert out.getvalue() == "Nothing has changed.\n"


def test_a_folder_that_cannot_be_written_is_named(settings, tmp_path, db):
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match=r"file.* cannot be written"):
        call_command("edge_config", str(tmp_path / "file" / "zenzefi"))


def test_keys_of_servers_that_are_gone_are_taken_away(tmp_path):
    secure = TargetSpec(
        id="two", name="two", url="https://zen.test", ca_certificates="CA", client_certificate="CERT", client_key="KEY"
    )
    edge_config.write(edge_config.render([secure]), tmp_path)
    assert len(list(tmp_path.glob("*.pem"))) == 3
    (tmp_path / "mine-own.pem").touch()
    edge_config.write(edge_config.render([CLEAN]), tmp_path)
    assert [path.name for path in tmp_path.glob("*.pem")] == ["mine-own.pem"]


def test_servers_switched_off_are_left_out_and_draining_ones_are_not():
    off, draining = (
        TargetSpec(id=state, name=state, url="http://10.0.0.2", state=state) for state in (DISABLED, DRAINING)
    )
    kept = TargetSpec(id="kept", name="kept", url="http://10.0.0.3", carried_at_edge=False)
    files = edge_config.render([CLEAN, off, draining, kept])
    assert files["proof.conf"] == (
        f'proxy_set_header X-Zenzefi-Edge "{SECRET} {CLEAN.carrier_key} {draining.carrier_key}";\n'
    )
    assert off.carrier_key not in "".join(files.values())
    assert kept.carrier_key not in "".join(files.values())


@pytest.mark.parametrize(
    "spec",
    [
        TargetSpec(id="x", name="x", url='http://10.0.0.1/a";proxy_pass http://evil;"'),
        TargetSpec(id="x", name="x", url="http://10.0.0.1/$document_root"),
        TargetSpec(id="x", name="x", url="http://10.0.0.1/", host='h"; deny all; #'),
        TargetSpec(id="x", name="x", url="http://user:secret@10.0.0.1/"),
    ],
)
def test_what_would_need_quoting_is_left_to_the_gateway(spec):
    files = edge_config.render([spec])
    assert files["proof.conf"] == f'proxy_set_header X-Zenzefi-Edge "{SECRET}";\n'
    assert "evil" not in "".join(files.values())
    assert "secret@" not in "".join(files.values())


def test_a_name_stays_within_its_line():
    named = TargetSpec(id="x", name="a\nlocation / { deny all; }\r #", url="http://10.0.0.1")
    text = edge_config.render([named])["locations.conf"]
    assert "deny all;" not in text
    assert [line.split()[0] for line in text.splitlines() if "deny" in line] == ["#", "#"]


def test_a_server_has_another_name_after_any_change_a_carrier_must_know_of():
    base = TargetSpec(id="x", name="x", url="https://zen.test")
    changes: list[dict[str, Any]] = [
        {"url": "https://zen.test/b"},
        {"host": "h.test"},
        {"ca_certificates": "CA"},
        {"client_certificate": "CERT"},
        {"client_key": "KEY"},
        {"id": "y"},
    ]
    names = {dataclasses.replace(base, **change).carrier_key for change in changes}
    assert len(names) == len(changes)
    assert base.carrier_key not in names
    assert TargetSpec(id="x", name="renamed", url="https://zen.test", weight=7).carrier_key == base.carrier_key


def test_headers_that_never_reach_the_server_are_left_out():
    text = edge_config.render([CLEAN])["carried.conf"]
    for name in LEFT_OUT:
        assert f'proxy_set_header {name.decode()} "";' in text
    assert f"tag={tag(SECRET)} " in text
    assert SECRET not in text


@pytest.mark.parametrize(
    "location",
    [
        "/base/x?y#z",
        "/base",
        "/base?x",
        "/elsewhere",
        "/basement",
        "//10.0.0.1:8080/base/x",
        "//elsewhere.test/x",
        "http://10.0.0.1:8080/base/a%2Fb",
        "http://10.0.0.1:8080/other",
        "HTTP://10.0.0.1:8080/base/",
        "https://10.0.0.1:8080/base/x",
        "http://10.0.0.1/base/x",
        "http://10.0.0.2/base/x",
        "http://zen.test/base/x",
        "http://zen.test:80/base/x",
        "relative/x",
        "",
    ],
)
@pytest.mark.parametrize("base", ["/base", ""])
def test_addresses_are_rewritten_as_the_gateway_does(location, base):
    """The same answers as :class:`proxy.headers.Rewriter`, from the expressions that nginx is given."""
    spec = TargetSpec(id="x", name="x", url=f"http://10.0.0.1:8080{base}", host="zen.test")
    others = [TargetSpec(id="y", name="y", url=f"http://10.0.0.2{base}")]
    ours = Rewriter([spec.url, "http://zen.test", others[0].url]).location(location.encode()).decode()
    found = location
    for pattern, becomes in edge_config._rewrites(spec, [spec, *others]):
        if match := re.search(pattern, location, re.IGNORECASE):
            found = becomes.replace("$1", match[1] or "")
            break
    assert found == ours


@pytest.mark.nginx
def test_nginx_takes_what_ships_as_it_stands(tmp_path: Path, settings):
    """Besides the account and the folders, which need rights that a test may not have."""
    shipped = Path(__file__).resolve().parents[2] / "deploy" / "nginx"
    specs = [
        CLEAN,
        TargetSpec(id="b", name="b", url="http://[::1]:9000", host="zen.test", max_connections=7),
        TargetSpec(id="c", name="c", url="https://localhost:9443/deep/base"),
    ]
    text = (shipped / "nginx.conf").read_text()
    for old, new in (
        ("user www-data;", ""),
        ("/run/nginx.pid", f"{tmp_path}/pid"),
        ("/var/log/nginx/error.log", f"{tmp_path}/error.log"),
        ("listen 80", "listen 127.0.0.1:18080"),
        ("worker_rlimit_nofile 65536;", ""),
        ("worker_connections 16384", "worker_connections 64"),
    ):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "nginx.conf").write_text(text)
    (tmp_path / "zenzefi").mkdir()
    for path in (shipped / "zenzefi").iterdir():
        (tmp_path / "zenzefi" / path.name).write_text(path.read_text())
    edge_config.write(edge_config.render(specs), tmp_path / "zenzefi")
    command = [nginx_program(), "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "syntax is ok" in done.stderr, done.stderr
    assert "[warn]" not in done.stderr and "[emerg]" not in done.stderr
