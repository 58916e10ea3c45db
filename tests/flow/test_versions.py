"""Dataset versions are shown, sent to a real S3 server on loopback, fetched into a clone, put back, and rid of a document."""

import csv
import json
import shutil
import subprocess

import polars as pl
import pytest

from tunesmith import flow
from tunesmith.data.freeze import read_dropped, read_records
from tunesmith.data.withdrawn import FILE, read_withdrawals
from tunesmith.entities import DatasetVersion
from tunesmith.errors import BackendError, DataError, NotFoundError
from tunesmith.flow import review, versions
from tunesmith.project import Project
from tunesmith.review.exchange import ReviewItem, guideline_version

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def prepared(fresh):
    """A tiny project with one dataset version, tracked by DVC."""
    project = Project.load(fresh)
    return project, flow.prepare(project)


@pytest.fixture
def bucket(bucket):
    """Where versions are pushed to."""
    return f"{bucket}/data"


def with_remote(project, url):
    return Project.load(project.root, [f"data.dvc_remote={url}"])


# show


def test_a_version_is_shown_with_its_labels_what_was_dropped_and_what_people_saw(prepared):
    project, version = prepared
    shown = versions.show_dataset(project)
    assert shown.version == version
    assert shown.labels.columns == ["label", "train", "validation", "calibration", "test"]
    assert {name: shown.labels[name].sum() for name in shown.labels.columns[1:]} == version.rows
    assert dict(shown.dropped.select("reason", "count").iter_rows()) == version.dropped
    assert shown.expert_share == 0
    json.dumps(shown.to_dict())


def test_what_people_answered_counts_as_seen(prepared):
    project, version = prepared
    records = read_records(project.root, version)
    first = records.row(0, named=True)
    assert review.ask_reviewers(project, [ReviewItem.ask(first["id"], first["text"], first["label"], "label_error", 1.0)]) == 1
    assert versions.show_dataset(project, version.id).expert_share == 0
    answer = project.root / "answers.csv"
    answer.write_text(f"item_id,label,reviewer\n{project.store.review_items()[0]['id']},{first['label']},ann\n")
    review.import_review(project, answer)
    assert versions.show_dataset(project, version.id).expert_share == pytest.approx(1 / len(records))


# push, pull, checkout


def test_a_version_goes_to_s3_and_comes_back_in_a_clone_without_a_store(prepared, bucket, tmp_path):
    project, version = prepared
    project = with_remote(project, bucket)
    assert versions.push(project, version.id) > 0
    assert versions.push(project) == 0
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(project.root), str(clone)], check=True)
    for name in ("tunesmith.yaml", "base", "data"):
        source = project.root / name
        shutil.copytree(source, clone / name) if source.is_dir() else shutil.copy(source, clone / name)
    other = with_remote(Project.load(clone), bucket)
    assert not (clone / version.path / "records.parquet").exists()
    assert versions.pull(other) == [version]
    assert read_records(clone, version).equals(read_records(project.root, version))
    assert other.store.get(DatasetVersion, version.id) == version
    assert versions.pull(other, version.id) == [version]


def test_checkout_puts_changed_files_back(prepared):
    project, version = prepared
    records = project.root / version.path / "records.parquet"
    whole = records.read_bytes()
    assert not versions.checkout(project, version.id)
    records.chmod(0o644)
    records.unlink()
    records.write_bytes(b"changed")
    with pytest.raises(DataError, match="changed after it was frozen"):
        versions.show_dataset(project)
    assert versions.checkout(project, version.id)
    assert records.read_bytes() == whole


def test_remotes_and_versions_that_are_not_there(prepared, tmp_path):
    project, version = prepared
    with pytest.raises(BackendError, match="A remote of DVC is needed") as raised:
        versions.push(project)
    assert "data.dvc_remote" in raised.value.hint
    with pytest.raises(NotFoundError, match="No DatasetVersion has the id 'dsv_0'"):
        versions.push(project, "dsv_0")
    with pytest.raises(NotFoundError, match=r"dsv_0 has a \.dvc file"):
        versions.pull(project, "dsv_0")
    shutil.rmtree(project.root / ".dvc" / "cache")
    shutil.rmtree(project.root / version.path)
    with pytest.raises(BackendError, match="DVC failed"):
        versions.checkout(project, version.id)


def test_a_folder_is_a_remote_too(prepared, tmp_path):
    project, version = prepared
    project = with_remote(project, tmp_path / "remote")
    assert versions.push(project) > 0
    shutil.rmtree(project.root / ".dvc" / "cache")
    shutil.rmtree(project.root / version.path)
    assert versions.pull(project, version.id) == [version]


# withdraw


