"""What is wrong with a whole data set? A report with counts, examples and severity; nothing is dropped here.

`validate.py` drops rows that cannot be used; these checks tell of rows that can be used and perhaps should not be. Each
counts the rows that it finds: up to `warn_above` of all rows that is for information, above it a warning, and above
`stop_above` an error, by which `Report.stop` ends the command. Whole columns at a time: 100,000 rows take seconds.
Languages are told apart by their small words, so that a text of a few words, or in a language that is not listed in
`_SMALL_WORDS`, has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from tunesmith.data.settings import CHECK_NAMES, CheckName, ChecksSection
from tunesmith.errors import DataError, MissingExtraError
from tunesmith.models.json_answers import AnswerRule, plain

Severity = Literal["error", "warning", "info"]

_WARN_ABOVE: dict[CheckName, float] = {"language": 0.02, "length_outliers": 0.02}
_STOP_ABOVE: dict[CheckName, float] = {
    "template_markers": 0.02, "encoding": 0.2, "garbage": 0.2, "conflicting_labels": 0.2, "answer_not_in_source": 0.2, "language": 0.5,
}  # fmt: skip
_EXCERPT = 120
_LANGUAGE_CHARACTERS = 600
_SMALL_WORDS = {
    "en": "the|and|of|to|that|is|was|for|with|they|have|my|this|not|are|it|on|you",
    "de": "der|die|das|und|ist|nicht|ich|wir|mit|den|von|auf|ein|eine|für|dem|sich|zu|auch|wurde",
    "fr": "le|les|et|est|des|une|pour|que|dans|pas|vous|je|nous|sur|avec|ce|qui|du|au|mon",
    "es": "el|los|las|y|es|una|por|con|para|del|no|que|se|lo|mi|su|al|como|más|pero",
    "it": "il|gli|e|è|una|per|con|non|che|di|del|della|sono|mi|ho|si|le|alla|nel|ma",
    "nl": "het|een|en|van|ik|niet|dat|met|voor|op|zijn|aan|is|die|heb|mijn|wij|naar|ook|maar",
    "pt": "o|os|as|um|uma|não|que|com|para|do|da|no|na|em|por|se|mas|eu|meu|foi",
}
_SCRIPTS = {"zh": r"\p{Han}", "ja": r"[\p{Hiragana}\p{Katakana}]", "ko": r"\p{Hangul}", "ru": r"\p{Cyrillic}", "ar": r"\p{Arabic}", "el": r"\p{Greek}"}
_MARKERS = (
    r"<\|[A-Za-z_]{2,30}\|>|<\x{ff5c}[^\x{ff5c}<>]{2,40}\x{ff5c}>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|\[(?:gMASK|AVAILABLE_TOOLS|TOOL_CALLS)\]|"
    r"(?:^|\n)### ?(?:Instruction|Response|Input|Assistant|Human|System):|</?s>(?:\s|$)|<(?:bos|eos|pad|unk)>"
)
_CONTROL = r"[\x{00}-\x{08}\x{0b}\x{0c}\x{0e}-\x{1f}\x{7f}-\x{9f}\x{fffd}]"


@dataclass(frozen=True)
class Example:
    """A row that a check found; `why` says what it found there."""

    id: str
    source: str
    source_line: int
    excerpt: str
    why: str

    @property
    def place(self) -> str:
        """File, line and id, with room behind; empty for what is no row, such as a label."""
        return f"{self.source}:{self.source_line}  {self.id}  " if self.source else ""


@dataclass(frozen=True)
class Check:
    """What one check found.

    Attributes:
        name: The check.
        severity: `error` stops the command, `warning` is told, `info` is kept for the record.
        count: Rows found, or labels for `class_balance`.
        share: Of all rows, or labels, in [0, 1].
        summary: One sentence.
        examples: The first rows found.
    """

    name: CheckName
    severity: Severity
    count: int
    share: float
    summary: str
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Report:
    """All checks of a data set, errors first."""

    n_rows: int
    checks: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.n_rows:,} rows checked"]
        for check in self.checks:
            lines.append(f"{check.severity:<8}{check.name:<21}{check.count:>9,}  {check.share:7.2%}  {check.summary}")
            lines += [f"        {one.place}{one.why}: {one.excerpt!r}" for one in check.examples if check.severity != "info"]
        return "\n".join(lines)

    def stop(self) -> None:
        """End the command where a check is an error.

        Raises:
            DataError: at least one check is; the message shows them with their examples.
        """
        errors = tuple(check for check in self.checks if check.severity == "error")
        if errors:
            names = ", ".join(check.name for check in errors)
            raise DataError(
                f"The data must pass its checks (checks.stop_above). Received:\n{Report(self.n_rows, errors)}",
                hint=f"Repair the sources, or raise stop_above for {names}.",
            )


def check_records(records: pl.DataFrame, section: ChecksSection, labels: Sequence[str] | None = None, rule: AnswerRule | None = None) -> Report:
    """Check a data set.

    Args:
        records: Columns `id`, `text`, `label`, `source`, `source_line`, as records and documents have them.
        section: Thresholds.
        labels: The label space; a label of it that no row has is rare too. Empty where answers are free: then there are no classes to balance.
            None takes those of the rows.
        rule: Says what answers of an extraction state, which must stand in their source.

    Raises:
        MissingExtraError: ftfy is not installed.
    """
    texts = records["text"]
    frame = records.select("id", "text", "label", "source", "source_line").with_row_index("row")
    found = [
        _language(frame, section),
        *([_class_balance(frame, section, labels or ())] if labels is None or labels else []),
        _encoding(frame, section),
        _made("template_markers", frame, texts.str.extract(f"({_MARKERS})").str.strip_chars(), section, "texts hold markers of a chat template"),
        _conflicting_labels(frame, section),
        _garbage(frame, section),
        _length_outliers(frame, section),
    ]
    if rule is not None:
        stated = frame.with_columns(answer=frame["label"].map_elements(rule.values, return_dtype=pl.List(pl.String)))
        found += check_answers(stated.explode("answer").drop_nulls("answer").drop("row", "label"), section).checks
    return Report(len(records), _sorted(found))


def check_answers(pairs: pl.DataFrame, section: ChecksSection) -> Report:
    """Check that each extracted answer stands in its source. Case, white space and typographic quotes make no difference.

    Args:
        pairs: Columns `id`, `text` (the source), `answer`, `source`, `source_line`. An empty answer says that there is none.
        section: Thresholds.
    """
    looked_for = [plain(answer) for answer in pairs["answer"]]
    missing = [answer not in plain(text) for text, answer in zip(pairs["text"], looked_for, strict=True)]
    why = pl.Series([f"{answer!r} is not in the text" if gone else None for answer, gone in zip(pairs["answer"], missing, strict=True)], dtype=pl.String)
    frame = pairs.with_row_index("row")
    return Report(len(pairs), (_made("answer_not_in_source", frame, why, section, "answers are not in their source"),))


def _sorted(checks: Sequence[Check]) -> tuple[Check, ...]:
    order = ("error", "warning", "info")
    return tuple(sorted(checks, key=lambda check: (order.index(check.severity), CHECK_NAMES.index(check.name))))


def _severity(name: CheckName, share: float, section: ChecksSection) -> Severity:
    if share > section.stop_above.get(name, _STOP_ABOVE.get(name, 1.0)):
        return "error"
    return "warning" if share > section.warn_above.get(name, _WARN_ABOVE.get(name, 0.0)) else "info"


def _made(name: CheckName, frame: pl.DataFrame, why: pl.Series, section: ChecksSection, summary: str) -> Check:
    """Make a check of a series that says, for each row, what is wrong with it; null where nothing is."""
    rows = frame.with_columns(why=why).filter(pl.col("why").is_not_null())
    first = rows.head(section.n_examples).iter_rows(named=True)
    examples = tuple(Example(row["id"], row["source"], row["source_line"], _excerpt(row["text"]), row["why"]) for row in first)
    share = len(rows) / max(1, len(frame))
    return Check(name, _severity(name, share, section), len(rows), share, summary, examples)


def _excerpt(text: str) -> str:
    return text if len(text) <= _EXCERPT else f"{text[: _EXCERPT - 3]}..."


def find_languages(texts: pl.Series) -> pl.Series:
    """Return the language of each text, null where its first 600 characters do not tell.

    By small words that only one or few languages have: at least three of them, and one and a half times as many as those
    of the next language. Texts in other scripts are told by their letters.
    """
    start = texts.str.slice(0, _LANGUAGE_CHARACTERS).str.to_lowercase()
    hits = pl.DataFrame({name: start.str.count_matches(rf"\b(?:{words})\b") for name, words in _SMALL_WORDS.items()})
    table = hits.to_numpy().astype(float)
    best = table.argmax(axis=1) if len(table) else np.zeros(0, dtype=int)
    top = np.sort(table, axis=1)
    sure = (top[:, -1] >= 3) & (top[:, -1] >= 1.5 * top[:, -2])
    names = np.array(list(_SMALL_WORDS))[best]
    languages = pl.Series(np.where(sure, names, ""), dtype=pl.String).replace({"": None}) if len(table) else pl.Series([], dtype=pl.String)
    foreign = start.str.contains(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Cyrillic}\p{Arabic}\p{Greek}]")
    if foreign.any():
        some = start.filter(foreign)
        counts = pl.DataFrame({name: some.str.count_matches(letters) for name, letters in _SCRIPTS.items()})
        latin = some.str.count_matches(r"\p{Latin}")
        values = counts.to_numpy()
        # Japanese is written with Han too.
        values[:, 0] = np.where(values[:, 1] > 0, 0, values[:, 0])
        chosen = np.where(values.max(axis=1) > latin.to_numpy(), np.array(list(_SCRIPTS))[values.argmax(axis=1)], "")
        positions = np.flatnonzero(foreign.to_numpy())[chosen != ""]
        languages = languages.scatter(positions, pl.Series(chosen[chosen != ""].tolist(), dtype=pl.String))
    return languages


def _language(frame: pl.DataFrame, section: ChecksSection) -> Check:
    languages = find_languages(frame["text"])
    told = languages.drop_nulls()
    counts = told.value_counts().sort("count", told.name or "", descending=[True, False]) if len(told) else None
    expected = section.language or (counts[told.name or ""][0] if counts is not None else "")
    other = languages.is_not_null() & (languages != expected)
    why = pl.select(pl.when(other).then(pl.format("looks like {}", languages))).to_series()
    return _made("language", frame, why, section, f"texts are not in {expected or 'one language'}")


def _class_balance(frame: pl.DataFrame, section: ChecksSection, labels: Sequence[str]) -> Check:
    counts = dict.fromkeys(labels, 0) | dict(frame.group_by("label").len().sort("label").iter_rows())
    least = max(section.min_class_records, section.min_class_share * len(frame))
    rare = sorted((count, label) for label, count in counts.items() if count < least)
    examples = tuple(Example("", "", 0, label, f"{count:,} records") for count, label in rare[: section.n_examples])
    share = len(rare) / max(1, len(counts))
    largest = max(counts.values(), default=0)
    summary = f"labels have fewer than {least:,.0f} records; the largest of {len(counts)} has {largest / max(1, len(frame)):.0%}"
    return Check("class_balance", _severity("class_balance", share, section), len(rare), share, summary, examples)


def _encoding(frame: pl.DataFrame, section: ChecksSection) -> Check:
    try:
        from ftfy.badness import is_bad
    except ImportError:
        raise MissingExtraError("ftfy", "data") from None
    texts = frame["text"]
    why: list[str | None] = [None] * len(frame)
    for row in np.flatnonzero(texts.str.contains(r"[^\x00-\x7f]").to_numpy()):
        if is_bad(texts[int(row)]):
            why[row] = "mojibake: UTF-8 that was read as another encoding"
    for row in np.flatnonzero(texts.str.contains(_CONTROL).to_numpy()):
        why[row] = "control or replacement characters"
    return _made("encoding", frame, pl.Series(why, dtype=pl.String), section, "texts have damaged characters")


def _conflicting_labels(frame: pl.DataFrame, section: ChecksSection) -> Check:
    letters = frame["text"].str.to_lowercase().str.replace_all(r"[^\p{L}]+", "")
    # A text without letters is equal only to itself.
    keyed = frame.with_columns(key=pl.when(letters.str.len_chars() > 0).then(letters).otherwise(pl.col("text")))
    groups = keyed.group_by("key").agg(pl.col("label").unique().sort().alias("labels")).filter(pl.col("labels").list.len() > 1)
    joined = keyed.join(groups, on="key", how="left", maintain_order="left")
    why = joined.select(pl.when(pl.col("labels").is_not_null()).then(pl.format("labelled {}", pl.col("labels").list.join(" and ")))).to_series()
    return _made("conflicting_labels", frame, why, section, "texts are equal, or nearly, to one with another label")


def _garbage(frame: pl.DataFrame, section: ChecksSection) -> Check:
    texts = frame["text"]
    length = texts.str.len_chars()
    symbols = texts.str.count_matches(r"[^\p{L}\p{M}\p{N}\s]") / length
    lines = texts.str.split("\n")
    filled = lines.list.eval(pl.element().str.strip_chars().filter(pl.element().str.strip_chars() != ""))
    n_lines = filled.list.len()
    repeated = 1 - filled.list.n_unique() / n_lines
    entropy = pl.Series([_entropy(text) if len(text) >= 40 else None for text in texts], dtype=pl.Float64)
    words = texts.str.count_matches(r"\S+")
    checks = pl.DataFrame({"symbols": symbols, "repeated": repeated, "n_lines": n_lines, "entropy": entropy, "length": length, "words": words})
    why = checks.select(
        pl.when((pl.col("symbols") > section.max_symbol_share) & (pl.col("length") >= 10))
        .then(pl.format("{} % symbols", (100 * pl.col("symbols")).round(0).cast(pl.Int64)))
        .when(pl.col("entropy") < section.min_entropy)
        .then(pl.format("{} bits a byte", pl.col("entropy").round(2)))
        .when((pl.col("n_lines") >= 4) & (pl.col("repeated") > section.max_repeated_lines))
        .then(pl.format("{} % of its lines are repeated", (100 * pl.col("repeated")).round(0).cast(pl.Int64)))
        .when((pl.col("length") > 80) & (pl.col("length") / pl.col("words") > 40))
        .then(pl.lit("no spaces between words"))
    ).to_series()
    return _made("garbage", frame, why, section, "texts are symbols, repetition or noise")


def _entropy(text: str) -> float:
    """Return the Shannon entropy of a text's bytes, in bits."""
    counts = np.bincount(np.frombuffer(text[:2000].encode(), dtype=np.uint8))
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def _length_outliers(frame: pl.DataFrame, section: ChecksSection) -> Check:
    length = frame["text"].str.len_chars().cast(pl.Float64)
    logarithm = (length + 1).log()
    median = logarithm.median() or 0.0
    # 1.4826: the median absolute deviation of a normal distribution is 0.6745 of its standard deviation.
    spread = max(1.4826 * float((logarithm - median).abs().median() or 0.0), 0.1)  # type: ignore[arg-type]
    far = ((logarithm - median).abs() / spread) > section.length_outlier_deviations
    why = pl.select(pl.when(far).then(pl.format("{} characters", length.cast(pl.Int64)))).to_series()
    usual = int(np.exp(float(median)) - 1)  # type: ignore[arg-type]
    return _made("length_outliers", frame, why, section, f"texts are far shorter or longer than the usual {usual:,} characters")
