"""What becomes of evaluations while a run learns, of its best step and of early stopping.

Here all of that hangs on `train.eval_steps`, a number of steps; the peers also count in epochs and in shares of the steps, which
are numbers only where the file sets `max_steps`. Two defaults differ: here the best step is the result wherever there are
evaluations, and an evaluation takes the first `train.max_eval_samples` records. Read from transformers 5.24,
src/transformers/training_args.py and trainer_callback.py (EarlyStoppingCallback).
"""

from __future__ import annotations

import math
from typing import Any

from tunesmith.passport.sheet import HOLDS, Convert, Sheet, boolean, default_of, is_on, whole

_EVERY = "train.eval_steps"
_PLAN = "Evaluations are counted in steps here: `tunesmith plan` tells the steps of a run; set train.eval_steps."
_NEEDS = "Counts on evaluations: set train.eval_steps with it."
_PATIENCE = ("early_stopping_patience", "early_stopping_steps")
_METRICS = {
    "loss": "loss", "eval_loss": "loss", "macro_f1": "macro_f1", "eval_macro_f1": "macro_f1",
    "accuracy": "accuracy", "eval_accuracy": "accuracy", "mean_token_accuracy": "accuracy", "eval_mean_token_accuracy": "accuracy",
}  # fmt: skip


def by_strategy(sheet: Sheet, logging_steps: int | None) -> tuple[str, float | None]:
    """Read `eval_strategy` and `eval_steps`.

    Args:
        sheet: The file.
        logging_steps: The peer's default of `logging_steps`, by which it evaluates where `eval_steps` is left out; None where that depends on the data.

    Returns:
        The key that says how often, and the steps between evaluations, a share of all steps below 1; None where nothing is evaluated, or it cannot be said.
    """
    key = "evaluation_strategy" if sheet.has("evaluation_strategy") and not sheet.has("eval_strategy") else "eval_strategy"
    value, steps = sheet.take(key), sheet.take_number("eval_steps")
    if value in (None, False, "no"):
        if value is not None:
            sheet.tell(key, "kept", HOLDS, changes_results=False)
        if steps is not None:
            sheet.tell("eval_steps", "kept", "Nothing is evaluated there without eval_strategy: steps; nothing is written.", changes_results=False)
        return key, None
    if value == "steps" and steps:
        sheet.tell(key, "kept", "Part of train.eval_steps.", ours=_EVERY, changes_results=False)
        return "eval_steps", steps
    if steps is not None:
        sheet.tell("eval_steps", "kept", "eval_strategy holds; nothing is written.", changes_results=False)
    logged = sheet.values.get("logging_steps", logging_steps)
    if value == "steps" and isinstance(logged, int) and logged > 0:
        return key, logged
    sheet.tell(key, "not_supported", _PLAN, ours=_EVERY, changes_results=_decides(sheet))
    return key, None


def tell_evaluations(sheet: Sheet, key: str, steps: float | None, *, best: bool = False) -> None:
    """Say what becomes of evaluations, of the best step and of early stopping.

    Args:
        sheet: The file.
        key: The peer's key that says how often is evaluated.
        steps: Steps between evaluations, a share of all steps below 1; None where nothing is evaluated, or `key` is told already.
        best: Whether the best step is the result there where the file does not say so.
    """
    evaluates = steps is not None and _tell_steps(sheet, key, steps, best or _decides(sheet))
    _tell_best(sheet, evaluates, best)
    _tell_metric(sheet, evaluates)
    for patience in _PATIENCE:
        value = sheet.take(patience) if patience in sheet.peer.keys else None
        if value is not None and evaluates:
            _write(sheet, patience, "train.early_stopping_patience", value, whole)
        elif value is not None:
            sheet.tell(patience, "not_supported", _NEEDS, ours="train.early_stopping_patience")


def _decides(sheet: Sheet) -> bool:
    """Whether an evaluation changes the result, by what the file says."""
    return is_on(sheet.values.get("load_best_model_at_end")) or any(sheet.has(key) for key in _PATIENCE)


def _tell_steps(sheet: Sheet, key: str, steps: float, decides: bool) -> bool:
    """Write `train.eval_steps`; return whether that was possible."""
    note = f"On the first {default_of('train.max_eval_samples', {})} records of validation here: train.max_eval_samples."
    if key.endswith("strategy"):
        note = f"As often as logging_steps there. {note}"
    if 0 < steps < 1:
        most = sheet.values.get("max_steps")
        if not isinstance(most, int) or most <= 0:
            sheet.tell(key, "not_supported", _PLAN, ours=_EVERY, changes_results=decides)
            return False
        steps, note = math.ceil(most * steps), f"A share of the {most} steps. {note}"
    return _write(sheet, key, _EVERY, steps, whole, note, changes_results=decides)


def _tell_best(sheet: Sheet, evaluates: bool, best: bool) -> None:
    key, ours = "load_best_model_at_end", "train.load_best_model_at_end"
    value = sheet.take(key)
    if evaluates and value is None:
        sheet.write(key, ours, best, "The weights of the last step are the result there.", given=best, default=True)
    elif evaluates:
        _write(sheet, key, ours, value, boolean)
    elif is_on(value):
        sheet.tell(key, "not_supported", _NEEDS, ours=ours)


def _tell_metric(sheet: Sheet, evaluates: bool) -> None:
    key, ours = "metric_for_best_model", "train.metric_for_best_model"
    value, greater = sheet.take(key), sheet.take("greater_is_better")
    metric = "loss" if value is None else _METRICS.get(str(value), "")
    if value is not None and not metric:
        sheet.tell(key, "not_supported", f"Here it is {', '.join(dict.fromkeys(_METRICS.values()))}.", ours=ours)
    elif value is not None and evaluates:
        sheet.write(key, ours, metric, "The share of right documents here; of right tokens there." if metric == "accuracy" else "")
    elif value is not None:
        same = metric == "loss"
        sheet.tell(key, "kept" if same else "not_supported", HOLDS if same else _NEEDS, ours=ours, changes_results=not same)
    if greater is not None and metric:
        same = is_on(greater) == (metric != "loss")
        note = HOLDS if same else "Here more of a metric is better, and less loss."
        sheet.tell("greater_is_better", "kept" if same else "not_supported", note, changes_results=not same)


def _write(sheet: Sheet, key: str, ours: str, value: Any, convert: Convert, note: str = "", *, changes_results: bool = True) -> bool:
    try:
        return sheet.write(key, ours, convert(value), note, changes_results=changes_results)
    except ValueError as error:
        sheet.tell(key, "not_supported", str(error), ours=ours, changes_results=changes_results)
        return False
