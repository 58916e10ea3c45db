"""A model version on disk: everything that its answers depend on, in one folder.

    weights/            what was learnt: an adapter in PEFT's layout, or a whole model
    model.json          base model, task, prompt and precision
    calibrator.json     from logits to honest confidences
    acceptance.json     which answers need no review
    fields.json         of an extraction: field -> its calibrator, and that of the fields that have none of their own
    chat_template.jinja the template that it was trained with; empty for an encoder
    README.md           the model card
    routing.json        with children: the threshold of the router, and of each child its document type, run and calibrator
    children/N/         the adapter of each child
    router/             what picks the adapter for a text
    manifest.json       SHA-256 of every other file

The folder is read again only if every digest is right, and holds safetensors and text alone: loading it runs no code.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tunesmith.errors import DataError, NotFoundError
from tunesmith.files import file_sha256
from tunesmith.models.catalog import resolve_base
from tunesmith.models.engine import Engine, load_prompt, resolve
from tunesmith.models.generator import Generator, load_answerer
from tunesmith.models.routed import RoutedEngine
from tunesmith.models.router import Router, TextRouter
from tunesmith.models.settings import ConfidenceSection, ModelSection, TaskSection
from tunesmith.models.tokens import Keep
from tunesmith.models.weights import WEIGHTS_FOLDER, fits_fast_pass

MANIFEST = "manifest.json"
_ROUTING, _ROUTER = "routing.json", "router"
_ACCEPTANCE, _FIELDS = "acceptance.json", "fields.json"


class ModelFile(BaseModel):
    """What model.json holds.

    Attributes:
        base_sha256: digest that the base model's weights must have.
        model: the section `model`, resolved when it was trained.
        max_length, truncate_keep: where a text is cut.
        confidence: how it tells how sure it is of a written answer, as it was evaluated and calibrated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    base_sha256: str
    license: str
    source: str
    model: ModelSection
    task: TaskSection
    max_length: int
    truncate_keep: Keep
    confidence: ConfidenceSection = ConfidenceSection()


class ChildFile(BaseModel):
    """What routing.json holds of a child."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    document_type: str
    run_id: str
    folder: str
    calibrator: dict[str, Any]


class RoutingFile(BaseModel):
    """What routing.json holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    threshold: float
    children: tuple[ChildFile, ...]


