"""What all of a training will do and cost, a part each: the stages before the task, the run, and its children. What each cost stands beside it.

Parts are trained one after the other. So times add up, the peak memory is that of the largest, and of a finished part the disk keeps what it
learnt, and the base model that it was merged into. Sums take the low ends together and the high ends together, as if all
predictions erred the same way: an interval that is rather too wide.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.project import Project
    from tunesmith.train.plan import Estimate, Plan

PLAN_FILE = "plan.json"
FITTED_FILE = "fitted.json"


@dataclass(frozen=True)
class Part:
    """One training of several.

    Attributes:
        name: `stage domain`, `run`, `child invoice`.
        plan: What was, or is, predicted; None of what was trained without.
        merged_bytes: What is written beside, where weights are merged into the base model.
        is_trained: Whether it is there already, and will not be trained.
        seconds, peak_memory_bytes: What was measured then.
    """

    name: str
    plan: Plan | None
    merged_bytes: int = 0
    is_trained: bool = False
    seconds: float | None = None
    peak_memory_bytes: float | None = None

    @classmethod
    def trained(cls, name: str, folder: Path, took: dict[str, Any] | None) -> Part:
        """Return a part that is trained.

        Args:
            name: Its name.
            folder: Where its plan is.
            took: Holds `seconds` and `peak_memory_bytes`; None where they were not kept.
        """
        figures = {key: took[key] for key in ("seconds", "peak_memory_bytes")} if took else {}
        return cls(name, read_plan(folder), is_trained=True, **figures)

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON shows."""
        keys = {"rows", "steps", "tokens", "trainable_parameters", "peak_memory_bytes", "seconds", "disk_bytes"}
        planned = self.plan.model_dump(mode="json", include=keys) if self.plan else None
        measured = {"seconds": self.seconds, "peak_memory_bytes": self.peak_memory_bytes} if self.is_trained else None
        return {"name": self.name, "planned": planned, "measured": measured}


def save_plan(plan: Plan, folder: Path) -> None:
    """Write what was predicted into the folder of a part."""
    (folder / PLAN_FILE).write_text(plan.model_dump_json(indent=2), encoding="utf-8")


def read_plan(folder: Path) -> Plan | None:
    """Return what was predicted of a part."""
    from tunesmith.train.plan import Plan

    file = folder / PLAN_FILE
    return Plan.model_validate_json(file.read_text(encoding="utf-8")) if file.exists() else None


def read_fitted(folder: Path) -> dict[str, Any] | None:
    """Return what was measured of a part that is no run of its own, as `Fitted` holds it."""
    file = folder / FITTED_FILE
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None


def base_bytes(project: Project) -> int:
    """Return the size of the base model's weights on disk: what one merged with what was learnt has too."""
    return sum(file.stat().st_size for file in project.base.path.glob("*.safetensors"))


def total(parts: Sequence[Part]) -> Plan | None:
    """Return the plan of all that is yet to be trained: that of its last part, with the time, memory and disk of all; None where nothing is.

    Args:
        parts: In the order in which they are trained.
    """
    from tunesmith.train.plan import Estimate

    planned = [(part, part.plan) for part in parts if part.plan and not part.is_trained]
    if not planned:
        return None

    def combined(how: Any, of: Sequence[Estimate]) -> Estimate:
        return Estimate(low=how(each.low for each in of), expected=how(each.expected for each in of), high=how(each.high for each in of))

    kept = at_most = 0
    for part, plan in planned:
        at_most = max(at_most, kept + part.merged_bytes + plan.disk_bytes)
        kept += part.merged_bytes + 4 * plan.trainable_parameters
    seconds = combined(sum, [plan.seconds for _, plan in planned])
    memory = combined(max, [plan.peak_memory_bytes for _, plan in planned])
    return planned[-1][1].model_copy(update={"seconds": seconds, "peak_memory_bytes": memory, "disk_bytes": at_most})
