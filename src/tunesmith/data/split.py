"""Which split does each document belong to?

A hash of the text says so, compared with the cumulative shares of the document's source: order, labels and other rows
do not matter. Two promises come before that hash:

- texts that are nearly the same never stand in different splits, or the test split would measure memory;
- a document that an earlier dataset version holds keeps its split, or scores could not be compared.

So texts are joined into clusters (near duplicates and same openings, see `dedup.py`), and a cluster goes to one split:
that of its anchor. Anchors are, in this order, records of the earlier version; documents whose source feeds one split
only; the smallest hash. A member whose source does not feed that split is dropped, with what was kept as evidence. Where
new documents join earlier records of two splits, the earlier records stay and all new members are dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import polars as pl

from tunesmith.data import dedup
from tunesmith.data.read import address
from tunesmith.data.settings import DataSection
from tunesmith.data.sifted import Sifted, as_dropped, no_rows
from tunesmith.data.sources import configured
from tunesmith.entities import SPLITS, Split

_ROWS = {"id": pl.String, "document_id": pl.String, "text": pl.String, "split": pl.String}


def split(documents: pl.DataFrame, section: DataSection, previous: pl.DataFrame | None = None) -> Sifted:
    """Give each document a split.

    Args:
        documents: Columns of `Document`. A column `split` may pin rows to a split; where it is null or absent the shares
            of the row's source decide. A column `document_id` names the document that a chunk is of; chunks of one
            document go together.
        section: Shares of the sources and the near-duplicate rules.
        previous: Records of the earlier dataset version (columns `id`, `document_id`, `text`, `split`). They stay where they are and are
            not part of the result.

    Returns:
        Kept documents with the column `split`. Reasons of the dropped: `near_duplicate_across_splits`; `bridges_splits`,
        where the other text is a record of the earlier version.
    """
    if "split" not in documents.columns:
        documents = documents.with_columns(split=pl.lit(None, dtype=pl.String))
    if "document_id" not in documents.columns:
        documents = documents.with_columns(document_id="id")
    old = no_rows(_ROWS) if previous is None else previous.select(list(_ROWS))
    rows = pl.concat([old, documents.select(list(_ROWS))])
    texts = rows["text"].to_list()
    near = dedup.near_duplicate_pairs(texts, section.near_duplicate_threshold)
    links = pl.concat([near, dedup.same_opening_pairs(texts, section.same_opening_words), _same_document_pairs(rows["document_id"])])
    cluster = dedup.clusters(len(rows), links).tolist()
    placed = _place(old["split"].to_list(), list(_wishes(documents, section)), cluster)

    assigned = documents.with_columns(split=pl.Series(placed[len(old) :], dtype=pl.String))
    kept = assigned.filter(pl.col("split").is_not_null())
    refused = _explain(rows.with_columns(split=pl.Series(placed, dtype=pl.String)), links, cluster, len(old), section)
    return Sifted(kept=kept, dropped=as_dropped(documents.join(refused, on="id", maintain_order="left")))


@dataclass(frozen=True)
class _Wish:
    """Where a document wants to go, before it meets the others."""

    split: str
    allowed: frozenset[str]
    order: tuple[bool, float, str]
    """The least of a cluster is its anchor: sources of one split first, then the hash, then the id."""


def _wishes(documents: pl.DataFrame, section: DataSection) -> Iterator[_Wish]:
    shares = {address(source): source.splits for source in section.sources}
    sources = configured(documents["source"], section)
    hashes = documents.select(_uniform(0)).to_series()
    for id_, source, pin, at in zip(documents["id"], sources, documents["split"], hashes, strict=True):
        splits: Mapping[Split, float] = {pin: 1.0} if pin else shares[source]
        yield _Wish(_choose(splits, at), frozenset(splits), (len(splits) > 1, at, id_))


def _same_document_pairs(document_ids: pl.Series) -> pl.DataFrame:
    """Pair each chunk with the first one of its document; columns as in `dedup.near_duplicate_pairs`, `similarity` null."""
    numbered = document_ids.to_frame("document_id").with_row_index("right").with_columns(left=pl.col("right").first().over("document_id"))
    return numbered.filter(pl.col("left") != pl.col("right")).select("left", "right", similarity=None).cast(pl.Schema(dedup.PAIRS_SCHEMA))


def _uniform(part: int) -> pl.Expr:
    """Return a number in [0, 1) that depends on the text alone. Parts 0 to 3 are independent of each other."""
    digits = 13  # 52 bits, what a float holds exactly
    return pl.col("content_sha256").str.slice(part * digits, digits).str.to_integer(base=16).cast(pl.Float64) / 16.0**digits


def _choose(shares: Mapping[Split, float], at: float) -> Split:
    """Return the split whose interval of the cumulative shares, in the order of `SPLITS`, holds a number in [0, 1)."""
    names = [name for name in SPLITS if name in shares]
    total, upper = sum(shares[name] for name in names), 0.0
    for name in names:
        upper += shares[name] / total
        if at < upper:
            return name
    return names[-1]


def _place(old: list[str], wishes: list[_Wish], cluster: list[int]) -> list[str | None]:
    """Return a split for each row, old ones first, or None where its cluster went to a split that it may not follow to."""
    placed: list[str | None] = [*old, *(None for _ in wishes)]
    members = defaultdict(list)
    for position, root in enumerate(cluster):
        members[root].append(position)
    for group in members.values():
        new = {position: wishes[position - len(old)] for position in group if position >= len(old)}
        if not new:
            continue
        anchor = min(new.values(), key=lambda wish: wish.order)
        targets = {old[position] for position in group if position < len(old)} or {anchor.split}
        for position, wish in new.items():
            if len(targets) == 1 and targets <= wish.allowed:
                (placed[position],) = targets
    return placed


def _explain(rows: pl.DataFrame, links: pl.DataFrame, cluster: list[int], n_old: int, section: DataSection) -> pl.DataFrame:
    """Name, for each row without a split, the most similar row that has one; else one that others link it to."""
    ids, texts, placed = rows["id"], rows["text"], rows["split"].to_list()
    nearest: dict[int, tuple[float, int]] = {}
    for left, right, similarity in links.iter_rows():
        for position, other in ((left, right), (right, left)):
            if placed[position] is None and placed[other] is not None:
                nearest[position] = max(nearest.get(position, (-1.0, -1)), (similarity or 0.0, other))
    kept_member = {root: position for position, root in reversed(list(enumerate(cluster))) if placed[position] is not None}
    found = []
    for position, name in enumerate(placed):
        if name is not None:
            continue
        _, kept = nearest.get(position, (0.0, kept_member[cluster[position]]))
        similarity = dedup.jaccard(texts[position], texts[kept])
        start = dedup.opening(texts[position], section.same_opening_words)
        if similarity >= section.near_duplicate_threshold:
            how = f"Jaccard similarity {similarity:.2f} to"
        elif start and start == dedup.opening(texts[kept], section.same_opening_words):
            how = f"same first {section.same_opening_words} words as"
        elif rows["document_id"][position] == rows["document_id"][kept]:
            how = "same document as"
        else:
            how = "linked by texts in between to"
        reason = "bridges_splits" if kept < n_old else "near_duplicate_across_splits"
        found.append((ids[position], reason, f"{how} {ids[kept]} in {placed[kept]}", ids[kept], similarity))
    schema = {"id": pl.String, "reason": pl.String, "evidence": pl.String, "kept_id": pl.String, "similarity": pl.Float64}
    return pl.DataFrame(found, schema=schema, orient="row")


def cap(rows: pl.DataFrame, stays: pl.DataFrame, section: DataSection) -> Sifted:
    """Leave out what is over `max_records`, highest hash first, as `over_max_records`.

    Args:
        rows: Columns of `Document` and `split`.
        stays: Column `split`. These count, and are never left out.
        section: The limits.
    """
    # Another part of the hash than the one that chose the split: within a split that one favours some sources.
    ranked = rows.sort(_uniform(1), "id")
    over = [ranked.clear().with_columns(evidence=pl.lit(""))]
    for name, limit in section.max_records.items():
        room = max(limit - len(stays.filter(split=name)), 0)
        over.append(ranked.filter(split=name).slice(room).with_columns(evidence=pl.lit(f"data.max_records.{name} is {limit}")))
    left_out = pl.concat(over).with_columns(reason=pl.lit("over_max_records"))
    return Sifted(kept=rows.join(left_out, on="id", how="anti", maintain_order="left"), dropped=as_dropped(left_out))
