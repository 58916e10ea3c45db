"""Items go to the labelling tools and come back, also in files as those tools write them."""

import csv
import json
import xml.etree.ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.errors import DataError, NotFoundError
from tunesmith.review.exchange import Rejected, ReviewItem, export_items, guideline_version, import_labels

LABELS = ("card", "loan & mortgage")
GUIDELINES = "# How to label\nRead the letter first."


def item(number=1, label="card", text="a letter", **keys):
    return ReviewItem.ask(f"rec_{number}", text, label, "label_error", 0.5, evidence={"near": ["rec_9"]}, guideline_version="v1", **keys)


def read(path, items, **keys):
    return import_labels(path, items, LABELS, **keys)


def test_an_item_is_its_question():
    assert item().id == item(text="other").id != item(label="loan & mortgage").id != item(2).id
    assert item().id.startswith("rvi_")


@pytest.mark.parametrize("form", ["label-studio", "argilla", "csv"])
def test_an_export_comes_back_unlabelled(tmp_path, form):
    items = [item(1), item(2, label="")]
    path = tmp_path / "new" / "items.out"
    files = export_items(items, path, form, LABELS, GUIDELINES)
    assert files[1].read_text() == GUIDELINES
    back = read(path, items)
    assert (back.labels, back.rejected, back.n_unlabelled) == ([], [], 2)
    assert export_items(items, path, form, LABELS) == [path, *files[2:]]


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=40)


