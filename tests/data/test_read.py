import csv
import io
import json
import time
from datetime import date, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import COLUMNS, section

from tunesmith.data.read import RANK_SCHEMA, read_documents
from tunesmith.data.settings import Source
from tunesmith.data.validate import drop_invalid
from tunesmith.entities import Document
from tunesmith.errors import DataError, NotFoundError

FIELD = st.text(st.characters(codec="utf-8"), max_size=12)
ROWS = st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=6)


@pytest.fixture
def read(tmp_path):
    def write_and_read(content, name="a.csv", **keys):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_documents(Source(path=name, **keys), tmp_path)

    return write_and_read


def as_csv(rows):
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "label"), *rows])
    return out.getvalue()


@given(ROWS)
@settings(deadline=None, max_examples=60)
def test_what_is_written_is_read_from_the_line_where_it_starts(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("read")
    (folder / "a.csv").write_bytes(as_csv(rows).encode())
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in rows), "utf-8", newline="")
    pl.DataFrame(rows, schema=["text", "label"], orient="row").write_parquet(folder / "a.parquet")
    found = {name: read_documents(Source(path=name), folder) for name in ("a.csv", "a.jsonl", "a.parquet")}
    for frame in found.values():
        assert frame.schema == pl.Schema({**Document.frame_schema(), **RANK_SCHEMA})
        assert frame.select("text", "label").rows() == rows
        assert frame["id"].is_unique().all()
    lines = as_csv(rows).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for line, text in zip(found["a.csv"]["source_line"], found["a.csv"]["text"], strict=True):
        assert lines[line - 1].startswith('"' + text.replace('"', '""').replace("\r\n", "\n").replace("\r", "\n").split("\n")[0])
    assert found["a.jsonl"]["source_line"].to_list() == list(range(1, len(rows) + 1))


@given(ROWS, ROWS)
@settings(deadline=None, max_examples=40)
def test_an_id_does_not_depend_on_rows_inserted_before(tmp_path_factory, rows, others):
    folder = tmp_path_factory.mktemp("read")
    (folder / "a.csv").write_bytes(as_csv(rows).encode())
    before = read_documents(Source(path="a.csv"), folder)
    (folder / "a.csv").write_bytes(as_csv([*others, *rows]).encode())
    after = read_documents(Source(path="a.csv"), folder)
    assert set(before["id"]) <= set(after["id"])


def test_equal_content_has_an_equal_id_and_another_file_another_one(read):
    content = "text,label\nhello,yes\nhello,yes\n"
    first, again, other = read(content), read(content), read(content, "b.csv")
    assert first.equals(again)
    assert first["id"].n_unique() == 2
    assert not set(first["id"]) & set(other["id"])


def test_a_quoted_field_may_span_lines(read):
    found = read('text,label\n"one\ntwo, ""three""",yes\n\nfour,no\r\n')
    assert found.select("source_line", "text", "label").rows() == [(2, 'one\ntwo, "three"', "yes"), (5, "four", "no")]


def test_a_byte_order_mark_is_no_part_of_a_column_name(read):
    assert read("\ufefftext,label\nhello,yes\n")["text"].to_list() == ["hello"]


def test_the_path_is_an_address_with_forward_slashes(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.csv").write_text("text,label\nhello,yes\n")
    assert read_documents(Source(path="./raw/a.csv"), tmp_path)["source"].to_list() == ["raw/a.csv"]


def test_a_field_of_one_megabyte_is_read_and_then_dropped_as_too_long(read):
    found = read(f"text,label\n{'long ' * 210_000},yes\nshort,yes\n")
    sifted = drop_invalid(found, ("yes",), section())
    assert sifted.dropped["reason"].to_list() == ["too_long"]
    assert sifted.kept["text"].to_list() == ["short"]


def test_null_and_absent_values_are_empty(read):
    found = read('{"text": "a", "label": null}\n\n{"text": null, "label": "yes"}\n{"label": "no"}\n', "a.jsonl")
    assert found.select("source_line", "text", "label").rows() == [(1, "a", ""), (3, "", "yes"), (4, "", "no")]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.csv", "", r"a\.csv: must hold at least one row"),
        ("a.csv", "text,label\n", r"a\.csv: must hold at least one row"),
        ("a.csv", b"text,label\nok,yes\ncaf\xe9,yes\n", r"a\.csv:3: must be UTF-8. Received: byte 0xe9 at offset 21"),
        ("a.csv", "text,label\nok,yes\na,b,c\n", r"a\.csv:3: each row must have 2 fields, as the first one. Received: 3"),
        ("a.csv", 'text,label\nok,yes\n"open,yes\nmore,no\n', r"a\.csv:3: a quoted field must be closed"),
        ("a.csv", 'text,label\nok,yes\n"a"b,yes\n', r"a\.csv:3: must be CSV with commas"),
        ("a.csv", "texts,label\nok,yes\n", r"text_column must name one of its columns: 'texts', 'label'. Received: 'text'"),
        ("a.csv", "text,text,label\na,b,yes\n", r"a\.csv:1: column names must differ. Received: 'text' 2 times"),
        ("a.jsonl", "", r"a\.jsonl: must hold at least one row"),
        ("a.jsonl", '{"text": "a", "label": "yes"}\n{"text": \n', r"a\.jsonl:2: must be one JSON object a line"),
        ("a.jsonl", "[1]\n", r"a\.jsonl:1: must be one JSON object a line. Received: list"),
        ("a.jsonl", '{"text": 5, "label": "yes"}\n', r"a\.jsonl:1: text must be text. Received: 5 \(int\)"),
        ("a.jsonl", '{"body": "a", "label": "yes"}\n', r"text_column must name one of its columns: 'body', 'label'"),
        ("a.jsonl", '{"text": "\\ud800", "label": "yes"}\n', r"a\.jsonl:1: must be text that UTF-8 can hold"),
        ("a.parquet", "no parquet", r"a\.parquet: must be a Parquet file"),
        ("a.xls", "", r"a\.xls: must end in one of \.csv, \.jsonl, \.json, \.parquet, \.sql. Received: '\.xls'"),
    ],
)
def test_a_file_that_cannot_be_read_says_why_and_where(read, name, content, match):
    with pytest.raises(DataError, match=match):
        read(content, name)


