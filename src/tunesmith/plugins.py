"""All built-in plug-ins at one glance, and the door for third parties.

YAML names a plug-in; this table says where it lives. A package adds its own with an entry point in the group
`tunesmith.SEAM`, for example `tunesmith.calibrator`. Nothing is imported before it is used.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from tunesmith.errors import ConfigError

BUILT_IN: dict[str, dict[str, str]] = {
    "calibrator": {
        "temperature": "tunesmith.evaluate.calibration:Temperature",
        "platt": "tunesmith.evaluate.calibration:Platt",
        "beta": "tunesmith.evaluate.calibration:Beta",
        "isotonic": "tunesmith.evaluate.calibration:Isotonic",
        "logistic": "tunesmith.evaluate.calibration:Logistic",
        "none": "tunesmith.evaluate.calibration:Uncalibrated",
    },
    "data_engine": {
        "local": "tunesmith.data.engine:LocalEngine",
        "ray": "tunesmith.data.engine:RayEngine",
    },
    "ocr": {
        "tesseract": "tunesmith.data.ocr:Tesseract",
        "tesserocr": "tunesmith.data.ocr:Tesserocr",
        "rapidocr": "tunesmith.data.ocr:RapidOcr",
        "http": "tunesmith.data.ocr:HttpOcr",
    },
    "strategy": {
        "full": "tunesmith.train.strategies:Full",
        "lora": "tunesmith.train.strategies:Lora",
        "qlora": "tunesmith.train.strategies:QLora",
        "prefix": "tunesmith.train.strategies:Prefix",
    },
    "tracker": {
        "mlflow": "tunesmith.tracking.mlflow:MlflowTracker",
        "wandb": "tunesmith.tracking.wandb:WandbTracker",
    },
}


def available(seam: str) -> dict[str, str]:
    """Return name -> `module:attribute` of every plug-in of a seam, third-party ones included."""
    return BUILT_IN[seam] | {point.name: point.value for point in entry_points(group=f"tunesmith.{seam}")}


def load(seam: str, name: str) -> Any:
    """Import a plug-in by its name.

    Raises:
        ConfigError: no plug-in of that seam has the name.
    """
    known = available(seam)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(
            f"{seam} must be one of {', '.join(sorted(known))}. Received: {name!r}.",
            hint=f"Did you mean {near[0]!r}?" if near else "",
        )
    module, _, attribute = known[name].partition(":")
    return getattr(import_module(module), attribute)
