"""The peers of benchmarks/data.py, each as its documentation shows it. Runs in the environment of requirements-data.txt.

    python benchmarks/data_peer.py WORK INPUT.parquet OUTPUT.json [SETTING]

Reads texts (and what else a work needs) from a Parquet file, writes CPU seconds and findings. Loading is not timed. Texts go in
as texts: cutting them into words and shingles is part of the work, as it is for ours.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl

_WORD = re.compile(r"\w+")
Found = dict[str, Any]


def shingles(text: str) -> list[str]:
    """Return the word 3-shingles, as ours counts them."""
    words = _WORD.findall(text.lower())
    return [" ".join(words[at : at + 3]) for at in range(max(1, len(words) - 2))]


def rensa(frame: pl.DataFrame, _: str) -> Found:
    """RMinHash and its LSH index at 0.7, queried with every text."""
    from rensa import RMinHash, RMinHashLSH

    texts = frame["text"].to_list()
    began = time.process_time()
    index = RMinHashLSH(threshold=0.7, num_perm=128, num_bands=16)
    sketches, pairs = [], []
    for position, text in enumerate(texts):
        sketch = RMinHash(num_perm=128, seed=42)
        sketch.update(shingles(text))
        index.insert(position, sketch)
        sketches.append(sketch)
    for position, sketch in enumerate(sketches):
        pairs += [(other, position) for other in index.query(sketch) if other < position]
    return {"seconds": time.process_time() - began, "pairs": pairs}


def datasketch(frame: pl.DataFrame, _: str) -> Found:
    """MinHash and MinHashLSH at 0.7."""
    from datasketch import MinHash, MinHashLSH

    texts = frame["text"].to_list()
    began = time.process_time()
    index = MinHashLSH(threshold=0.7, num_perm=128)
    pairs = []
    for position, text in enumerate(texts):
        sketch = MinHash(num_perm=128)
        sketch.update_batch([shingle.encode() for shingle in shingles(text)])
        pairs += [(other, position) for other in index.query(sketch)]
        index.insert(position, sketch)
    return {"seconds": time.process_time() - began, "pairs": pairs}


def datatrove(frame: pl.DataFrame, _: str) -> Found:
    """MinHash signatures, buckets and clusters, in this process; 16 bands of 8 of word 3-shingles, as close to 0.7 as they get."""
    import logging

    from datatrove.data import Document
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.utils.logging import logger

    logging.disable()
    logger.remove()
    texts = frame["text"].to_list()
    documents = [Document(text=text, id=str(position)) for position, text in enumerate(texts)]
    config = MinhashConfig(n_grams=3, num_buckets=16, hashes_per_bucket=8)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        signatures, buckets, removed = (f"{folder}/{name}" for name in ("signatures", "buckets", "removed"))
        MinhashDedupSignature(output_folder=signatures, config=config).run(documents, 0, 1)
        for bucket in range(16):
            MinhashDedupBuckets(input_folder=signatures, output_folder=buckets, config=config).run(None, bucket, 16)
        MinhashDedupCluster(input_folder=buckets, output_folder=removed, config=config, save_cluster_id=True).run(None, 0, 1)
        kept = MinhashDedupFilter(input_folder=removed, load_cluster_ids=True).run(documents, 0, 1)
        stays = {document.id for document in kept}
        seconds = time.process_time() - began
    return {"seconds": seconds, "gone": [position for position in range(len(texts)) if str(position) not in stays]}


def semhash(frame: pl.DataFrame, setting: str) -> Found:
    """SemHash at a threshold on a static model: `MODEL FOLDER:THRESHOLD`."""
    from model2vec import StaticModel
    from semhash import SemHash

    folder, _, threshold = setting.rpartition(":")
    model = StaticModel.from_pretrained(folder)
    texts = frame["text"].to_list()
    began = time.process_time()
    result = SemHash.from_records(records=texts, model=model).self_deduplicate(threshold=float(threshold))
    seconds = time.process_time() - began
    first: dict[str, int] = {}
    pairs = [(first[text], position) for position, text in enumerate(texts) if first.setdefault(text, position) != position]
    for row in result.filtered:
        if not row.exact and row.duplicates:
            pairs.append((first[row.duplicates[0][0]], first[row.record]))
    return {"seconds": seconds, "pairs": pairs}


def static_model(frame: pl.DataFrame, setting: str) -> Found:
    """Put a table of word-piece vectors and a tokenizer into the folder of a model2vec model: `TABLE.npy:TOKENIZER.json:FOLDER`."""
    import numpy as np
    from model2vec import StaticModel
    from tokenizers import Tokenizer

    table, tokenizer, folder = setting.split(":")
    held = Tokenizer.from_file(tokenizer)
    held.no_padding()
    held.no_truncation()
    StaticModel(np.load(table), held, normalize=True).save_pretrained(folder)
    return {"seconds": 0.0}


def sentence_transformers(frame: pl.DataFrame, setting: str) -> Found:
    """SentenceTransformer in float32 on one thread: `MODEL FOLDER:VECTORS.npy`, where the vectors go."""
    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    folder, _, vectors = setting.rpartition(":")
    model = SentenceTransformer(folder, device="cpu")
    texts = frame["text"].to_list()
    model.encode(texts[:32])
    began = time.process_time()
    found = model.encode(texts, normalize_embeddings=True)
    seconds = time.process_time() - began
    np.save(vectors, found)
    return {"seconds": seconds}


def cleanlab(frame: pl.DataFrame, setting: str) -> Found:
    """find_label_issues on out-of-fold probabilities of a logistic regression on embeddings: the file of the embeddings."""
    import numpy as np
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    given = np.unique(frame["label"].to_numpy().astype(str), return_inverse=True)[1]
    vectors = np.load(setting)
    began = time.process_time()
    probability = cross_val_predict(LogisticRegression(max_iter=300), vectors, given, cv=5, method="predict_proba")
    proposed = find_label_issues(given, probability)
    quality = get_label_quality_scores(given, probability)
    return {"seconds": time.process_time() - began, "proposed": np.flatnonzero(proposed).tolist(), "score": (1 - quality).tolist()}


WORKS = {"rensa": rensa, "datasketch": datasketch, "datatrove": datatrove, "semhash": semhash, "static_model": static_model}
WORKS |= {"sentence_transformers": sentence_transformers, "cleanlab": cleanlab}

if __name__ == "__main__":
    work, source, target, *setting = sys.argv[1:]
    found = WORKS[work](pl.read_parquet(source), setting[0] if setting else "")
    Path(target).write_text(json.dumps(found), encoding="utf-8")
