"""Translations of what the nodes say: whole, and of what they say now."""

from __future__ import annotations

import json
import re

import pytest
from comfy_server import PACK
from texts import FILE, declared, flat

LANGUAGES = ("ja", "zh")
TRANSLATED_FROM = json.loads(FILE.read_text(encoding="ascii"))
WORD = re.compile(r"esd-x-strict|esd-[a-z]+|selfattn|adafactor|adamw8bit|output/[a-z_]+|\{\}")
"""What is the same in every language."""


def translation(language):
    path = PACK / "locales" / language / "nodeDefs.json"
    return flat(json.loads(path.read_text(encoding="utf-8")))


def test_the_texts_are_those_that_the_translations_were_made_from(server):
    """Fails with what has changed since: translate it, then run tests/host/texts.py."""
    now = declared(server)
    changed = sorted(
        key for key in {*now, *TRANSLATED_FROM} if now.get(key) != TRANSLATED_FROM.get(key)
    )
    assert not changed


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_has_every_text_and_no_other(language):
    translated = translation(language)
    assert set(translated) == set(TRANSLATED_FROM)
    assert all(text.strip() for text in translated.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_keeps_what_a_person_types(language):
    for key, text in translation(language).items():
        plain = text.replace("{'{'}", "{").replace("{'}'}", "}")
        assert set(WORD.findall(TRANSLATED_FROM[key])) == set(WORD.findall(plain)), key


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_can_read_a_translation(server, language):
    """Braces, at signs and bars mean something to it, unless they are quoted."""
    for key, text in translation(language).items():
        assert not re.search(r"[{}@|]", re.sub(r"\{'[{}@|]'\}", "", text)), key
    served = server.get("/i18n")[language]["nodeDefs"]["ESDTrain"]
    assert served["description"] == translation(language)["ESDTrain.description"]
