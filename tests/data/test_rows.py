"""Shapes of fine-tuning rows, in every file format, and the result of a query."""

import json
import sqlite3
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.read import read_documents
from tunesmith.data.rows import find_shape, to_pair
from tunesmith.data.settings import Source
from tunesmith.errors import BackendError, ConfigError, DataError

SYSTEM = {"role": "system", "content": "Sort the letter."}
CHAT = [SYSTEM, {"role": "user", "content": "first"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": "a letter"}]
ANSWER = {"role": "assistant", "content": "loan"}
HUMAN, GPT = {"from": "human", "value": "a letter"}, {"from": "gpt", "value": "loan"}

ROWS = [
    ({"messages": [*CHAT, ANSWER]}, "messages"),
    ({"messages": [*CHAT, ANSWER, {"role": "user", "content": "thanks"}]}, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a letter"}, {"type": "image_url", "image_url": {}}]}, ANSWER]}, "messages"),
    ({"conversations": [HUMAN, GPT], "system": "s"}, "conversations"),
    ({"conversations": [{"role": "user", "content": "a letter"}, ANSWER]}, "conversations"),
    ({"instruction": "a letter", "input": "", "output": "loan"}, "alpaca"),
    ({"instruction": "a letter", "output": "loan"}, "alpaca"),
    ({"prompt": "a letter", "completion": "loan"}, "completion"),
    ({"prompt": CHAT, "completion": [ANSWER]}, "completion"),
    ({"prompt": "a letter", "chosen": "loan", "rejected": "card"}, "preference"),
    ({"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "card"}}, "preference"),
    ({"chosen": [*CHAT, ANSWER], "rejected": [*CHAT, {"role": "assistant", "content": "card"}]}, "preference"),
    ({"messages": [*CHAT, ANSWER], "label": True}, "messages"),
]


@pytest.mark.parametrize(("row", "shape"), ROWS)
def test_each_shape_gives_the_last_question_and_its_answer(row, shape):
    assert find_shape(row) == shape
    assert to_pair(row, shape) == ("a letter", "loan")


def test_alpaca_joins_instruction_and_input():
    assert to_pair({"instruction": "Sort it.", "input": "a letter", "output": "loan"}, "alpaca") == ("Sort it.\n\na letter", "loan")


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        ({"messages": [*CHAT]}, ("first", "x")),
        ({"messages": [CHAT[1]]}, ("first", "")),
        ({"messages": [SYSTEM]}, ("", "")),
        ({"messages": []}, ("", "")),
        ({"messages": None}, ("", "")),
        ({"messages": [*CHAT, ANSWER], "label": False}, ("a letter", "")),
        ({"messages": [CHAT[1], {"role": "assistant", "content": None, "tool_calls": []}]}, ("first", "")),
    ],
)
def test_what_a_row_lacks_is_empty(row, pair):
    assert to_pair(row, "messages") == pair


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": "text"}, "messages must be a list of turns. Received: 'text'"),
        ({"messages": ["text"]}, "messages must be a list of turns"),
        ({"messages": [{"content": "x"}]}, "each turn of messages must have a role and content, or from and value"),
        ({"messages": [{"role": "user", "content": 5}]}, r"messages must hold text. Received: 5 \(int\)"),
    ],
)
def test_a_row_of_another_shape_is_an_error(row, message):
    with pytest.raises(ValueError, match=message):
        to_pair(row, "messages")


def test_columns_of_no_shape_have_none():
    assert find_shape(["text", "label"]) is None
    assert find_shape(["prompt"]) is None


# In files

SAMPLES = Path(__file__).parents[1] / "fixtures" / "rows"


@pytest.mark.parametrize(
    ("name", "n_rows", "n_unlabelled"), [("alpaca_en_demo", 3, 0), ("glaive_toolcall_en_demo", 3, 0), ("dpo_en_demo", 3, 0), ("kto_en_demo", 2, 1)]
)
def test_real_files_are_read(name, n_rows, n_unlabelled):
    found = read(SAMPLES, f"{name}.json")
    assert len(found) == n_rows
    assert found["text"].str.len_chars().min() > 0
    assert (found["label"] == "").sum() == n_unlabelled
    assert found["source_line"].is_sorted()


def read(folder, name, **keys):
    return read_documents(Source(path=name, **keys), folder)


@pytest.mark.parametrize(("row", "shape"), ROWS)
def test_every_file_format_gives_the_same_rows(tmp_path, row, shape):
    rows = [row, row]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=2))
    names = ["a.jsonl", "a.json"]
    if not any(isinstance(part, dict) and isinstance(part.get("content"), list) for part in row.get("messages", [])):
        pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
        names.append("a.parquet")
    for name in names:
        assert read(tmp_path, name).select("text", "label").rows() == [("a letter", "loan")] * 2


