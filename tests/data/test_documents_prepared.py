"""A folder of documents through `flow.prepare`: labels, records, blocks, chunks, splits by document, redaction."""

import json

import polars as pl
import pytest
from known_documents import as_docx, as_html, as_mail, as_pdf, as_text, prose

from tunesmith import Project, flow
from tunesmith.data.freeze import read_blocks, read_dropped
from tunesmith.data.redact import Vault
from tunesmith.errors import ConfigError, NotFoundError

LABELS = ("card", "loan", "mortgage")
SPLITS = "{train: 0.4, validation: 0.2, calibration: 0.2, test: 0.2}"
MAKERS = {"pdf": as_pdf, "docx": as_docx, "html": as_html, "txt": as_text}


def structure(seed, n_sections=1):
    sections = [[("heading", (2, f"Part {part}")), ("paragraph", prose(100 * seed + part, 6))] for part in range(n_sections)]
    return [("heading", (1, f"Letter {seed}")), *(block for section in sections for block in section)]


@pytest.fixture
def letters(fresh):
    """36 letters in four formats, in a folder for each label; one encrypted and one without a label's folder."""
    seed = 0
    for label in LABELS:
        (fresh / "letters" / label).mkdir(parents=True)
        for name, make in MAKERS.items():
            for _ in range(3):
                seed += 1
                (fresh / "letters" / label / f"{seed}.{name}").write_bytes(make(structure(seed)))
    (fresh / "letters" / "card" / "locked.pdf").write_bytes(as_pdf(encrypted=True))
    (fresh / "letters" / "note.eml").write_bytes(as_mail())
    return fresh


def load(folder, *overrides, source=""):
    fixed = [f"data.sources=[{{path: letters, splits: {SPLITS}{source}}}]", "data.dvc=false", "data.ocr.engine=none", "train.report_to=[]"]
    return Project.load(folder, [*fixed, *overrides])


def test_each_document_becomes_a_record_that_knows_its_file_and_blocks(letters):
    project = load(letters)
    version = flow.prepare(project)
    records, blocks, dropped = flow.read(project, version), read_blocks(letters, version), read_dropped(letters, version)
    assert len(records) == 36
    assert all(source == f"letters/{label}/{source.rpartition('/')[2]}" for source, label in records.select("source", "label").iter_rows())
    assert dropped.sort("source").select("source", "reason").rows() == [("letters/card/locked.pdf", "encrypted"), ("letters/note.eml", "unknown_label")]
    texts = dict(blocks.select("id", "text").iter_rows())
    for text, block_ids in records.select("text", "block_ids").iter_rows():
        assert "\n\n".join(texts[block_id] for block_id in block_ids.split()) == text
    assert set(records["weight"]) == {1.0}
    report = json.loads((letters / version.path / "report.json").read_text())
    assert report["read"] == {"records": 36, "dropped": 2, "documents": 37, "pages": 37, "scanned_pages": 0}
    assert {split: sum(counts.values()) for split, counts in report["rows"].items()} == version.rows
    assert report["dropped"]["encrypted"]["examples"][0]["source"] == "letters/card/locked.pdf"
    assert (letters / version.path / "report.html").read_text().count("data:image/png;base64,") == 4
    assert flow.prepare(project) == version
    (letters / "letters" / "loan" / "new.txt").write_bytes(as_text(structure(99)))
    assert flow.prepare(project).rows != version.rows


def test_labels_may_stand_in_a_table(letters):
    files = sorted(path.relative_to(letters).as_posix() for path in (letters / "letters").rglob("*") if path.is_file())
    table = pl.DataFrame({"path": files[:-1], "label": [LABELS[number % 3] for number in range(len(files) - 1)]})
    table.write_csv(letters / "labels.csv")
    project = load(letters, source=", label_from: labels.csv")
    version = flow.prepare(project)
    wanted = dict(table.iter_rows())
    assert all(label == wanted[source] for source, label in flow.read(project, version).select("source", "label").iter_rows())
    assert version.dropped == {"encrypted": 1, "missing_label": 1}
    with pytest.raises(NotFoundError, match=r"label\.csv: no such file"):
        flow.prepare(load(letters, source=", label_from: label.csv"))


def test_chunks_tile_their_document_and_stay_in_one_split(letters, monkeypatch):
    for number in range(200, 206):
        (letters / "letters" / "loan" / f"long{number}.txt").write_bytes(as_text(structure(number, n_sections=5)))
    whole = flow.read(load(letters), flow.prepare(load(letters), fresh=True))
    monkeypatch.setattr("tunesmith.flow.dataset._embedder", lambda project: None)  # structure alone: the model is not part of this test
    project = load(letters, "data.chunk={max_tokens: 120, min_tokens: 16}", "data.dedup.near=false")
    chunks = flow.read(project, flow.prepare(project, fresh=True))
    assert len(chunks) > len(whole)
    assert chunks.group_by("document_id").agg(pl.col("split").n_unique())["split"].max() == 1
    texts = dict(whole.select("document_id", "text").iter_rows())
    for (document_id,), own in chunks.group_by("document_id"):
        assert sum(own["text"].str.len_chars()) == len(texts[document_id])
        assert all(text in texts[document_id] for text in own["text"])


def test_personal_data_is_gone_from_all_that_is_kept_and_comes_back_with_the_key(letters, monkeypatch, tmp_path):
    text = as_text([("paragraph", "Write to ann.miller@example.org about the charge. " + prose(7))])
    for label in LABELS:
        (letters / "letters" / label / "mail.txt").write_bytes(text.replace(b"charge", f"charge {label}".encode()))
    settings = ("data.redact.enabled=true", f"data.redact.vault={tmp_path / 'vault.jsonl'}", "data.dedup.near=false")
    with pytest.raises(ConfigError, match="key of at least 16 characters"):
        flow.prepare(load(letters, *settings))
    monkeypatch.setenv("TUNESMITH_REDACTION_KEY", "0123456789abcdef")
    project = load(letters, *settings)
    version = flow.prepare(project)
    frames = [flow.read(project, version), read_blocks(letters, version), read_dropped(letters, version)]
    assert not any("ann.miller" in json.dumps(frame.to_dicts()) for frame in frames)
    (pseudonym,) = set(frames[0]["text"].str.extract(r"(\[EMAIL_\w+\])").drop_nulls())
    assert pseudonym in " ".join(frames[1]["text"])
    assert Vault(tmp_path / "vault.jsonl", b"0123456789abcdef").restore(pseudonym) == "ann.miller@example.org"
    assert "data:image" not in (letters / version.path / "report.html").read_text()
    counted = json.loads((letters / version.path / "manifest.json").read_text())["redacted"]["email"]
    assert counted == sum(text.count("[EMAIL_") for frame in (frames[0], frames[2]) for text in frame["text"])
