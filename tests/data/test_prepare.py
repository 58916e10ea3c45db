import time
import zlib

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import COLUMNS, FOUR, prose, record, records, section

from tunesmith.data.prepare import STEPS, make_records, prepare_records
from tunesmith.data.read import read_documents
from tunesmith.data.settings import Source
from tunesmith.data.sifted import DROPPED_SCHEMA, count_reasons
from tunesmith.data.sources import Tools
from tunesmith.entities import SPLITS, Record
from tunesmith.errors import ConfigError, DataError

LABELS = ("yes", "no")


def write(folder, rows, name="a.csv"):
    pl.DataFrame(rows, schema=["text", "label"], orient="row").write_csv(folder / name)


@pytest.fixture
def project(tmp_path):
    """A folder with 40 unlike texts in a.csv, and their records."""
    write(tmp_path, [(prose(number), LABELS[number % 2]) for number in range(40)])
    return tmp_path, prepare_records(section(), LABELS, tmp_path).kept


def judge(text, label="no", **keys):
    return record(text, label, origin="feedback", feedback_id="fbk_1", **keys)


def test_kept_records_and_dropped_rows_are_the_documents(complaints):
    source = Source(path=complaints.name, splits=FOUR, **COLUMNS)
    whole = read_documents(source, complaints.parent)
    labels = tuple(whole["label"].unique().sort())[1:]
    seen = []
    sifted = prepare_records(section(sources=[source.model_dump()]), labels, complaints.parent, progress=lambda *step: seen.append(step))
    assert sifted.kept.schema == pl.Schema(Record.frame_schema())
    assert sifted.dropped.schema == pl.Schema(DROPPED_SCHEMA)
    assert sorted([*sifted.kept["document_id"], *sifted.dropped["id"]]) == sorted(whole["id"])
    assert count_reasons(sifted.dropped) == {"unknown_label": 25, "near_duplicate": 6}
    assert sifted.kept["id"].is_sorted()
    assert set(sifted.kept["split"]) == set(SPLITS)
    assert seen == [("read complaints.csv", 0, 1), *((what, step, len(STEPS)) for step, what in enumerate((*STEPS[1:], "records ready"), start=1))]


def test_copies_inside_a_split_go_and_what_stood_or_was_judged_stays(project):
    folder, first = project
    known = first.filter(split="train").row(0, named=True)
    write(folder, [(known["text"] + " v1", known["label"])], "b.csv")
    sources = [{"path": "a.csv", "splits": FOUR}, {"path": "b.csv", "splits": {"train": 1}}]
    judged = records(judge(known["text"] + " v2", number=2))
    second = prepare_records(section(sources=sources), LABELS, folder, first, judged)
    assert set(second.kept["id"]) == {*first["id"], judged["id"][0]}
    (dropped,) = second.dropped.select("reason", "kept_id").rows()
    assert dropped[0] == "near_duplicate"
    assert dropped[1] in {known["id"], judged["id"][0]}
    every = prepare_records(section(sources=sources, dedup={"near": False}), LABELS, folder, first, judged)
    assert len(every.kept) == len(second.kept) + 1


def test_it_is_deterministic_and_previous_records_stay(project):
    folder, first = project
    assert prepare_records(section(), LABELS, folder).kept.equals(first)
    again = prepare_records(section(), LABELS, folder, previous=first)
    assert again.kept.equals(first)
    assert again.dropped.is_empty()


@given(st.lists(st.tuples(st.integers(0, 60), st.sampled_from(["", " v1", " v2"]), st.sampled_from(["yes", "no", "x"])), max_size=8), st.integers(0, 40))
@settings(deadline=None, max_examples=25)
def test_no_row_that_comes_or_goes_moves_a_record(tmp_path_factory, new, gone):
    lenient = section(checks={"stop_above": {"conflicting_labels": 1}})  # two labels of one text are many among few rows
    folder = tmp_path_factory.mktemp("project")
    rows = [(prose(number), "yes") for number in range(40)]
    write(folder, rows)
    first = prepare_records(lenient, LABELS, folder).kept
    write(folder, [*((prose(topic) + tail, label) for topic, tail, label in new), *rows[gone:], ("ok", "yes")])
    second = prepare_records(lenient, LABELS, folder, previous=first)
    whole = read_documents(Source(path="a.csv"), folder)
    assert first.rows() == second.kept.join(first, on="id", how="semi").sort("id").rows()
    assert set(whole["id"]) <= {*second.kept["document_id"], *second.dropped["id"]}
    assert not set(second.kept["document_id"]) & set(second.dropped["id"])