def test_a_json_file_tells_the_line_of_each_object(tmp_path):
    (tmp_path / "a.json").write_text(
        '\ufeff[\n  {"text": "a\\nb",\n   "label": "x"},\n\n  {"text": "c", "label": "y"}, {"text": "d", "label": "z"}\n]\n', encoding="utf-8"
    )
    assert read(tmp_path, "a.json").select("source_line", "text", "label").rows() == [(2, "a\nb", "x"), (5, "c", "y"), (5, "d", "z")]


OBJECTS = st.fixed_dictionaries({"text": st.text(st.characters(exclude_categories=["Cs"])), "label": st.sampled_from(["x", "]", ","])})


@given(st.lists(OBJECTS, min_size=1), st.sampled_from([None, 1]))
@settings(deadline=None)
def test_any_json_list_comes_back(tmp_path_factory, rows, indent):
    folder = tmp_path_factory.mktemp("json")
    (folder / "a.json").write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert read(folder, "a.json").select("text", "label").rows() == [(row["text"], row["label"]) for row in rows]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}', r"a\.json: must be a list of objects. Received: '\{\"text\""),
        ('[{"text": "a", "label": "b"}', r"a\.json:1: objects must be parted by commas. Received: ''"),
        ('[{"text": "a", "label": "b"}\n {"text"', r"a\.json:2: objects must be parted"),
        ('[\n{"text": \n}]', r"a\.json:3: must be a list of objects. Received: Expecting value at column 1"),
        ("[1]", r"a\.json:1: must be a list of objects. Received: int"),
        ("[]", r"a\.json: must hold at least one row"),
        ('[{"words": "a"}]', "text_column must name one of its columns: 'words'"),
        ('[\n{"messages": 5}]', r"a\.json:2: messages must be a list of turns. Received: 5"),
    ],
)
def test_a_broken_json_file_names_the_line(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path, "a.json")


def test_columns_that_are_named_win_over_a_shape(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "p", "completion": "c", "text": "t", "label": "l"}) + "\n")
    assert read(tmp_path, "a.jsonl").select("text", "label").rows() == [("t", "l")]
    assert read(tmp_path, "a.jsonl", text_column="x").select("text", "label").rows() == [("p", "c")]


# Queries


@pytest.fixture
def database(tmp_path, monkeypatch):
    """A SQLite database with two letters, named by the environment."""
    path = tmp_path / "letters.db"
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE letters (id INTEGER, body TEXT, product TEXT)")
        raw.executemany("INSERT INTO letters VALUES (?, ?, ?)", [(1, "a; letter", "loan"), (2, None, "card")])
    raw.close()
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", f"sqlite:///{path}")
    return path


def query(folder, sql, **keys):
    (folder / "q.sql").write_text(sql)
    return read(folder, "q.sql", **keys)


def test_a_query_gives_rows_with_their_numbers(database, tmp_path):
    found = query(tmp_path, "-- all\nSELECT body AS text, product AS label\nFROM letters WHERE body != ';' OR body IS NULL ORDER BY id;\n")
    assert found.select("source", "source_line", "text", "label").rows() == [("q.sql", 1, "a; letter", "loan"), ("q.sql", 2, "", "card")]
    assert query(tmp_path, "SELECT body AS prompt, product AS completion FROM letters LIMIT 1")["text"].to_list() == ["a; letter"]


def test_the_url_may_stand_in_a_file(database, tmp_path, monkeypatch):
    (tmp_path / "url.txt").write_text(f"sqlite:///{database}\n")
    monkeypatch.delenv("TUNESMITH_DATABASE_URL")
    sql = "SELECT body AS text, product AS label FROM letters"
    assert len(query(tmp_path, sql, database="file:url.txt")) == 2
    for place in ("env:TUNESMITH_DATABASE_URL", "file:nowhere.txt"):
        with pytest.raises(ConfigError, match=f"A query needs a database .* Received: nothing in {place}"):
            query(tmp_path, sql, database=place)
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", "secret password")
    with pytest.raises(ConfigError, match="must hold an SQLAlchemy URL") as raised:
        query(tmp_path, sql)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM letters",
        "SELECT 1; DELETE FROM letters",
        "",
        "/* SELECT */ DROP TABLE letters",
        "WITH gone AS (SELECT 1) DELETE FROM letters",
        "SELECT nothing FROM letters",
    ],
)
def test_nothing_is_ever_written(database, tmp_path, sql):
    with pytest.raises(DataError, match=r"q\.sql: "):
        query(tmp_path, sql)
    with sqlite3.connect(database) as raw:
        assert raw.execute("SELECT count(*) FROM letters").fetchone() == (2,)
    raw.close()


def test_a_database_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", f"sqlite:///{tmp_path}/no/such/folder/x.db")
    with pytest.raises(BackendError, match=r"The database of q\.sql cannot be reached"):
        query(tmp_path, "SELECT 1")
