"""The whole loop, one function an arrow.

    prepare -> plan -> train -> evaluate -> calibrate -> register -> predict -> judge -> renew
    documents  dataset   run    evaluation  calibrator   model       prediction feedback  the next dataset version
               version                                   version

Each function takes a project, does its arrow or finds that it was done for the same inputs, and returns the noun. The
CLI and Python users call the same functions. A killed function is called again and continues.
"""

from tunesmith.flow.audit import Audit, audit
from tunesmith.flow.dataset import compare_datasets, data_report_of, nearest_records, newest_dataset, prepare, read
from tunesmith.flow.evaluation import Calibration, calibrate, evaluate, evaluation_of
from tunesmith.flow.loop import Outcome, finish, renew, run
from tunesmith.flow.registration import CHAMPION, register
from tunesmith.flow.serving import deploy, load_predictor, predict
from tunesmith.flow.training import plan, run_id, run_plan, train

__all__ = [
    "CHAMPION",
    "Audit",
    "Calibration",
    "Outcome",
    "audit",
    "calibrate",
    "compare_datasets",
    "data_report_of",
    "deploy",
    "evaluate",
    "evaluation_of",
    "finish",
    "load_predictor",
    "nearest_records",
    "newest_dataset",
    "plan",
    "predict",
    "prepare",
    "read",
    "register",
    "renew",
    "run",
    "run_id",
    "run_plan",
    "train",
]
