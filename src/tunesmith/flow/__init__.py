"""The whole loop, one function an arrow.

    prepare -> plan -> train -> evaluate -> calibrate -> register -> predict -> judge -> renew
    documents  dataset   run    evaluation  calibrator   model       prediction feedback  the next dataset version
               version                                   version

Beside the loop: compare and sweep, many runs from which validation chooses; prefer, run and feedback -> run; audit -> review -> the
next dataset version; and what people do with versions (show, push, pull, withdraw).

Each function takes a project, does its arrow or finds that it was done for the same inputs, and returns the noun. The
CLI and Python users call the same functions. A killed function is called again and continues.
"""

from tunesmith.flow.adapters import child_types, children_of, measured_parts, plan_parts, train_adapters
from tunesmith.flow.audit import audit
from tunesmith.flow.comparison import Comparison, compare
from tunesmith.flow.dataset import compare_datasets, data_report_of, nearest_records, newest_dataset, prepare, read
from tunesmith.flow.evaluation import Calibration, calibrate, evaluate, evaluation_of
from tunesmith.flow.loop import Outcome, finish, renew, run
from tunesmith.flow.models import Selection, select
from tunesmith.flow.parts import Part, total
from tunesmith.flow.preference import prefer, preferences, preferences_in_words, starting_run
from tunesmith.flow.registration import CHAMPION, register
from tunesmith.flow.review import ask_reviewers, export_review, import_review, review_state
from tunesmith.flow.serving import deploy, load_predictor, predict
from tunesmith.flow.stages import stage_table
from tunesmith.flow.suites import run_suites
from tunesmith.flow.sweep import Sweep, sweep
from tunesmith.flow.training import plan, refuse_missing_kernels, run_id, run_plan, train
from tunesmith.flow.verification import Verified, verify_resume
from tunesmith.flow.versions import checkout, pull, push, show_dataset, withdraw

__all__ = [
    "CHAMPION",
    "Calibration",
    "Comparison",
    "Outcome",
    "Part",
    "Selection",
    "Sweep",
    "Verified",
    "ask_reviewers",
    "audit",
    "calibrate",
    "checkout",
    "child_types",
    "children_of",
    "compare",
    "compare_datasets",
    "data_report_of",
    "deploy",
    "evaluate",
    "evaluation_of",
    "export_review",
    "finish",
    "import_review",
    "load_predictor",
    "measured_parts",
    "nearest_records",
    "newest_dataset",
    "plan",
    "plan_parts",
    "predict",
    "prefer",
    "preferences",
    "preferences_in_words",
    "prepare",
    "pull",
    "push",
    "read",
    "refuse_missing_kernels",
    "register",
    "renew",
    "review_state",
    "run",
    "run_id",
    "run_plan",
    "run_suites",
    "select",
    "show_dataset",
    "stage_table",
    "starting_run",
    "sweep",
    "total",
    "train",
    "train_adapters",
    "verify_resume",
    "withdraw",
]