@given(st.lists(st.tuples(TEXTS, st.sampled_from(LABELS), st.sampled_from(["ann", "bob@x.org"]), TEXTS), min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
def test_what_is_filled_in_comes_back(tmp_path, rows):
    items = [item(number, text=text) for number, (text, *_) in enumerate(rows)]
    when = "2026-03-01T10:00:00+00:00"
    expected = [(each.id, who, when, label, "v1") for each, (_, label, who, _) in zip(items, rows, strict=True)]

    path = tmp_path / "items.csv"
    export_items(items, path, "csv", LABELS)
    with path.open(newline="", encoding="utf-8") as file:
        exported = list(csv.DictReader(file))
    assert [row["text"] for row in exported] == [text for text, *_ in rows]
    for row, (_, label, who, comment) in zip(exported, rows, strict=True):
        row.update(label=label, reviewer=who, labelled_at=when, comment=comment)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, exported[0])
        writer.writeheader()
        writer.writerows(exported)
    assert key(read(path, items)) == expected

    export_items(items, path, "label-studio", LABELS)
    tasks = json.loads(path.read_text())
    for task, (text, label, who, _) in zip(tasks, rows, strict=True):
        assert task["data"]["text"] == text
        result = task["predictions"][0]["result"][0] | {"value": {"choices": [label]}}
        task["annotations"] = [{"completed_by": {"id": 3, "email": who}, "result": [result], "was_cancelled": False, "updated_at": when}]
    path.write_text(json.dumps(tasks))
    assert key(read(path, items)) == expected

    export_items(items, path, "argilla", LABELS)
    records = json.loads(path.read_text())
    for record, (text, label, who, _) in zip(records, rows, strict=True):
        assert record["fields"] == {"text": text}
        record.update(responses={"label": [{"value": label, "user_id": who}]}, updated_at=when, status="completed")
    path.write_text(json.dumps(records))
    assert key(read(path, items)) == expected


def key(imported):
    assert imported.rejected == []
    return [(label.item_id, label.reviewer, label.labelled_at, label.label, label.guideline_version) for label in imported.labels]


def test_label_studio_shows_the_labels_the_guidelines_and_the_reason(tmp_path):
    export_items([item()], tmp_path / "t.json", "label-studio", LABELS, GUIDELINES)
    view = ET.parse(tmp_path / "t.json.config.xml").getroot()
    assert [choice.get("value") for choice in view.iter("Choice")] == list(LABELS)
    (task,) = json.loads((tmp_path / "t.json").read_text())
    shown = {element.get("value", "")[1:] for element in view.iter("Text")}
    assert shown <= set(task["data"])
    assert task["data"]["guidelines"] == GUIDELINES
    assert task["predictions"][0]["result"][0]["value"] == {"choices": ["card"]}


# Files as the tools write them, by hand after their documentation


def test_an_export_of_label_studio_with_two_annotators_a_skipped_and_an_empty_task(tmp_path):
    items = [item(1), item(2)]
    choice = {"id": "x1", "from_name": "label", "to_name": "text", "type": "choices", "origin": "manual", "value": {"choices": ["loan & mortgage"]}}
    comment = {"id": "x2", "from_name": "comment", "to_name": "text", "type": "textarea", "value": {"text": ["not sure", "at all"]}}
    annotation = {"id": 11, "completed_by": 4, "result": [choice, comment], "was_cancelled": False, "ground_truth": False, "lead_time": 12.3}
    annotation |= {"created_at": "2024-06-23T00:00:01.051661Z", "updated_at": "2024-06-23T00:00:09.000000Z", "draft_created_at": None, "prediction": {}}
    tasks = [
        {
            "id": 1,
            "data": {"text": "a letter", "item_id": items[0].id},
            "annotations": [annotation, annotation | {"completed_by": {"id": 5, "username": "eve"}}, annotation | {"was_cancelled": True}],
            "drafts": [], "predictions": [], "meta": {}, "total_annotations": 2, "cancelled_annotations": 1, "project": 1,
        },
        {"id": 2, "data": {"text": "b", "item_id": items[1].id}, "annotations": [], "predictions": []},
    ]  # fmt: skip
    path = tmp_path / "project-1-at-2024.json"
    path.write_text(json.dumps(tasks))
    back = read(path, items)
    assert key(back) == [(items[0].id, who, "2024-06-23T00:00:09.000000Z", "loan & mortgage", "v1") for who in ("4", "eve")]
    assert back.labels[0].comment == "not sure\nat all"
    assert back.n_unlabelled == 1


def test_json_min_of_label_studio(tmp_path):
    path = tmp_path / "min.json"
    facts = {"text": "a letter", "item_id": item().id, "id": 1, "annotation_id": 7, "lead_time": 3.1}
    path.write_text(json.dumps([facts | {"label": "card", "annotator": 2, "created_at": "2024-01-01T00:00:00Z", "updated_at": "2024-01-02T00:00:00Z"}]))
    assert key(read(path, [item()])) == [(item().id, "2", "2024-01-02T00:00:00Z", "card", "v1")]


def test_records_of_argilla_1_and_its_rest_api(tmp_path):
    answer = {
        "values": {"label": {"value": "card"}, "comment": {"value": "clear"}},
        "status": "submitted",
        "user_id": "1b2c",
        "updated_at": "2024-02-02T00:00:00",
    }
    record = {"id": "0f", "external_id": item().id, "fields": {"text": "a letter"}, "metadata": {}, "suggestions": [], "status": "pending"}
    record["responses"] = [answer, answer | {"status": "draft", "user_id": "9z"}, answer | {"status": "discarded", "values": {}}]
    path = tmp_path / "records.json"
    path.write_text(json.dumps({"items": [record], "total": 1}))
    back = read(path, [item()])
    assert key(back) == [(item().id, "1b2c", "2024-02-02T00:00:00", "card", "v1")]
    assert back.labels[0].comment == "clear"
    path.write_text(json.dumps(record) + "\n" + json.dumps(record | {"responses": []}) + "\n")
    assert (len(read(path, [item()]).labels), read(path, [item()]).n_unlabelled) == (1, 1)


# What cannot be used


def test_rows_that_cannot_be_used_are_told_and_the_rest_is_taken(tmp_path):
    path = tmp_path / "filled.csv"
    path.write_text(f"\ufeffitem_id,label,reviewer\nrvi_0,card,ann\n{item().id},cards,ann\n{item().id},card,\n{item().id},card,ann\n{item().id},,ann\n")
    back = read(path, [item()])
    assert [label.reviewer for label in back.labels] == ["ann"]
    assert back.labels[0].labelled_at == back.labels[0].created_at
    assert back.n_unlabelled == 1
    assert back.rejected == [
        Rejected(2, "unknown_item", "no review item has the id 'rvi_0'"),
        Rejected(3, "unknown_label", "'cards' is not in task.labels"),
        Rejected(4, "no_reviewer", "the row names no reviewer, and --reviewer was not given"),
    ]
    assert [label.reviewer for label in read(path, [item()], reviewer="bob").labels] == ["bob", "ann"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,label\na,card\n", "must have the columns item_id and label. Missing: item_id"),
        (b"\xff\xfe", "must be a UTF-8 file"),
        (b"[1]", "must be a list of objects. Received: int"),
        (b'[{"text": "x"}]', "a task of Label Studio .* or a record of Argilla"),
        (b"[{", "must be JSON"),
        (b'[{"data": {"item_id": "x"}, "annotations": [{"result": [{}]}]}]', "must be shaped as the tool writes it"),
    ],
)
def test_a_file_of_another_format_is_refused(tmp_path, content, message):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "f", [])
    with pytest.raises(NotFoundError, match="no such file"):
        read(tmp_path / "none", [])


def test_guidelines_have_a_version():
    assert guideline_version(" ") == ""
    assert len(guideline_version("a")) == 12
    assert guideline_version("a") != guideline_version("b")
