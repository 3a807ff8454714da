"""Every variable: parsed, checked, named when it cannot be used, and listed in .env.example."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zenzefi.settings.env import ConfigurationError, Environment, RatePolicy

ROOT = Path(__file__).resolve().parents[2]

# Loads a settings module once for each environment given, as if it were the only one, and tells what came of it.
_CHILD = """
import importlib, json, os, sys
module, cases = json.load(sys.stdin)
known = {}
outcomes = []
for variables in cases:
    os.environ.update({name: "" for name in known})
    before = dict(os.environ)
    os.environ.update(variables)
    for name in [name for name in sys.modules if name.startswith("zenzefi.settings")]:
        del sys.modules[name]
    try:
        loaded = importlib.import_module(module)
    except Exception as error:
        outcomes.append({"error": type(error).__name__, "text": str(error)})
    else:
        known = dict(loaded.env.known)
        wanted = ("DEBUG", "DEFAULT_FROM_EMAIL", "PAYMENT_PROVIDERS", "SESSION_COOKIE_SECURE")
        shown = {name: getattr(loaded, name, None) for name in wanted}
        outcomes.append({"error": None, "known": known, "settings": shown})
    os.environ.clear()
    os.environ.update(before)
print(json.dumps(outcomes))
"""

PRODUCTION = {
    "SECRET_KEY": "k9" + "abcdefghijklmnopqrstuvwxyz0123456789" * 2,
    "DATABASE_URL": "postgresql://zenzefi:secret@db.example:5432/zenzefi",
    "REDIS_URL": "redis://redis.example:6379/0",
    "ZENZEFI_TARGET_URL": "https://zenzefi.example",
    "ALLOWED_HOSTS": "proxy.example",
    "BACKEND_URL": "https://proxy.example",
    "METRICS_TOKEN": "0123456789abcdef",
    "PAYMENT_PROVIDERS": "",
}


def load(module: str, var_dir: Path, *cases: dict[str, str]) -> list[dict[str, Any]]:
    """Load the module in a process of its own, once for each case."""
    names = re.findall(r"^#? ?([A-Z][A-Z0-9_]+)=", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE)
    # Empty counts as unset and wins over .env: neither the developer's file nor environment reaches the test.
    environment = {**os.environ, **dict.fromkeys(names, "")}
    prepared = [{"VAR_DIR": str(var_dir), **case} for case in cases]
    result = subprocess.run(
        [sys.executable, "-c", _CHILD],
        input=json.dumps([module, prepared]),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


# --- The parser


def environment(value: str) -> Environment:
    return Environment({"NAME": value})


@pytest.mark.parametrize(
    ("method", "arguments", "good", "parsed"),
    [
        ("boolean", (False,), "Yes", True),
        ("boolean", (True,), "off", False),
        ("boolean", (True,), "", True),
        ("integer", (7,), " 42 ", 42),
        ("integer", (7,), "", 7),
        ("seconds", ("5",), "0.25", 0.25),
        ("rate", ("1/1",), "5/3600", RatePolicy(5, 3600)),
        ("socket_path", (), "", None),
        ("socket_path", (), "/run/zenzefi/web.sock", Path("/run/zenzefi/web.sock")),
        ("items", ("a,b",), "", ["a", "b"]),
        ("items", ("",), " x , ,y ", ["x", "y"]),
        ("url", ("",), "https://a.example/", "https://a.example"),
        ("urls", ("",), "http://a.example,http://b.example:81", ["http://a.example", "http://b.example:81"]),
        ("string", ("x",), "", "x"),
    ],
)
def test_a_good_value(method, arguments, good, parsed):
    assert getattr(environment(good), method)("NAME", *arguments) == parsed


@pytest.mark.parametrize(
    ("method", "arguments", "keywords", "bad"),
    [
        ("boolean", (False,), {}, "maybe"),
        ("integer", (1,), {}, "one"),
        ("integer", (1,), {}, "1.5"),
        ("integer", (1,), {}, "-1"),
        ("integer", (1,), {}, "\N{ARABIC-INDIC DIGIT FOUR}"),
        ("integer", (1,), {"maximum": 10}, "11"),
        ("integer", (1,), {}, "9" * 40),
        ("seconds", ("1",), {}, "NaN"),
        ("seconds", ("1",), {}, "Infinity"),
        ("seconds", ("1",), {}, "0"),
        ("seconds", ("1",), {}, "soon"),
        ("socket_path", (), {}, "/" + "x" * 107),
        ("rate", ("1/1",), {}, "5"),
        ("rate", ("1/1",), {}, "0/60"),
        ("rate", ("1/1",), {}, "5/0"),
        ("rate", ("1/1",), {}, "-5/60"),
        ("url", ("",), {}, "ftp://a.example"),
        ("url", ("",), {}, "https://"),
        ("url", ("",), {}, "http://a.example:99999"),
        ("url", ("",), {}, "a.example"),
        ("urls", ("",), {}, "http://a.example,nonsense"),
        ("networks", (), {}, "10.0.0.0/8,everyone"),
        ("networks", (), {}, "10.0.0.0/99"),
        ("existing_file", (), {}, "no/such/file.pem"),
        ("string", ("a",), {"choices": ("a", "b")}, "c"),
    ],
)
def test_a_bad_value_is_named(method, arguments, keywords, bad):
    with pytest.raises(ConfigurationError, match=r"^NAME .*\.$") as caught:
        getattr(environment(bad), method)("NAME", *arguments, **keywords)

    assert "\n" not in str(caught.value)


def test_the_file_is_read_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / ".env"
    file.write_text("# a comment\n\nexport FIRST='one'\nSECOND=\"two # three\"\nTHIRD=\n", encoding="utf-8")
    monkeypatch.setenv("SECOND", "mine")

    loaded = Environment.load(file)

    assert loaded.string("FIRST") == "one"
    assert loaded.string("SECOND") == "mine"
    assert loaded.string("THIRD", "default") == "default"


@pytest.mark.parametrize("line", ["nonsense", "lower=case", "1ST=x", "=x"])
def test_a_line_of_the_file_that_is_no_assignment(tmp_path: Path, line):
    file = tmp_path / ".env"
    file.write_text(f"GOOD=1\n{line}\n", encoding="utf-8")

    with pytest.raises(ConfigurationError, match=r"\.env line 2 is not NAME=value\."):
        Environment.load(file)


# --- The settings


def test_without_a_variable_the_settings_load(tmp_path: Path):
    [outcome] = load("zenzefi.settings.base", tmp_path, {})

    assert outcome["error"] is None
    assert outcome["settings"]["DEBUG"] is False


BAD = [
    {"PORT": "0"},
    {"PORT": "http"},
    {"WEB_WORKERS": "0"},
    {"DEBUG": "perhaps"},
    {"LOG_LEVEL": "LOUD"},
    {"BACKEND_URL": "proxy.example"},
    {"FRONTEND_URL": "ftp://app.example"},
    {"CORS_ALLOWED_ORIGINS": "*"},
    {"TRUSTED_PROXIES": "everyone"},
    {"DATABASE_URL": "mysql://localhost/zenzefi"},
    {"DATABASE_URL": "postgresql://localhost"},
    {"DATABASE_URL": "postgresql://localhost:port/zenzefi"},
    {"DATABASE_POOL_SIZE": "1"},
    {"DATABASE_TIMEOUT": "never"},
    {"REDIS_URL": "http://localhost"},
    {"REDIS_TIMEOUT": "0"},
    {"RATE_LIMIT_AUTH": "5"},
    {"RATE_LIMIT_API": "many/60"},
    {"RATE_LIMIT_PROXY": "1000/minute"},
    {"JSON_BODY_MAX_BYTES": "1"},
    {"PAYMENT_PROVIDERS": "mock,barter"},
    {"ZENZEFI_TARGET_URL": "https://a.example,b.example"},
    {"ZENZEFI_CA_FILE": "no/such/authority.pem"},
    {"DEVICE_IDLE_SECONDS": "0"},
    {"SESSION_IDLE_SECONDS": "-1"},
    {"GATEWAY_CONNECT_TIMEOUT": "0"},
    {"GATEWAY_FIRST_BYTE_TIMEOUT": "x"},
    {"GATEWAY_IDLE_TIMEOUT": "x"},
    {"GATEWAY_TOTAL_TIMEOUT": "x"},
    {"GATEWAY_HEAD_TIMEOUT": "0"},
    {"GATEWAY_UNREAD_TIMEOUT": "0"},
    {"GATEWAY_BODY_MAX_BYTES": "10GiB"},
    {"GATEWAY_HEAD_MAX_BYTES": "1023"},
    {"GATEWAY_HEAD_MAX_FIELDS": "9"},
    {"GATEWAY_UPSTREAM_HEAD_MAX_BYTES": "256k"},
    {"GATEWAY_UPSTREAM_HEAD_MAX_FIELDS": "0"},
    {"GATEWAY_UPSTREAM_MAX_INTERIM": "-1"},
    {"GATEWAY_WEBSOCKET_MAX_BYTES": "9999999999"},
    {"GATEWAY_WEBSOCKET_PING": "0.01"},
    {"GATEWAY_MAX_UPSTREAM_CONNECTIONS": "0"},
    {"GATEWAY_CACHE_SECONDS": "0"},
    {"GATEWAY_NEGATIVE_CACHE_SECONDS": "0"},
    {"GATEWAY_FALLBACK_RATE": "0"},
    {"GATEWAY_SHUTDOWN_GRACE": "0"},
    {"EMAIL_URL": "pigeon"},
    {"EMAIL_URL": "smtp://"},
]


@pytest.fixture(scope="module")
def bad_outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return load("zenzefi.settings.base", tmp_path_factory.mktemp("var"), *BAD)


@pytest.mark.parametrize("number", range(len(BAD)), ids=["-".join(*case.items()) for case in BAD])
def test_a_bad_variable_stops_the_start(bad_outcomes, number):
    [name] = BAD[number]
    outcome = bad_outcomes[number]

    assert outcome["error"] == "ConfigurationError"
    assert outcome["text"].startswith(name)


def test_manage_py_says_so_in_one_sentence():
    result = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=ROOT,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "zenzefi.settings.base", "RATE_LIMIT_API": "lots"},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert result.returncode != 0
    assert "RATE_LIMIT_API must be requests/seconds such as 100/60, not 'lots'." in result.stderr
    assert "Traceback" not in result.stderr


def test_production_starts_with_all_it_needs(tmp_path: Path):
    [outcome] = load("zenzefi.settings.production", tmp_path, PRODUCTION)

    assert outcome["error"] is None, outcome
    assert outcome["settings"]["SESSION_COOKIE_SECURE"] is True
    assert outcome["settings"]["PAYMENT_PROVIDERS"] == []


UNSAFE = [
    {"SECRET_KEY": ""},
    {"SECRET_KEY": "short"},
    {"SECRET_KEY": "a" * 80},
    {"SECRET_KEY": "change-me-" + PRODUCTION["SECRET_KEY"]},
    {"DATABASE_URL": ""},
    {"REDIS_URL": ""},
    {"ZENZEFI_TARGET_URL": ""},
    {"ALLOWED_HOSTS": ""},
    {"ALLOWED_HOSTS": "proxy.example,*"},
    {"BACKEND_URL": ""},
    {"BACKEND_URL": "http://proxy.example"},
    {"DEBUG": "true"},
    {"PAYMENT_PROVIDERS": "mock"},
    {"METRICS_TOKEN": ""},
    {"METRICS_TOKEN": "short"},
    {"SECURE_SSL_REDIRECT": "perhaps"},
    {"SECURE_HSTS_SECONDS": "long"},
]


@pytest.fixture(scope="module")
def unsafe_outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    var_dir = tmp_path_factory.mktemp("var")
    return load("zenzefi.settings.production", var_dir, *({**PRODUCTION, **change} for change in UNSAFE))


@pytest.mark.parametrize("number", range(len(UNSAFE)), ids=["-".join(*case.items())[:40] for case in UNSAFE])
def test_production_refuses_what_is_unsafe(unsafe_outcomes, number):
    [name] = UNSAFE[number]
    outcome = unsafe_outcomes[number]

    assert outcome["error"] == "ConfigurationError"
    assert outcome["text"].startswith(name)
    assert PRODUCTION["SECRET_KEY"] not in outcome["text"]


def test_the_example_lists_every_variable_with_its_default(tmp_path: Path):
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    listed = dict(line.partition("=")[::2] for line in lines if re.match(r"[A-Z][A-Z0-9_]*=", line))
    for before, line in itertools.pairwise(lines):
        if re.match(r"[A-Z]", line) and not re.match(r"#|[A-Z]", before):
            pytest.fail(f"{line} stands without a line of why")

    here, there = load(
        "zenzefi.settings.base", tmp_path, {}, {"HOST": "0.0.0.0", "PORT": "9", "VAR_DIR": str(tmp_path / "elsewhere")}
    )
    [production] = load("zenzefi.settings.production", tmp_path, PRODUCTION)

    assert set(listed) == set(here["known"]) | set(production["known"])
    defaults = {**production["known"], **here["known"]}
    for name, value in listed.items():
        value = value.strip('"')
        computed = name == "WEB_WORKERS" or here["known"].get(name) != there["known"].get(name)
        assert value == ("" if computed else defaults[name]), name


def test_the_example_can_be_used_as_it_is(tmp_path: Path):
    values = Environment.load(ROOT / ".env.example")
    listed = {name: values.string(name) for name in ("RATE_LIMIT_API", "DEFAULT_FROM_EMAIL", "CORS_ALLOWED_ORIGINS")}

    [outcome] = load("zenzefi.settings.base", tmp_path, listed)

    assert outcome["error"] is None
    assert outcome["settings"]["DEFAULT_FROM_EMAIL"] == "Zenzefi <noreply@zenzefi.invalid>"
