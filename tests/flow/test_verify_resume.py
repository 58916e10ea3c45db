"""`tunesmith train --verify-resume` proves what it says, and says when it is not so."""

import os

from tunesmith.errors import BackendError

SETTINGS = ("--set", "train.save_steps=4", "--set", "train.eval_steps=3", "--set", "train.report_to=[]")

# Loaded by every Python that starts: batches in an order that no seed decides.
UNSEEDED = """
import os, sys
if "tunesmith.train.worker" in sys.orig_argv:
    import tunesmith.models.batch as batch
    seeded = batch.length_grouped
    batch.length_grouped = lambda *arguments, seed: seeded(*arguments, seed=int.from_bytes(os.urandom(4)))
"""


def test_a_killed_twin_continues_to_the_same_bits(fresh, cli):
    result = cli("train", "-C", fresh, "--verify-resume", "--json", *SETTINGS)
    assert result.code == 0, result.err
    told = result.json
    assert (told["checkpoint"], told["steps"]) == (4, [5, 9])
    assert [line["step"] for line in told["lines"] if "loss" in line] == [5, 6, 7, 8, 9]
    assert [line["step"] for line in told["lines"] if "eval_loss" in line] == [6]
    assert not list(fresh.glob(".tunesmith/runs/*")), "nothing was trained"


def test_what_is_drawn_without_a_seed_is_found(fresh, tmp_path, cli, monkeypatch):
    (tmp_path / "unseeded").mkdir()
    (tmp_path / "unseeded" / "sitecustomize.py").write_text(UNSEEDED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path / "unseeded"), os.environ.get("PYTHONPATH", ""))))
    result = cli("train", "-C", fresh, "--verify-resume", *SETTINGS)
    assert result.code == BackendError.exit_code
    assert "must continue with the same figures. Received at step 5: loss" in result.err