def test_a_correction_supersedes_a_train_record(project):
    folder, first = project
    wrong = first.filter(split="train").row(0, named=True)
    right = judge(wrong["text"], "no" if wrong["label"] == "yes" else "yes", supersedes=wrong["id"])
    second = prepare_records(section(), LABELS, folder, first, records(right))
    assert right["id"] in second.kept["id"]
    assert wrong["id"] not in second.kept["id"]
    assert len(second.kept) == len(first)
    assert second.dropped.select("id", "reason", "evidence", "kept_id").rows() == [
        (wrong["id"], "superseded", f"corrected to '{right['label']}' by fbk_1", right["id"])
    ]
    third = prepare_records(section(), LABELS, folder, second.kept)
    assert third.kept.equals(second.kept)
    assert third.dropped.select("reason", "kept_id").rows() == [("conflicting_label", right["id"])]


@pytest.mark.parametrize("name", ["validation", "calibration", "test"])
def test_a_judgement_never_carries_a_frozen_text_into_train(project, name):
    folder, first = project
    frozen = first.filter(split=name).row(0, named=True)
    new = records(
        judge(frozen["text"], supersedes=frozen["id"]),
        judge(frozen["text"] + " and more", number=2),
        judge(f"{' '.join(frozen['text'].split()[:15])} another end", number=3),
        judge("something else happened", number=4),
    )
    second = prepare_records(section(), LABELS, folder, first, new)
    assert set(second.kept["id"]) == {*first["id"], new["id"][3]}
    assert set(second.dropped["id"]) == set(new["id"][:3])
    assert set(second.dropped["reason"]) == {"bridges_splits"}
    assert set(second.dropped["kept_id"]) == {frozen["id"]}
    assert f"in {name}" in second.dropped["evidence"][0]


def test_a_judgement_that_says_nothing_new_or_breaks_a_rule_is_dropped(project):
    folder, first = project
    known = first.filter(split="train").row(0, named=True)
    new = records(judge(known["text"], known["label"]), judge("something else happened", "maybe", number=2))
    second = prepare_records(section(), LABELS, folder, first, new)
    assert second.kept.equals(first)
    assert count_reasons(second.dropped) == {"exact_duplicate": 1, "unknown_label": 1}


def test_a_label_that_left_the_task_takes_its_records_along(project):
    folder, first = project
    write(folder, [(prose(number), "yes") for number in range(0, 40, 2)])
    second = prepare_records(section(), ("yes", "maybe"), folder, first)
    assert set(second.kept["label"]) == {"yes"}
    assert count_reasons(second.dropped) == {"unknown_label": 20}


def test_an_empty_split_and_a_file_listed_twice_are_refused(tmp_path):
    write(tmp_path, [("one", "yes")])
    with pytest.raises(DataError, match="Each split must hold at least one record"):
        prepare_records(section(), LABELS, tmp_path)
    with pytest.raises(DataError, match=r"list each file once. Received twice: a\.csv"):
        prepare_records(section(sources=[{"path": "a.csv", "splits": FOUR}, {"path": "./a.csv"}]), LABELS, tmp_path)


def test_a_record_id_depends_on_document_text_and_label(project):
    folder, first = project
    documents = read_documents(Source(path="a.csv"), folder).with_columns(split=pl.lit("train"))
    again = make_records(documents)
    assert set(again["id"]) == set(first["id"])  # and not on the split
    assert not set(make_records(documents.with_columns(label=pl.lit("other")))["id"]) & set(first["id"])


def test_thousands_of_documents_take_seconds(tmp_path):
    write(tmp_path, [(prose(number, 100), "yes") for number in range(3_000)])
    began = time.process_time()
    assert len(prepare_records(section(), LABELS, tmp_path).kept) == 3_000
    assert time.process_time() - began < 5