class AcceptanceFile(BaseModel):
    """What acceptance.json holds: the least confidence before calibration of an answer that needs no review (None accepts none), and what is promised."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    rule: str
    threshold: float | None
    max_error: float
    delta: float


@dataclass(frozen=True)
class Artifact:
    """A model version's folder whose digests were checked.

    Attributes:
        calibrator: Of the run that learnt all records.
        routing: The children and the router's threshold; None where one adapter answers all.
        acceptance: Which answers need no review; None with children, whose answers the promise is not about.
        fields: Field -> calibrator, see `confidence.EVERY_FIELD`; empty where none was fitted.
    """

    folder: Path
    model: ModelFile
    calibrator: dict[str, Any]
    routing: RoutingFile | None = None
    acceptance: AcceptanceFile | None = None
    fields: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def engine(self, root: Path, *, batch_size: int = 32) -> Engine | Generator | RoutedEngine:
        """Load the model as it was evaluated.

        Args:
            root: The project's folder, where a relative base model path starts.
            batch_size: Texts a forward pass.

        Raises:
            DataError: the base model has other weights than the ones that it was trained on.
        """
        base = resolve_base(self.model.model, root)
        if base.sha256 != self.model.base_sha256:
            raise DataError(f"{self.folder.name} needs the base model with sha256 {self.model.base_sha256}. Received: {base.sha256}.")
        prompt = load_prompt(base.path, self.model.task, self.model.max_length, self.model.truncate_keep)
        trained_with = (self.folder / "chat_template.jinja").read_text(encoding="utf-8")
        if (prompt.tokenizer.chat_template or "") != trained_with:
            raise DataError(f"The chat template must be the one that {self.folder.name} was trained with. Received: another one from {base.path}.")
        # Precision as trained; the forward pass is chosen for the machine that answers.
        weights = self.folder / WEIGHTS_FOLDER
        plain = self.model.model.model_copy(update={"forward": "auto"})
        section = resolve(plain, base.path, fits_fast_pass=fits_fast_pass(weights), n_labels=len(self.model.task.labels))
        if self.routing is None:
            return load_answerer(base.path, prompt, section, weights=weights, batch_size=batch_size, confidence=self.model.confidence)
        router = Router.load(self.folder / _ROUTER)
        if router is None:
            raise NotFoundError(f"{self.folder.name} needs its router. Received: none.", hint="tunesmith register")
        children = {child.document_type: self.folder / child.folder for child in self.routing.children}
        routes, threshold = TextRouter(router, root), self.routing.threshold
        return RoutedEngine(base.path, prompt, section, weights=weights, children=children, router=routes, threshold=threshold, batch_size=batch_size)


def write_artifact(
    folder: Path,
    *,
    weights: Path,
    model: ModelFile,
    calibrator: Mapping[str, Any],
    chat_template: str,
    card: str,
    routing: RoutingFile | None = None,
    router: Router | None = None,
    children: Mapping[str, Path] | None = None,
    acceptance: AcceptanceFile | None = None,
    fields: Mapping[str, dict[str, Any]] | None = None,
) -> str:
    """Write a model version's folder by write-then-rename.

    Args:
        folder: Where to.
        weights: What the run learnt.
        model: What model.json will hold.
        calibrator: What calibrator.json will hold.
        chat_template: The template that it was trained with.
        card: The model card.
        routing: What routing.json will hold; None where one adapter answers all.
        router: Picks the adapter, where there are several.
        children: Document type -> weights of the children that `routing` names.
        acceptance: What acceptance.json will hold.
        fields: What fields.json will hold.

    Returns:
        The manifest's SHA-256, which stands for all files.
    """
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(weights, partial / WEIGHTS_FOLDER)
    files = {
        "model.json": model.model_dump_json(indent=2),
        "calibrator.json": json.dumps(calibrator, indent=2),
        "chat_template.jinja": chat_template,
        "README.md": card,
    }
    for name, text in files.items():
        (partial / name).write_text(text, encoding="utf-8")
    if routing and router and children:
        (partial / _ROUTING).write_text(routing.model_dump_json(indent=2), encoding="utf-8")
        router.save(partial / _ROUTER)
        for child in routing.children:
            shutil.copytree(children[child.document_type], partial / child.folder)
    if acceptance:
        (partial / _ACCEPTANCE).write_text(acceptance.model_dump_json(indent=2), encoding="utf-8")
    if fields:
        (partial / _FIELDS).write_text(json.dumps(fields, indent=2), encoding="utf-8")
    digests = {str(path.relative_to(partial)): file_sha256(path) for path in sorted(partial.rglob("*")) if path.is_file()}
    (partial / MANIFEST).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return file_sha256(folder / MANIFEST)


def open_artifact(folder: Path, sha256: str) -> Artifact:
    """Check a model version's folder and read it.

    Args:
        folder: The folder.
        sha256: Digest of its manifest, as the model version holds it.

    Raises:
        NotFoundError: there is no such folder.
        DataError: a file is missing, was changed, or does not belong there.
    """
    if not (folder / MANIFEST).exists():
        raise NotFoundError(f"No model version in {folder}.", hint="tunesmith register")
    expected = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    found = {str(path.relative_to(folder)): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if file_sha256(folder / MANIFEST) != sha256:
        wrong.append(MANIFEST)
    if wrong:
        raise DataError(f"Every file of {folder.name} must match its manifest. Changed, missing or added: {', '.join(wrong)}.", hint="tunesmith register")
    model = ModelFile.model_validate_json((folder / "model.json").read_text(encoding="utf-8"))
    routing = RoutingFile.model_validate_json((folder / _ROUTING).read_text(encoding="utf-8")) if _ROUTING in expected else None
    acceptance = AcceptanceFile.model_validate_json((folder / _ACCEPTANCE).read_text(encoding="utf-8")) if _ACCEPTANCE in expected else None
    fields = json.loads((folder / _FIELDS).read_text(encoding="utf-8")) if _FIELDS in expected else {}
    return Artifact(folder, model, json.loads((folder / "calibrator.json").read_text(encoding="utf-8")), routing, acceptance, fields)
