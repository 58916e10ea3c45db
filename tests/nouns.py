"""Nouns to write to a store, with everything that does not matter filled in."""

import hashlib

from tunesmith.entities import DatasetVersion, Deployment, Evaluation, Feedback, ModelVersion, Prediction, Run, new_id, utc_now

LABELS = ("card", "loan", "mortgage")


def dataset(name="dsv_1", **fields):
    facts = {"path": f"datasets/{name}", "sha256": "", "rows": {"train": 1}, "dropped": {}, "labels": LABELS, "created_at": utc_now()}
    return DatasetVersion(id=name, **{**facts, **fields})


def run(name="run_1", dataset_version_id="dsv_1"):
    return Run(
        id=name,
        dataset_version_id=dataset_version_id,
        path=f".tunesmith/runs/{name}",
        base_model="base",
        base_sha256="",
        strategy="lora",
        seed=0,
        steps=1,
        train_loss=1.0,
        seconds=1.0,
        peak_memory_bytes=1,
        supervised_tokens=1,
        tokens=1,
        machine="",
        weights_sha256="",
        created_at=utc_now(),
    )


def evaluation(name="evl_1", run_id="run_1", dataset_version_id="dsv_1"):
    return Evaluation(id=name, run_id=run_id, dataset_version_id=dataset_version_id, path="", n_test=10, accuracy=0.5, seconds=1.0, created_at=utc_now())


def model_version(name="mdl_1", run_id="run_1", evaluation_id="evl_1"):
    return ModelVersion(id=name, run_id=run_id, evaluation_id=evaluation_id, name="letters", version=1, path="", sha256="", created_at=utc_now())


def deployment(name="dep_1", champion="mdl_1"):
    return Deployment(id=name, name="letters", variants={"champion": champion}, created_at=utc_now())


def prediction(text="a text", label="card", confidence=0.5, **fields):
    facts = {
        "id": new_id("prd"),
        "deployment_id": "dep_1",
        "model_version_id": "mdl_1",
        "variant": "champion",
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "confidence_raw": confidence,
        "scores": {name: float(name == label) for name in LABELS},
        "latency_seconds": 0.01,
        "created_at": utc_now(),
    }
    return Prediction(text=text, label=label, confidence=confidence, **{**facts, **fields})


def judgement(prediction_id, kind, value, event_id=""):
    return Feedback.judge(LABELS, prediction_id=prediction_id, event_id=event_id or new_id("evt"), kind=kind, value=value, actor="tester")
