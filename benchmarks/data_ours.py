"""Our side of benchmarks/data.py: one work in a process of its own, called as a user calls it.

    python benchmarks/data_ours.py WORK INPUT.parquet OUTPUT.json [SETTING]

As data_peer.py: texts in, CPU seconds and findings out. Loading models, importing and what Numba compiles once are not timed.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

Found = dict[str, Any]


def near(frame: pl.DataFrame, _: str) -> Found:
    """Pairs of near duplicates at 0.7."""
    from tunesmith.data.near_duplicates import near_duplicate_pairs

    near_duplicate_pairs(["warm up", "warm up"], 0.7)
    texts = frame["text"].to_list()
    began = time.process_time()
    found = near_duplicate_pairs(texts, 0.7)
    return {"seconds": time.process_time() - began, "pairs": found.select("left", "right").rows()}


def near_dropped(frame: pl.DataFrame, _: str) -> Found:
    """Near duplicates dropped at 0.7; how many, and twice the same."""
    from tunesmith.data.dedup import drop_near_duplicates

    rows = frame.select("text").with_row_index("id").with_columns(pl.col("id").cast(pl.String))
    drop_near_duplicates(rows.head(3), 0.7)
    began = time.process_time()
    found = drop_near_duplicates(rows, 0.7)
    return {"seconds": time.process_time() - began, "dropped": len(found.dropped)}


def index(frame: pl.DataFrame, setting: str) -> Found:
    """New texts (the last N) against an index of the others."""
    from tunesmith.data.near_duplicates import NearIndex

    n_new = int(setting)
    old, new = frame["text"].head(len(frame) - n_new).to_list(), frame["text"].tail(n_new).to_list()
    held = NearIndex(0.7)
    held.add([str(position) for position in range(len(old))], old)
    held.query(new[:1])
    began = time.process_time()
    found = held.query(new)
    seconds = time.process_time() - began
    return {"seconds": seconds, "pairs": [(int(old_id), position + len(old)) for position, old_id, _ in found.iter_rows()]}


def semantic(frame: pl.DataFrame, setting: str) -> Found:
    """Semantic duplicates on static embeddings at the threshold; the embeddings are made here and timed."""
    from tunesmith.data.semantic import drop_semantic_duplicates
    from tunesmith.models.static_embed import StaticEmbedder

    _one_thread()
    embedder = StaticEmbedder()
    rows = frame.select("text").with_row_index("id").with_columns(pl.col("id").cast(pl.String))
    drop_semantic_duplicates(rows.head(3), embedder.encode(rows["text"].head(3).to_list()), float(setting))
    began = time.process_time()
    found = drop_semantic_duplicates(rows, embedder.encode(rows["text"].to_list()), float(setting))
    seconds = time.process_time() - began
    return {"seconds": seconds, "pairs": [(int(kept), int(gone)) for kept, gone in found.dropped.select("kept_id", "id").rows()]}


def embed(frame: pl.DataFrame, setting: str) -> Found:
    """Embeddings, saved to the file that the setting names."""
    from tunesmith.models.embed import Embedder

    _one_thread()
    embedder = Embedder()
    texts = frame["text"].to_list()
    embedder.encode(texts[:32])
    began = time.process_time()
    vectors = embedder.encode(texts)
    seconds = time.process_time() - began
    np.save(setting, vectors)
    return {"seconds": seconds}


def label_errors(frame: pl.DataFrame, setting: str) -> Found:
    """Label errors by the embeddings in a file."""
    from tunesmith.data.label_errors import find_label_errors

    _one_thread()
    vectors = np.load(setting)
    began = time.process_time()
    found = find_label_errors(frame["text"].to_list(), frame["label"].to_list(), vectors)
    seconds = time.process_time() - began
    proposed = found.rows.filter("is_proposed")["position"].to_list()
    return {"seconds": seconds, "proposed": proposed, "score": found.rows["score"].to_list(), "error_rate": found.error_rate}


def mismatches(frame: pl.DataFrame, _: str) -> Found:
    """Mismatched answers of columns `prompt` and `text`, beside the cosine of the two."""
    from tunesmith.data.label_errors import score_mismatches
    from tunesmith.models.embed import Embedder

    _one_thread()
    embedder = Embedder()
    prompts, responses = (embedder.encode(frame[column].to_list()) for column in ("prompt", "text"))
    found = score_mismatches(prompts, responses)
    return {"score": found["score"].to_list(), "cosine": (1 - (prompts * responses).sum(1)).tolist()}


def leaks(frame: pl.DataFrame, setting: str) -> Found:
    """Leaks of the first N texts in the others, at 1 %; beside any common 13-gram, as for GPT-3."""
    from tunesmith.data.contamination import find_leaks
    from tunesmith.data.shingles import words
    from tunesmith.models.static_embed import StaticEmbedder

    _one_thread()
    n = int(setting)
    measuring, teaching = frame["text"].head(n).to_list(), frame["text"].tail(len(frame) - n).to_list()
    embedder = StaticEmbedder()
    find_leaks(measuring[:3], teaching[:3])
    began = time.process_time()
    found = find_leaks(measuring, teaching, embeddings=embedder.encode(measuring), against_embeddings=embedder.encode(teaching))
    seconds = time.process_time() - began

    def grams(text: str) -> set[tuple[str, ...]]:
        cut = words(text)
        return {tuple(cut[at : at + 13]) for at in range(max(1, len(cut) - 12))}

    seen = set().union(*map(grams, teaching))
    return {"seconds": seconds, "pairs": found.pairs.select("left", "right").rows(), "any_13": [at for at in range(n) if grams(measuring[at]) & seen]}


def whole(frame: pl.DataFrame, _: str) -> Found:
    """Validation, exact, near and semantic duplicates, and leaks of a tenth in the rest, one after the other, on all cores."""
    from tunesmith.data.contamination import find_leaks
    from tunesmith.data.dedup import drop_exact_duplicates, drop_near_duplicates
    from tunesmith.data.semantic import drop_semantic_duplicates
    from tunesmith.data.settings import DataSection
    from tunesmith.data.validate import validate
    from tunesmith.entities import Document
    from tunesmith.models.static_embed import StaticEmbedder

    embedder = StaticEmbedder()
    schema = Document.frame_schema()
    given = frame.select("text").with_row_index("number").select(
        id=pl.format("doc_{}", "number"), source=pl.lit("a.csv"), source_line=pl.col("number") + 2, text="text", label=pl.lit("yes"), content_sha256=pl.lit("")
    )  # fmt: skip
    missing = [pl.lit(1.0 if name == "confidence" else None).alias(name) for name in schema if name not in given.columns]
    rows = given.with_columns(missing).select(list(schema)).cast(pl.Schema(schema))
    section = DataSection.model_validate({"sources": [{"path": "a.csv"}]})
    steps: dict[str, float] = {}
    clock = time.monotonic()

    def lap(name: str) -> None:
        nonlocal clock
        steps[name], clock = round(time.monotonic() - clock, 2), time.monotonic()

    n = len(rows)
    rows = validate(rows, ("yes", "no"), section).kept
    lap("validate")
    rows = drop_exact_duplicates(rows).kept
    lap("exact")
    rows = drop_near_duplicates(rows, 0.8).kept
    lap("near")
    vectors = embedder.encode(rows["text"].to_list())
    lap("embed")
    left = drop_semantic_duplicates(rows, vectors, 0.93).kept
    lap("semantic")
    stays = rows["id"].is_in(left["id"].implode()).to_numpy()
    vectors, cut = vectors[stays], len(left) // 10
    found = find_leaks(left["text"].head(cut), left["text"].tail(len(left) - cut), embeddings=vectors[:cut], against_embeddings=vectors[cut:])
    lap("contamination")
    return {"wall": sum(steps.values()), "steps": steps, "kept": len(left), "of": n, "leaks": len(found.pairs)}


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


WORKS = {found.__name__: found for found in (near, near_dropped, index, semantic, embed, label_errors, mismatches, leaks, whole)}

if __name__ == "__main__":
    work, source, target, *setting = sys.argv[1:]
    frame = pl.read_parquet(source)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = WORKS[work](frame, setting[0] if setting else "")
    found |= {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "before_mib": before / 1024}
    Path(target).write_text(json.dumps(found), encoding="utf-8")
