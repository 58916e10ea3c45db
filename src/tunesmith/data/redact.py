"""Personal data in texts -> pseudonyms.

    Call Ann Lee at 555-201-3344   ->   Call [NAME_0c41d2e9a7] at [PHONE_5be2f01a44]

A pseudonym is a keyed hash (HMAC-SHA256) of kind and value, so that a value has the same one in every text of a project
and nobody can guess it back without the key. Whoever has the key can turn pseudonyms back through the vault, a file of
encrypted values that belongs outside the data set; without a vault nothing can be turned back. The key comes from an
environment variable and is never written. Redacting twice is redacting once. What no rule knows stays: measure on your
own texts before you rely on it (`benchmarks/redaction.py`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import polars as pl

from tunesmith.data.engine import DataEngine, LocalEngine, stateless
from tunesmith.data.names import find_names, find_names_with_model
from tunesmith.data.pii_patterns import RULES
from tunesmith.data.settings import PERSONAL_DATA_KINDS as KINDS
from tunesmith.data.settings import PersonalDataKind as Kind
from tunesmith.data.settings import RedactSection
from tunesmith.errors import ConfigError, DataError, MissingExtraError, NotFoundError
from tunesmith.files import write_text

Span = tuple[int, int, Kind]
"""Start, end (exclusive, in characters) and kind."""

_PSEUDONYM = re.compile(rf"\[(?:{'|'.join(kind.upper() for kind in KINDS)})_[0-9a-f]{{10}}\]")
_DIGIT = re.compile(r"\d")
_SHORTEST_KEY = 16
_BATCH = 2_000


@dataclass(frozen=True)
class Redacted:
    """The outcome.

    Attributes:
        frame: The rows that were passed, in their order, with redacted columns.
        counts: Kind -> number of spans that were replaced.
        rows: Number of rows with at least one.
        values: Pseudonym -> what it stands for; for a `Vault`, and for nothing else.
    """

    frame: pl.DataFrame
    counts: dict[str, int]
    rows: int
    values: Mapping[str, str] = field(repr=False)


def find_personal_data(texts: Sequence[str], kinds: Sequence[Kind] = KINDS, *, names: str = "rules") -> list[list[Span]]:
    """Find personal data.

    Args:
        texts: Any texts.
        kinds: What to look for.
        names: `rules`, or `model` to ask spaCy's NER too where a text holds capitalised words that no rule explains.

    Returns:
        For each text its spans, in order, none overlapping another. Where two do, the kind that stands first in `KINDS`
        wins, then the longer one. Pseudonyms are left alone.

    Raises:
        MissingExtraError: `names` is `model`, and spaCy or its model is not installed.
    """
    found = [_find_by_rules(text, kinds) for text in texts]
    if "name" in kinds and names == "model":
        by_model = find_names_with_model(texts, [[span[:2] for span in spans] for spans in found])
        for number, more in enumerate(by_model):
            found[number] = _resolve(texts[number], [*found[number], *((start, end, "name") for start, end in more)])
    return found


def _find_by_rules(text: str, kinds: Sequence[Kind]) -> list[Span]:
    has_digit = _DIGIT.search(text) is not None
    spans: list[Span] = []
    for rule in RULES:
        if rule.kind in kinds and (has_digit if rule.needs == "0" else rule.needs in text):
            for match in rule.pattern.finditer(text):
                start, end = match.span(1 if rule.pattern.groups == 1 and match[1] is not None else 0)
                if rule.check(text[start:end]):
                    spans.append((start, end, rule.kind))
    if "name" in kinds:
        spans += [(start, end, "name") for start, end in find_names(text)]
    return _resolve(text, spans)


def _resolve(text: str, spans: list[Span]) -> list[Span]:
    if not spans:
        return []
    taken = [match.span() for match in _PSEUDONYM.finditer(text)] if "[" in text else []
    kept: list[Span] = []
    for start, end, kind in sorted(spans, key=lambda span: (KINDS.index(span[2]), span[0] - span[1], span[0])):
        if end > start and all(end <= other or start >= other_end for other, other_end in taken):
            taken.append((start, end))
            kept.append((start, end, kind))
    return sorted(kept)


class Pseudonyms:
    """Values -> pseudonyms, the same in every text of a project.

    Args:
        key: The secret.
        project: Name of the project; another one gets other pseudonyms.
    """

    def __init__(self, key: bytes, project: str) -> None:
        self._key = _derive(key, f"pseudonyms of {project}")

    def of(self, kind: Kind, value: str) -> str:
        """Return the pseudonym of a value. Case, spaces and the punctuation of numbers make no difference."""
        plain = " ".join(value.split()).casefold()
        if kind in ("iban", "card", "national_id", "phone", "account"):
            plain = re.sub(r"[\W_]", "", plain)
        digest = hmac.new(self._key, f"{kind}:{plain}".encode(), hashlib.sha256).hexdigest()
        return f"[{kind.upper()}_{digest[:10]}]"


def redact(
    frame: pl.DataFrame, section: RedactSection, key: bytes, project: str, columns: Sequence[str] = ("text",), engine: DataEngine | None = None
) -> Redacted:
    """Replace personal data.

    Args:
        frame: Any rows with these columns of text.
        section: What to look for.
        key: The secret, as of `read_key`.
        project: Name of the project.
        columns: What to redact.
        engine: Where it is looked for; here when None. It is replaced here, so that the key goes nowhere.

    Raises:
        MissingExtraError: `section.names` is `model`, and spaCy or its model is not installed.
    """
    pseudonyms = Pseudonyms(key, project)
    counts: Counter[str] = Counter()
    values: dict[str, str] = {}
    touched: set[int] = set()
    for column in columns:
        texts = [text or "" for text in frame[column].to_list()]
        redacted: list[str] = []
        batches = [texts[at : at + _BATCH] for at in range(0, len(texts), _BATCH)]
        find = partial(find_personal_data, kinds=section.kinds, names=section.names)
        for batch, found in zip(batches, (engine or LocalEngine()).map(stateless(find), batches), strict=True):
            for text, spans in zip(batch, found, strict=True):
                if spans:
                    touched.add(len(redacted))
                redacted.append(_replace(text, spans, pseudonyms, values))
                counts.update(kind for _, _, kind in spans)
        frame = frame.with_columns(pl.Series(column, redacted, dtype=pl.String))
    return Redacted(frame, {kind: counts[kind] for kind in KINDS if counts[kind]}, len(touched), values)


def _replace(text: str, spans: Sequence[Span], pseudonyms: Pseudonyms, values: dict[str, str]) -> str:
    parts, at = [], 0
    for start, end, kind in spans:
        pseudonym = pseudonyms.of(kind, text[start:end])
        values.setdefault(pseudonym, text[start:end])
        parts += [text[at:start], pseudonym]
        at = end
    return "".join([*parts, text[at:]])


def read_key(section: RedactSection) -> bytes:
    """Return the secret from the environment.

    Raises:
        ConfigError: the variable is not set, or too short.
    """
    key = os.environ.get(section.key_env, "")
    if len(key) < _SHORTEST_KEY:
        raise ConfigError(
            f"Redaction needs a key of at least {_SHORTEST_KEY} characters in the environment variable {section.key_env} (data.redact.key_env). "
            f"Received: {f'{len(key)} characters' if key else 'nothing'}.",
            hint=f"export {section.key_env}=$(openssl rand -hex 32), and keep it where the data set is not",
        )
    return key.encode()


class Vault:
    """A file of encrypted values, by which the holder of the key turns pseudonyms back. It belongs outside the data set.

    Lines of JSON, sorted by pseudonym; a value is encrypted with AES-SIV (RFC 5297) and bound to its pseudonym, so that
    equal input gives an equal file and no line can be moved to another pseudonym.

    Args:
        path: The file; it need not exist yet.
        key: The secret, as of `read_key`.

    Raises:
        MissingExtraError: the package cryptography is not installed.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        try:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESSIV
        except ImportError:
            raise MissingExtraError("cryptography", "redact") from None
        self.path = path
        self._cipher = AESSIV(_derive(key, "vault", 64))
        self._invalid = InvalidTag

    def put(self, values: Mapping[str, str]) -> None:
        """Add values to the file; what it holds already stays as it is. Appears by write-then-rename."""
        sealed = self._read() if self.path.exists() else {}
        for pseudonym, value in values.items():
            if pseudonym not in sealed:
                sealed[pseudonym] = base64.b64encode(self._cipher.encrypt(value.encode(), [pseudonym.encode()])).decode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"pseudonym": pseudonym, "value": value}) for pseudonym, value in sorted(sealed.items())]
        write_text(self.path, "".join(f"{line}\n" for line in lines))

    def restore(self, text: str) -> str:
        """Return a text with its values in place of their pseudonyms; those that the vault does not know stay.

        Raises:
            NotFoundError: there is no such file.
            DataError: the key is not the one that the vault was written with, or the file was changed.
        """
        if not self.path.exists():
            raise NotFoundError(f"No vault at {self.path}.")
        sealed = self._read()

        def value(match: re.Match[str]) -> str:
            return self._open(match[0], sealed[match[0]]) if match[0] in sealed else match[0]

        return _PSEUDONYM.sub(value, text)

    def _read(self) -> dict[str, str]:
        try:
            rows = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
            return {row["pseudonym"]: row["value"] for row in rows}
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{self.path}: must be a vault: lines of JSON with pseudonym and value. Received: something else.") from None

    def _open(self, pseudonym: str, sealed: str) -> str:
        try:
            return self._cipher.decrypt(base64.b64decode(sealed), [pseudonym.encode()]).decode()
        except (self._invalid, ValueError):
            raise DataError(f"{self.path}: must be opened with the key it was written with. Received: another key, or a file that was changed.") from None


def _derive(key: bytes, purpose: str, length: int = 32) -> bytes:
    """Return a key of its own for each purpose (HKDF-Expand with SHA-512, RFC 5869, section 2.3; one block holds 64 bytes)."""
    return hmac.new(key, f"tunesmith: {purpose}".encode() + b"\x01", hashlib.sha512).digest()[:length]