def test_benchmark_texts_leave_the_train_split_whatever_brought_them(project):
    folder, first = project
    train, tested = (first.filter(split=name) for name in ("train", "test"))
    known, measured = train["text"][0], tested["text"][0]
    words = prose(90).split()
    embedded = f"{prose(91, 20)} {prose(90)} {prose(92, 20)}"
    edited = " ".join([*words[:20], "other", *words[21:]])
    write(folder, [(embedded, "yes"), (edited, "no"), (prose(93), "yes")], "b.csv")
    (folder / "qa.txt").write_text("\n".join([known, measured, prose(90), prose(94)]))
    sources = [{"path": "a.csv", "splits": FOUR}, {"path": "b.csv", "splits": {"train": 1}}]
    judged = records(judge(prose(94)))
    held = section(sources=sources, contamination={"benchmarks": ["qa.txt"]})
    second = prepare_records(held, LABELS, folder, first, judged)
    gone = second.dropped.filter(reason="contaminated")
    assert set(gone["text"]) == {known, embedded, edited, prose(94)}
    assert dict(gone.select("text", "evidence").iter_rows())[known] == "same text as qa.txt:1"
    assert second.kept.filter(split="test").equals(tested)
    assert prose(93) in second.kept["text"]
    assert second.benchmarks == {"qa.txt": {"texts": 4, "leaked": 3}}
    assert len(second.kept) == len(first) - 1 + 1
    third = prepare_records(held, LABELS, folder, second.kept)
    assert third.kept.equals(second.kept)


def test_what_leaked_leaves_room_under_the_cap(project):
    folder, first = project
    train = first.filter(split="train")
    (folder / "qa.txt").write_text(train["text"][0])
    capped = prepare_records(section(max_records={"train": len(train) - 1}, contamination={"benchmarks": ["qa.txt"]}), LABELS, folder)
    assert "over_max_records" not in count_reasons(capped.dropped)
    assert len(capped.kept.filter(split="train")) == len(train) - 1


@pytest.mark.parametrize(("keep", "key"), [("newest", "time_column"), ("most_reviewed", "reviews_column")])
def test_the_newest_or_most_reviewed_of_copies_is_kept(tmp_path, keep, key):
    text = prose(99)
    copies = [(text, "yes", "3"), (f"{text} v1", "no", "10"), (text, "no", "9"), (f"{text} longer", "yes", "")]
    rows = [*((prose(number), "yes", "1") for number in range(40)), *copies]
    pl.DataFrame(rows, schema=["text", "label", "n"], orient="row").write_csv(tmp_path / "a.csv")
    source = {"path": "a.csv", "splits": FOUR, key: "n"}
    sifted = prepare_records(section(sources=[source], dedup={"keep": keep}, checks={"stop_above": {"conflicting_labels": 1}}), LABELS, tmp_path)
    assert sifted.kept.filter(pl.col("text").str.starts_with(text))["text"].to_list() == [f"{text} v1"]
    # Of the two equal texts the label with the 9 was compared.
    reasons = dict(sifted.dropped.select(pl.format("{} {}", "text", "label"), "reason").iter_rows())
    assert reasons[f"{text} yes"] == "conflicting_label"
    assert reasons[f"{text} no"] == "near_duplicate"
    with pytest.raises(ConfigError, match=f"keep: {keep} needs the {key} of each file in data.sources. Received none for: b.csv"):
        prepare_records(section(sources=[source, {"path": "b.csv"}], dedup={"keep": keep}), LABELS, tmp_path)
    with pytest.raises(DataError, match=f"{key} must name one of its columns: 'text', 'label', 'n'. Received: 'm'"):
        prepare_records(section(sources=[{**source, key: "m"}], dedup={"keep": keep}), LABELS, tmp_path)


def test_semantic_duplicates_go_by_static_embeddings(project):
    folder, first = project
    words = prose(70).split()
    write(folder, [(" ".join(words), "yes"), (" ".join(reversed(words)), "yes")], "b.csv")
    sources = [{"path": "a.csv", "splits": FOUR}, {"path": "b.csv", "splits": {"train": 1}}]
    settings_ = section(sources=sources, dedup={"semantic": True})

    def embed(texts):
        """Words as directions: order makes no difference."""
        vectors = np.zeros((len(texts), 256), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.split():
                vectors[row, zlib.crc32(word.encode()) % 256] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    second = prepare_records(settings_, LABELS, folder, first, tools=Tools(embed_static=embed))
    assert count_reasons(second.dropped) == {"semantic_duplicate": 1}
    with pytest.raises(ConfigError, match="needs an embedding model"):
        prepare_records(settings_, LABELS, folder, first)
