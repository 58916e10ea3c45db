"""What a dataset version is made from, beyond files of rows: benchmarks, with the real static embeddings, and queries."""

import json
import sqlite3

from tunesmith import Project, flow
from tunesmith.data import read
from tunesmith.data.freeze import read_dropped


def test_a_benchmark_that_changes_makes_a_new_version_without_what_leaked(fresh):
    settings = ["data.dvc=false", "train.report_to=[]"]
    first = flow.read(plain := Project.load(fresh, settings), flow.prepare(plain)).filter(split="train")
    (fresh / "qa.txt").write_text("\n".join(first["text"].head(2)))
    project = Project.load(fresh, [*settings, "data.contamination.benchmarks=[qa.txt]"])
    second = flow.prepare(project)
    assert not set(flow.read(project, second)["text"]) & set(first["text"].head(2))
    assert flow.prepare(project) == second
    dropped = read_dropped(fresh, second).filter(reason="contaminated")
    assert set(first["text"].head(2)) <= set(dropped["text"])
    report = json.loads((fresh / second.path / "report.json").read_text())
    assert report["contamination"] == {"qa.txt": {"texts": 2, "leaked": 2}}
    assert report["dropped"]["contaminated"]["count"] == len(dropped)
    assert report["dropped"]["contaminated"]["examples"][0]["evidence"]
    page = (fresh / second.path / "report.html").read_text()
    assert f"{len(dropped)} rows, dropped as contaminated" in page
    (fresh / "qa.txt").write_text("\n".join(first["text"].head(3)))
    third = flow.prepare(project)
    assert third.parent == second.id
    assert first["text"][2] not in set(flow.read(project, third)["text"])


def test_a_database_is_asked_once_and_what_it_says_anew_makes_a_new_version(fresh, monkeypatch):
    rows = flow.read(plain := Project.load(fresh, ["data.dvc=false"]), flow.prepare(plain)).select("text", "label").rows()
    with sqlite3.connect(fresh / "letters.db") as database:
        database.execute("CREATE TABLE letters (text, label, seen)")
        database.executemany("INSERT INTO letters VALUES (?, ?, 0)", rows)
    (fresh / "q.sql").write_text("SELECT * FROM letters ORDER BY text")
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", f"sqlite:///{fresh / 'letters.db'}")
    asked, query = [], read.read_query
    monkeypatch.setattr(read, "read_query", lambda *said: asked.append(said) or query(*said))
    sources = "data.sources=[{path: q.sql, reviews_column: seen}]"
    project = Project.load(fresh, [sources, "data.dvc=false", "data.dedup.keep=most_reviewed"])
    first = flow.prepare(project)
    assert len(asked) == 1
    assert flow.prepare(project) == first
    with sqlite3.connect(fresh / "letters.db") as database:
        database.execute("UPDATE letters SET seen = 1 WHERE rowid = 1")
    assert flow.prepare(project).parent == first.id
    assert len(asked) == 3