def test_a_withdrawn_document_names_all_that_it_touched_and_stays_out_for_good(tiny):
    first = flow.newest_dataset(tiny)
    record = read_records(tiny.root, first).filter(split="train").row(0, named=True)
    prediction = flow.predict(tiny, ["student tuition"])[0]
    done = versions.withdraw(tiny, record["document_id"], "asked by its author", "ann")
    kinds = {node.id.partition("_")[0] for node in done.touched}
    assert {"rec", "dsv", "run", "evl", "mdl", "dep", "prd"} <= kinds
    assert {record["id"], first.id, prediction.id} <= {node.id for node in done.touched}
    assert done.version.parent == first.id
    assert done.version.reason == f"withdrawn: {record['document_id']}"
    assert record["document_id"] not in read_records(tiny.root, done.version)["document_id"]
    gone = read_dropped(tiny.root, done.version).filter(reason="withdrawn")
    assert set(gone["id"]) == {record["id"], record["document_id"]}  # the record that stood, and the row that is still in the source
    assert set(gone["text"]) == {""}
    (kept,) = read_withdrawals(tiny.root)
    assert (kept.reason, kept.actor, kept.record_ids) == ("asked by its author", "ann", (record["id"],))
    committed = subprocess.run(["git", "show", f"HEAD~1:{FILE}"], cwd=tiny.root, capture_output=True, text=True, check=True).stdout
    assert record["document_id"] in committed
    assert record["text"] not in committed

    assert flow.prepare(tiny) == done.version
    with (tiny.root / "data" / "records.csv").open("a", newline="") as file:  # the same text with another label, and a new one
        other = next(label for label in first.labels if label != record["label"])
        csv.writer(file).writerows([[record["text"], other], ["a whole new letter about a student loan", "loan"]])
    later = flow.prepare(tiny)
    assert later.id != done.version.id
    assert record["text"] not in read_records(tiny.root, later)["text"]
    with pytest.raises(NotFoundError, match="dsv"):
        versions.withdraw(tiny, "dsv_0", "", "ann")


def test_a_correction_of_a_withdrawn_record_goes_too(tiny):
    first = flow.newest_dataset(tiny)
    record = read_records(tiny.root, first).filter(split="train").row(0, named=True)
    prediction = flow.predict(tiny, [record["text"]])[0]
    from tunesmith.review import queue

    other = next(label for label in first.labels if label != record["label"])
    queue.correct(tiny.store, prediction, other, first.labels, "ann")
    from tunesmith.flow.dataset import next_version
    from tunesmith.review.harvest import harvest_records

    second = next_version(tiny, first, harvest_records(tiny.store, tiny.store.feedback(), read_records(tiny.root, first)))
    assert other in read_records(tiny.root, second).filter(text=record["text"])["label"]
    done = versions.withdraw(tiny, record["document_id"], "", "ann")
    assert record["text"] not in read_records(tiny.root, done.version)["text"]


@pytest.mark.parametrize("shown", ["as it is", "in other case and a part of it"])
def test_a_withdrawn_text_may_not_stay_in_the_examples_of_the_prompt(prepared, cli, shown):
    project, version = prepared
    record, other = read_records(project.root, version).filter(split="train").filter(pl.col("text").str.len_chars() > 45).head(2).iter_rows(named=True)
    text = record["text"] if shown == "as it is" else f"  {record['text'][2:].upper()}"
    settings = project.root / "tunesmith.yaml"
    written = settings.read_text(encoding="utf-8")
    settings.write_text(
        written.replace(
            "task:\n",
            "task:\n  examples:\n"
            + "".join(f"    - {{text: {json.dumps(each)}, label: {label}}}\n" for each, label in ((other["text"], other["label"]), (text, record["label"]))),
        ),
        encoding="utf-8",
    )
    opened = Project.load(project.root, ["train.report_to=[]", "train.max_length=400"])
    flow.plan(opened, version)
    done = cli("data", "withdraw", record["document_id"], "-C", project.root)
    assert done.code == 0, done.err
    assert "task.examples[1] says its text in every prompt" in done.out
    assert "tunesmith config explain task.examples" in done.out
    with pytest.raises(DataError, match=rf"task\.examples\[1\], whose text is of {record['document_id']}") as raised:
        flow.plan(opened, flow.newest_dataset(opened))
    assert "task.examples[1]" in raised.value.hint
    settings.write_text(written, encoding="utf-8")
    opened = Project.load(project.root, ["train.report_to=[]", "train.max_length=400"])
    flow.plan(opened, flow.newest_dataset(opened))