def test_parquet_values_that_are_not_text(tmp_path):
    pl.DataFrame({"text": ["a"], "label": [1]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet:1: label must be text. Received: 1 \(int\)"):
        read_documents(Source(path="a.parquet"), tmp_path)


def test_hints_name_what_was_meant(read, tmp_path):
    with pytest.raises(DataError, match="text_column") as error:
        read("texts,label\nok,yes\n")
    assert "Did you mean 'texts'?" in error.value.hint
    with pytest.raises(NotFoundError, match=r"b\.csv: no such file") as missing:
        read_documents(Source(path="b.csv"), tmp_path)
    assert "a.csv" in missing.value.hint
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_documents(Source(path="folder.csv"), tmp_path)


def test_real_rows_know_their_lines(complaints):
    found = read_documents(Source(path=complaints.name, **COLUMNS), complaints.parent)
    lines = complaints.read_text("utf-8").split("\n")
    assert len(found) == 200
    assert found["label"].n_unique() == 8
    for line, text in found.select("source_line", "text").iter_rows():
        assert lines[line - 1].lstrip('"').replace('""', '"').startswith(text.split("\n")[0][:20])


def test_thirteen_thousand_rows_take_less_than_two_seconds(read):
    content = as_csv([("word " * 200 + str(number), "yes") for number in range(13_000)])
    began = time.process_time()
    assert len(read(content)) == 13_000
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1970-01-02", 86400.0),
        ("1970-01-01T01:00:00+01:00", 0.0),
        ("1970-01-01 00:00:10", 10.0),
        ("19700103", 172800.0),
        ("1700000000.5", 1700000000.5),
        (12, 12.0),
        ("", None),
        (None, None),
    ],
)
def test_times_become_numbers_that_grow(tmp_path, value, seconds):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a", "label": "b", "at": value, "seen": 2}) + "\n")
    found = read_documents(Source(path="a.jsonl", time_column="at", reviews_column="seen"), tmp_path)
    assert found.select("created_at", "n_reviews").rows() == [(seconds, 2)]


def test_times_of_parquet_are_read_and_rows_without_columns_have_none(tmp_path):
    frame = pl.DataFrame({"text": ["a", "b"], "label": ["x", "y"], "day": [date(1970, 1, 3), None], "at": [datetime(1970, 1, 1, 0, 0, 5), None]})
    frame.write_parquet(tmp_path / "a.parquet")
    for column, expected in (("day", 172800.0), ("at", 5.0)):
        found = read_documents(Source(path="a.parquet", time_column=column), tmp_path)
        assert found.select("created_at", "n_reviews").rows() == [(expected, None), (None, None)]
    assert read_documents(Source(path="a.parquet"), tmp_path)["created_at"].to_list() == [None, None]


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("time_column", "yesterday", "ISO 8601 date or time"),
        ("time_column", "nan", "ISO 8601"),
        ("time_column", True, "ISO 8601"),
        ("reviews_column", "-1", "whole number"),
        ("reviews_column", 1.5, "whole number"),
        ("reviews_column", True, "whole number"),
    ],
)
def test_what_ranks_nothing_is_refused_with_its_line(tmp_path, key, value, rule):
    (tmp_path / "a.jsonl").write_text("\n" + json.dumps({"text": "a", "label": "b", "n": value}) + "\n")
    with pytest.raises(DataError, match=rf"a\.jsonl:2: n must be a.*{rule}"):
        read_documents(Source.model_validate({"path": "a.jsonl", key: "n"}), tmp_path)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_row_has_the_document_type_of_its_column_or_of_its_source(read, tmp_path, name):
    rows = pl.DataFrame({"text": ["x", "y"], "label": ["a", "b"], "kind": [" memo ", ""]})
    if name.endswith(".csv"):
        rows.write_csv(tmp_path / name)
    elif name.endswith(".jsonl"):
        rows.write_ndjson(tmp_path / name)
    else:
        rows.write_parquet(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    assert read(content, name, document_type_column="kind")["document_type"].to_list() == ["memo", ""]
    assert read(content, name, document_type="letter")["document_type"].to_list() == ["letter", "letter"]
    assert read(content, name)["document_type"].to_list() == ["", ""]
    assert read(content, name, document_type_column="kind")["id"].to_list() == read(content, name)["id"].to_list()
    with pytest.raises(DataError, match=r"document_type_column must name one of its columns.*Received: 'kynd'"):
        read(content, name, document_type_column="kynd")
