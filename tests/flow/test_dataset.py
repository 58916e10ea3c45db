"""What a dataset version is made from, beyond its sources: benchmarks, with the real static embeddings."""

import json

from tunesmith import Project, flow
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
