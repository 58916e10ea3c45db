from hypothesis import given
from hypothesis import strategies as st
from rows import record, records

from tunesmith.data.diff import diff

SIDE = st.dictionaries(st.integers(0, 8), st.tuples(st.sampled_from(["yes", "no"]), st.sampled_from(["train", "test"])))


def side(chosen):
    return records(*(record(f"text {number}", label, split, number=number) | {"document_id": f"doc_{number}"} for number, (label, split) in chosen.items()))


@given(SIDE, SIDE)
def test_every_difference_stands_in_one_frame(before, after):
    old, new = side(before), side(after)
    found = diff(old, new)
    same = {row[:2] for row in old.select("id", "split").rows()} & {row[:2] for row in new.select("id", "split").rows()}
    assert sorted([*found.removed["id"], *found.changed["old_id"], *(name for name, _ in same)]) == sorted(old["id"])
    assert sorted([*found.added["id"], *found.changed["new_id"], *(name for name, _ in same)]) == sorted(new["id"])
    assert found.counts["old"].sum() == len(old)
    assert found.counts["new"].sum() == len(new)


def test_each_cause():
    wrong, right = record("a", "yes", number=1), record("a", "no", number=9)
    right |= {"supersedes": wrong["id"], "origin": "feedback"}
    moved, there = record("b", number=2), record("b", split="test", number=2)
    told, retold = record("c", "yes", number=3), record("c", "no", number=3)
    retold |= {"document_id": told["document_id"]}
    gone, come = record("d", number=4), record("e", number=5)
    found = diff(records(wrong, moved, told, gone), records(right, there, retold, come))
    assert found.changed.select("cause", "old_id", "new_id", "old_label", "new_label", "old_split", "new_split").rows() == [
        ("moved", moved["id"], there["id"], "yes", "yes", "train", "test"),
        ("relabelled", told["id"], retold["id"], "yes", "no", "train", "train"),
        ("superseded", wrong["id"], right["id"], "yes", "no", "train", "train"),
    ]
    assert found.removed["id"].to_list() == [gone["id"]]
    assert found.added["id"].to_list() == [come["id"]]
    assert found.counts.rows() == [("train", 4, 3), ("validation", 0, 0), ("calibration", 0, 0), ("test", 0, 1)]
