"""Did the texts that measure a model leak into the texts that teach it?

Each measuring text is compared with all teaching texts in two ways: by words, the share of 5-grams of the shorter text that
the other holds too, which finds copies, excerpts, texts within longer ones and moved sentences; and by meaning, the cosine of
embeddings, which finds copies with many words changed; static embeddings find more of those than contextual ones. What shares
half of its 5-grams is a leak whatever else holds. Below, what is far enough from chance is one, and chance is measured: a sample
of the teaching texts is compared with the other teaching texts in the same way, copies among them left out, and the threshold
of each way is the value that at most half of the stated false positive rate of them exceeds. Families of like texts, which
share less than half, raise the thresholds and hide leaks.

`drop_contaminated` holds train rows against files of benchmark texts, and drops each that leaks one.

Sources: Brown et al. 2020, Language Models are Few-Shot Learners, appendix C (n-gram overlap); Vovk, Gammerman and Shafer
2005 (thresholds with a stated rate from a sample of the null).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tunesmith.data.read import ROW_SUFFIXES, read_documents
from tunesmith.data.settings import ContaminationSection, Source
from tunesmith.data.shingles import ShingleSets, Texts, shingle_sets
from tunesmith.data.sifted import Sifted, as_dropped
from tunesmith.errors import ConfigError, DataError, NotFoundError

LEAKS_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "left": pl.Int64,  # position of the measuring text
    "right": pl.Int64,  # position of the teaching text
    "score": pl.Float64,  # in [0, 1]: share of 5-grams, or cosine where `how` is meaning
    "how": pl.String,  # exact, words or meaning
}
BENCHMARK_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {"source": pl.String, "source_line": pl.Int64, "text": pl.String}

_GRAM = 5
_LEAST_GRAMS = 10  # a text of fewer 5-grams counts as having so many: a phrase in common is no leak
_COMMON = 32  # a 5-gram of more teaching texts than this says nothing
_SURE = 0.5  # share of 5-grams that is no chance
_SAMPLE = 2000  # teaching texts that chance is measured on


@dataclass(frozen=True)
class Leaks:
    """What leaked, and by which thresholds.

    Attributes:
        pairs: Columns of `LEAKS_SCHEMA`, one row a measuring text and a teaching text that it leaked into, by measuring
            text, the highest score first.
        words_threshold: Least share of 5-grams, in (0, 1].
        meaning_threshold: Least cosine; above 1 where no embeddings were given.
    """

    pairs: pl.DataFrame
    words_threshold: float
    meaning_threshold: float


@dataclass(frozen=True)
class Clean(Sifted):
    """The outcome of `drop_contaminated`.

    Attributes:
        benchmarks: File -> `texts` that it holds, and how many of them `leaked`.
    """

    benchmarks: dict[str, dict[str, int]]


def drop_contaminated(
    rows: pl.DataFrame, benchmarks: pl.DataFrame, false_positive_rate: float, embed: Callable[[Sequence[str]], NDArray[np.float32]] | None = None
) -> Clean:
    """Drop each row that a benchmark text leaked into, whole, in part or changed, as `contaminated`.

    Args:
        rows: Columns `id`, `text` and those of `Document` that there are: rows that teach, without copies among them.
        benchmarks: Columns of `BENCHMARK_SCHEMA`.
        false_positive_rate: As in `find_leaks`.
        embed: Texts -> unit vectors; without it words alone decide.

    Returns:
        Kept rows in the order of the input. The evidence of a dropped one names file, line and score of the benchmark text that
        it is most like; `similarity` is the score.
    """
    vectors, others = (None, None) if embed is None or rows.is_empty() else (embed(benchmarks["text"].to_list()), embed(rows["text"].to_list()))
    pairs = find_leaks(benchmarks["text"], rows["text"], embeddings=vectors, against_embeddings=others, false_positive_rate=false_positive_rate).pairs
    leaked = benchmarks.with_columns(leaked=pl.int_range(pl.len()).is_in(pairs["left"].implode()))
    counts = leaked.group_by("source", maintain_order=True).agg(texts=pl.len(), leaked=pl.col("leaked").sum())
    strongest = pairs.sort("right", "score", "left", descending=[False, True, False]).unique("right", keep="first", maintain_order=True)
    place = benchmarks.select(pl.format("{}:{}", "source", "source_line")).to_series().gather(strongest["left"])
    shown = (pl.col("score") * 1000).floor() / 1000
    said = (
        pl.when(pl.col("how") == "exact")
        .then(pl.format("same text as {}", "place"))
        .when(pl.col("how") == "words")
        .then(pl.format("the shorter of it and {} shares {} of its word 5-grams", "place", shown))
        .otherwise(pl.format("cosine {} to {}", shown, "place"))
    )
    marks = strongest.with_columns(place=place).select(id=rows["id"].gather(strongest["right"]), evidence=said, similarity="score")
    dropped = rows.join(marks, on="id", maintain_order="left").with_columns(reason=pl.lit("contaminated"))
    kept = rows.join(marks, on="id", how="anti", maintain_order="left")
    return Clean(kept, as_dropped(dropped), {source: {"texts": texts, "leaked": found} for source, texts, found in counts.iter_rows()})


def read_benchmarks(section: ContaminationSection, root: Path) -> pl.DataFrame:
    """Read the files of benchmark texts; empty texts are left out.

    Args:
        section: Their paths: row files as of `data.sources`, with a column for the text or one of the known shapes, or .txt with
            one text a line.
        root: Folder of the project.

    Returns:
        Columns of `BENCHMARK_SCHEMA`, in the order of the files and lines.

    Raises:
        NotFoundError: a file does not exist.
        DataError: a file cannot be read, or holds no text.
    """
    found = [pl.DataFrame(schema=BENCHMARK_SCHEMA)]
    for path in section.benchmarks:
        rows = _read_lines(path, root) if Path(path).suffix.lower() == ".txt" else _read_rows(path, section.text_column, root)
        rows = rows.filter(pl.col("text").str.strip_chars() != "")
        if rows.is_empty():
            raise DataError(f"{path}: must hold at least one text. Received: none.", hint=_EXPLAIN)
        found.append(rows)
    return pl.concat(found)


_EXPLAIN = "tunesmith config explain data.contamination.benchmarks"


def _read_rows(path: str, column: str, root: Path) -> pl.DataFrame:
    suffixes = [suffix for suffix in ROW_SUFFIXES if suffix != ".sql"]
    if Path(path).suffix.lower() not in suffixes:
        raise DataError(f"{path}: must end in .txt, {', '.join(suffixes)}. Received: {Path(path).suffix or 'no suffix'!r}.", hint=_EXPLAIN)
    # A benchmark needs no label.
    return read_documents(Source(path=path, text_column=column, label_column=column), root).select(list(BENCHMARK_SCHEMA))


def _read_lines(path: str, root: Path) -> pl.DataFrame:
    try:
        lines = (root / path).read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file in {root}.", hint=_EXPLAIN) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: must be a text file in UTF-8. Received: {error}.") from None
    return pl.DataFrame({"source": [Path(path).as_posix()] * len(lines), "source_line": range(1, len(lines) + 1), "text": lines}, schema=BENCHMARK_SCHEMA)


def find_leaks(
    texts: Texts,
    against: Texts,
    *,
    embeddings: NDArray[np.float32] | None = None,
    against_embeddings: NDArray[np.float32] | None = None,
    false_positive_rate: float = 0.01,
) -> Leaks:
    """Find measuring texts that are among the teaching texts, whole, in part or changed.

    Args:
        texts: The texts that measure: a test split, or a benchmark.
        against: The texts that teach.
        embeddings: shape (len(texts), D). Unit vectors; without them words alone decide.
        against_embeddings: shape (len(against), D).
        false_positive_rate: Most unrelated texts that may be named, in (0, 1), if they are like teaching texts as those are
            like each other. Few teaching texts cannot show that a low rate is met: then only sure leaks are named.

    Raises:
        ConfigError: the rate is not in (0, 1).
        DataError: texts and embeddings differ in number.
    """
    if not 0 < false_positive_rate < 1:
        raise ConfigError(f"false_positive_rate must be between 0 and 1. Received: {false_positive_rate}.")
    if embeddings is not None and against_embeddings is not None:
        for what, vectors in ((texts, embeddings), (against, against_embeddings)):
            if len(what) != len(vectors):
                raise DataError(f"Each text needs one embedding. Received: {len(what)} texts, {len(vectors)} embeddings.")
    grams, others = shingle_sets(texts, _GRAM), shingle_sets(against, _GRAM)
    sample = np.unique(np.linspace(0, len(against) - 1, min(_SAMPLE, len(against))).astype(np.int64)) if len(against) else np.zeros(0, dtype=np.int64)
    # By content, so that the order of the teaching texts does not choose the sample.
    sample = np.sort(np.argsort(_fingerprints(others), kind="stable")[sample])
    one, other, share = _common(_take(others, sample), others, _COMMON + 1)  # itself is one
    chance = np.zeros(len(sample))
    apart = sample[one] != other
    np.maximum.at(chance, one[apart], share[apart])
    unrelated = chance < _SURE
    words_threshold = min(_threshold(chance[unrelated], false_positive_rate / 2), _SURE)
    left, right, share = _common(grams, others, _COMMON)
    alike = share >= words_threshold
    found = [_equal(grams, others), _pairs(left[alike], right[alike], share[alike], "words")]
    meaning_threshold = 2.0
    if embeddings is not None and against_embeddings is not None and len(against) > 1:
        from tunesmith.models.neighbours import above, nearest

        itself, like = nearest(against_embeddings[sample], against_embeddings, 2)
        others_like = np.where(itself[:, 0] == sample, like[:, 1], like[:, 0])
        meaning_threshold = _threshold(others_like[unrelated], false_positive_rate / 2)
        if meaning_threshold <= 1:
            found += [_pairs(*part, "meaning") for part in above(embeddings, against_embeddings, meaning_threshold)]
    pairs = pl.concat(found).unique(["left", "right"], keep="first", maintain_order=True).sort("left", "score", "right", descending=[False, True, False])
    return Leaks(pairs, words_threshold, meaning_threshold)


def _pairs(left: NDArray[np.int64], right: NDArray[np.int64], score: NDArray[np.floating], how: str) -> pl.DataFrame:
    return pl.DataFrame({"left": left, "right": right, "score": np.clip(score, 0, 1).astype(np.float64), "how": [how] * len(left)}, schema=LEAKS_SCHEMA)


def _equal(texts: ShingleSets, others: ShingleSets) -> pl.DataFrame:
    """Return the pairs of equal sets."""
    sides = (pl.DataFrame({name: np.arange(len(sets)), "key": _fingerprints(sets)}) for name, sets in (("left", texts), ("right", others)))
    joined = next(sides).join(next(sides), on="key")
    return _pairs(joined["left"].to_numpy(), joined["right"].to_numpy(), np.ones(len(joined)), "exact")


def _threshold(chance: NDArray[np.floating], rate: float) -> float:
    """Return the least value that a new draw like `chance` exceeds with at most the rate; 2 where the sample is too small to say."""
    rank = int(np.ceil((len(chance) + 1) * (1 - rate)))
    return float(np.nextafter(np.sort(chance)[rank - 1], np.inf)) if rank <= len(chance) else 2.0


def _common(texts: ShingleSets, others: ShingleSets, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return the pairs of texts and others that have 5-grams in common, of those that at most so many others have, and the share of the shorter one's."""
    # Of a large set of others few 5-grams are asked for.
    asked = np.unique(texts.hashes)
    at = np.minimum(np.searchsorted(asked, others.hashes), max(len(asked) - 1, 0))
    known = np.flatnonzero(asked[at] == others.hashes) if len(asked) else np.zeros(0, dtype=np.int64)
    order = known[np.argsort(others.hashes[known], kind="stable")]
    hashes, owners = others.hashes[order], np.searchsorted(others.ends, order, side="right") - 1
    first = np.searchsorted(hashes, texts.hashes)
    holders = np.searchsorted(hashes, texts.hashes, side="right") - first
    hit = np.flatnonzero((holders > 0) & (holders <= most))
    text = np.repeat(np.repeat(np.arange(len(texts)), texts.sizes)[hit], holders[hit])
    within = np.arange(len(text)) - np.repeat(np.cumsum(holders[hit]) - holders[hit], holders[hit])
    other = owners[np.repeat(first[hit], holders[hit]) + within]
    codes, common = np.unique(text * max(len(others), 1) + other, return_counts=True)
    text, other = np.divmod(codes, max(len(others), 1))
    return text, other, common / np.maximum(np.minimum(texts.sizes[text], others.sizes[other]), _LEAST_GRAMS)


def _take(sets: ShingleSets, positions: NDArray[np.int64]) -> ShingleSets:
    ends = np.concatenate([[0], np.cumsum(sets.sizes[positions])]).astype(np.int64)
    at = np.repeat(sets.ends[positions] - ends[:-1], sets.sizes[positions]) + np.arange(ends[-1])
    return ShingleSets(sets.hashes[at], ends)


def _fingerprints(sets: ShingleSets) -> NDArray[np.uint64]:
    """Return one number a set, equal for equal sets and, but for a chance of one in 2**64, for no others."""
    mixed = (sets.hashes ^ (sets.hashes >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
    return np.add.reduceat(mixed, sets.ends[:-1]) if len(sets) else np.zeros(0, dtype=np.uint64)