def test_a_document_is_named_by_its_place_or_its_record_too(prepared):
    project, version = prepared
    records = read_records(project.root, version)
    row = records.row(0, named=True)
    done = versions.withdraw(project, f"{row['source']}:{row['source_line']}", "", "ann")
    assert done.document_ids == (row["document_id"],)
    row = read_records(project.root, done.version).row(0, named=True)
    assert versions.withdraw(project, row["id"], "", "ann").document_ids == (row["document_id"],)
    assert len(read_withdrawals(project.root)) == 2


# Review


def test_two_reviewers_a_third_where_they_differ_and_their_agreement(prepared):
    project, version = prepared
    project = Project.load(project.root, ["review.reviewers=2", "review.guidelines=guide.md"])
    (project.root / "guide.md").write_text("Read first.")
    records = read_records(project.root, version).head(3)
    asked = [ReviewItem.ask(row["id"], row["text"], row["label"], "label_error", 1.0 - at / 10) for at, row in enumerate(records.iter_rows(named=True))]
    review.ask_reviewers(project, asked)
    file = project.root / "out.csv"
    n_items, files = review.export_review(project, file, "csv")
    assert (n_items, [each.name for each in files]) == (3, ["out.csv", "out.csv.guidelines.md"])

    def answer(who, labels):
        frame = pl.read_csv(file, infer_schema=False).with_columns(label=pl.Series(labels), reviewer=pl.lit(who), labelled_at=pl.lit("2026-01-01T00:00:00Z"))
        frame.write_csv(file.with_name(f"{who}.csv"))
        return review.import_review(project, file.with_name(f"{who}.csv"))

    assert answer("ann", ["card", "card", "loan"])[1] == 3
    assert review.review_state(project).agreement is None
    assert answer("bob", ["card", "loan", "loan"])[1] == 3
    assert answer("bob", ["card", "loan", "loan"])[1] == 0
    state = review.review_state(project)
    assert [item.id for item in state.open_items] == [asked[1].id]
    assert state.agreement.n_items == 3
    assert review.export_review(project, file, "csv")[0] == 1
    assert answer("eve", ["loan"])[1] == 1
    state = review.review_state(project)
    assert state.open_items == []
    assert [state.decisions[item.id].by for item in asked] == ["agreement", "majority", "agreement"]
    assert {row["guideline_version"] for row in project.store.review_labels()} == {guideline_version("Read first.")}


# The commands


def test_the_commands_of_versions(prepared, cli, tmp_path):
    project, version = prepared
    shown = cli("data", "show", "-C", project.root)
    assert shown.code == 0, shown.err
    assert f"{version.id}  " in shown.out
    assert "People saw 0.0% of the records." in shown.out
    assert cli("data", "show", version.id, "-C", project.root, "--json").json["version"]["id"] == version.id
    assert cli("data", "checkout", version.id, "-C", project.root).out.startswith(f"{version.id} is in place.")
    refused = cli("data", "push", "-C", project.root)
    assert (refused.code, "data.dvc_remote" in refused.err) == (6, True)
    settings = project.root / "tunesmith.yaml"
    settings.write_text(settings.read_text().replace("data:\n", f"data:\n  dvc_remote: {tmp_path / 'remote'}\n"))
    assert cli("data", "push", version.id, "-C", project.root, "--json").json["files"] > 0
    assert [each["id"] for each in cli("data", "pull", "-C", project.root, "--json").json] == [version.id]
    row = read_records(project.root, version).row(0, named=True)
    done = cli("data", "withdraw", row["document_id"], "--reason", "asked", "-C", project.root)
    assert done.code == 0, done.err
    assert row["id"] in done.out
    assert "What was frozen or trained before still holds it." in done.out
    assert cli("data", "withdraw", "doc_0", "-C", project.root).code == 3


def test_the_commands_of_review(prepared, cli, tmp_path):
    project, version = prepared
    row = read_records(project.root, version).row(0, named=True)
    review.ask_reviewers(project, [ReviewItem.ask(row["id"], row["text"], row["label"], "outlier", 1.0)])
    file = tmp_path / "items.json"
    assert cli("review", "export", file, "--format", "label-studio", "-C", project.root, "--json").json["items"] == 1
    tasks = json.loads(file.read_text())
    tasks[0]["annotations"] = [{"completed_by": 1, "result": tasks[0]["predictions"][0]["result"], "updated_at": "2026-01-01T00:00:00Z"}]
    file.write_text(json.dumps([*tasks, {"data": {"item_id": "rvi_0"}}]))
    done = cli("review", "import", file, "-C", project.root)
    assert done.code == 0, done.err
    assert "1 new labels of 1" in done.out
    assert "row 2 was not used: unknown_item" in done.out
    assert "No review item wants a label." in cli("review", "export", file, "-C", project.root).out
    assert cli("review", "export", file, "--format", "xml", "-C", project.root).code == 2
