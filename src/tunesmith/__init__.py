"""Tunesmith turns an open model into your team's model and keeps it good.

    from tunesmith import Project, flow

    project = Project.load("my-project")
    dataset = flow.prepare(project)
    run = flow.train(project, dataset)
    evaluation = flow.evaluate(project, run)
    model_version, verdict = flow.register(project, run, evaluation)
    answers = flow.predict(project, ["I was charged twice for the same purchase."])

Each arrow is one function of `flow`; the nouns are here. Importing this loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith import flow
    from tunesmith.entities import (
        DatasetVersion,
        Deployment,
        Document,
        Evaluation,
        Feedback,
        ModelVersion,
        Prediction,
        Record,
        Run,
    )
    from tunesmith.errors import TunesmithError
    from tunesmith.project import Progress, Project

__version__ = version("tunesmith")

_HOME = {
    "tunesmith.entities": ("DatasetVersion", "Deployment", "Document", "Evaluation", "Feedback", "ModelVersion", "Prediction", "Record", "Run"),
    "tunesmith.errors": ("TunesmithError",),
    "tunesmith.project": ("Progress", "Project"),
}

__all__ = [
    "DatasetVersion",
    "Deployment",
    "Document",
    "Evaluation",
    "Feedback",
    "ModelVersion",
    "Prediction",
    "Progress",
    "Project",
    "Record",
    "Run",
    "TunesmithError",
    "flow",
]


def __getattr__(name: str) -> Any:
    # Public names are imported when they are first used: the stages bring libraries that a look at the help does not need.
    home = next((module for module, names in _HOME.items() if name in names), None)
    if home is None and name != "flow":
        raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
    value = getattr(import_module(home), name) if home else import_module("tunesmith.flow")
    globals()[name] = value
    return value
