"""The Russian catalogue: complete, compiled, and true to its placeholders."""

from __future__ import annotations

import ast
import gettext
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client

ROOT = Path(__file__).resolve().parents[2]
CATALOGUE = ROOT / "zenzefi" / "locale" / "ru" / "LC_MESSAGES"
APPS = ["accounts", "analytics", "bundles", "notifications", "proxy", "referrals", "tokens", "wallet", "zenzefi"]

_MARKS = {"_", "gettext", "gettext_lazy", "gettext_noop", "ngettext", "ngettext_lazy"}
_IN_TEMPLATES = re.compile(
    r"{%\s*(?:translate|trans)\s+(?P<quote>['\"])(?P<text>.*?)(?P=quote)"
    r"|{%\s*blocktrans(?:late)?\b[^%]*trimmed[^%]*%}(?P<block>.*?){%\s*endblocktrans(?:late)?",
    re.DOTALL,
)


def marked_in(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute) and node.args:
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            first = node.args[0]
            if name in _MARKS and isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def texts() -> set[str]:
    """Return every text that the code marks for translation."""
    found: set[str] = set()
    for app in APPS:
        for file in (ROOT / app).rglob("*.py"):
            if "migrations" not in file.parts:
                found.update(marked_in(file.read_text(encoding="utf-8")))
        for file in (ROOT / app).rglob("*.html"):
            for match in _IN_TEMPLATES.finditer(file.read_text(encoding="utf-8")):
                block = match["block"]
                found.add(match["text"] if block is None else " ".join(block.split()))
    return found


@pytest.fixture(scope="module")
def compiled() -> gettext.GNUTranslations:
    with (CATALOGUE / "django.mo").open("rb") as file:
        return gettext.GNUTranslations(file)


def test_every_text_has_a_translation(compiled: gettext.GNUTranslations):
    known = {key[0] if isinstance(key, tuple) else key for key in compiled._catalog}  # type: ignore[attr-defined]

    everything = texts()

    assert len(everything) > 200
    assert sorted(everything - known) == []


def test_the_compiled_catalogue_is_that_of_the_source(compiled: gettext.GNUTranslations):
    source = (CATALOGUE / "django.po").read_text(encoding="utf-8")
    assert "fuzzy" not in source
    entries = [entry for entry in source.split("\n\n") if "msgid" in entry][1:]
    unquote = re.compile(r'"((?:[^"\\]|\\.)*)"')
    for entry in entries:
        parts = re.split(r"^(msgid|msgid_plural|msgstr(?:\[\d\])?) ", entry, flags=re.MULTILINE)[1:]
        values = {
            key: "".join(unquote.findall(value)).replace('\\"', '"')
            for key, value in zip(parts[::2], parts[1::2], strict=True)
        }
        if "msgid_plural" in values:
            for number, form in [(1, 0), (2, 1), (5, 2)]:
                text = compiled.ngettext(values["msgid"], values["msgid_plural"], number)
                assert text == values[f"msgstr[{form}]"] != ""
        else:
            assert compiled.gettext(values["msgid"]) == values["msgstr"] != ""


def test_placeholders_survive(compiled: gettext.GNUTranslations):
    placeholder = re.compile(r"%\(\w+\)[ds]")
    for key, translated in compiled._catalog.items():  # type: ignore[attr-defined]
        original = key[0] if isinstance(key, tuple) else key
        if original:
            assert sorted(placeholder.findall(original)) == sorted(placeholder.findall(translated)), original


@pytest.mark.parametrize(
    ("header", "language"),
    [("ru", "ru"), ("ru-RU,ru;q=0.9,en;q=0.8", "ru"), ("en", "en"), ("de", "en"), ("", "en")],
)
def test_pages_follow_the_reader(client: Client, header, language):
    answer = client.get("/", headers={"accept-language": header})

    assert f'<html lang="{language}">' in answer.text
    assert ("Первые шаги" in answer.text) is (language == "ru")


def test_errors_follow_the_reader(client: Client):
    assert client.get("/none", headers={"accept-language": "ru"}).json()["detail"] == "Не найдено."
    assert client.get("/none").json()["detail"] == "Not found."


def test_both_languages_are_offered():
    assert [code for code, _ in settings.LANGUAGES] == ["en", "ru"]
