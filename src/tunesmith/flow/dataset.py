"""documents -> dataset version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tunesmith.data.address import fingerprint, is_remote
from tunesmith.data.chunk import Embed
from tunesmith.data.diff import Difference, diff
from tunesmith.data.freeze import freeze, read_records
from tunesmith.data.nearest import nearest
from tunesmith.data.prepare import Prepared, prepare_records
from tunesmith.data.read import RANK_SCHEMA, read_documents
from tunesmith.data.report import data_report, page_pictures, render_html, render_json
from tunesmith.data.settings import Source
from tunesmith.data.sifted import no_rows
from tunesmith.data.sources import Tools
from tunesmith.data.versioning import version_with_dvc
from tunesmith.data.withdrawn import FILE as WITHDRAWN_FILE
from tunesmith.data.withdrawn import read_withdrawals
from tunesmith.entities import DatasetVersion, Record, Run, content_id, utc_now
from tunesmith.errors import DataError
from tunesmith.files import file_sha256
from tunesmith.flow.review import corrections
from tunesmith.models.json_answers import AnswerRule, plain
from tunesmith.project import Project, needs_extra
from tunesmith.review.decisions import Corrections
from tunesmith.review.harvest import Harvest

if TYPE_CHECKING:
    from tunesmith.models.embed import Embedder

_TELLING = 40
"""Characters from which on a text that stands inside another one does so for no chance."""


def prepare(project: Project, *, fresh: bool = False) -> DatasetVersion:
    """Read, validate, deduplicate and split the documents, and freeze them as a dataset version.

    The newest dataset version becomes the parent, so that no old record changes its split; unchanged inputs return it.

    Args:
        project: The project.
        fresh: Start without a parent.

    Raises:
        NotFoundError: a source does not exist.
        DataError: a source cannot be read or used.
    """
    head = None if fresh else newest_dataset(project)
    if head is not None and set(head.labels) != set(project.config.task.names):
        raise DataError(
            f"A dataset version keeps the label space of its parent. {head.id} has: {'; '.join(head.labels)}. "
            f"Received: {'; '.join(project.config.task.names)}.",
            hint="tunesmith prepare --fresh",
        )
    return next_version(project, head)


def newest_dataset(project: Project) -> DatasetVersion | None:
    """Return the dataset version made last, or None."""
    versions = project.store.all(DatasetVersion)
    return versions[-1] if versions else None


def next_version(project: Project, parent: DatasetVersion | None, harvest: Harvest | None = None, because: str = "") -> DatasetVersion:
    """Freeze the version that follows a parent, with the records of judgements where some were harvested; unchanged inputs return the parent."""
    with project.step("prepare") as done:
        queried = {source.path: read_documents(source, project.root) for source in project.config.data.sources if source.path.lower().endswith(".sql")}
        inputs = _input_digest(project, queried)
        previous = read(project, parent) if parent else None
        reviewed = corrections(project, no_rows(Record.frame_schema()) if previous is None else previous)
        if parent is not None and parent.inputs == inputs and harvest is None and not reviewed.pending and not because:
            if project.config.data.dvc:
                version_with_dvc(project.root, parent, parent.reason)
            done(_rows(parent), skipped=True)
            return parent
        judged = _judged(harvest, reviewed)
        sifted = prepare_records(
            project.config.data,
            project.config.task.names,
            project.root,
            previous,
            judged,
            lambda what, at, n: project.progress.advance(at, n, what),
            replace(_tools(project), queried=queried),
            project.config.project,
            read_withdrawals(project.root),
            reviewed.discarded,
            _answer_rule(project),
        )
        said = [f"{len(harvest.feedback)} judgements"] if harvest else []
        said += [f"{reviewed.pending} records corrected in review"] if reviewed.pending else []
        reason = because or ", ".join(said) or ("sources or settings changed" if parent else "first version")
        version = freeze(
            sifted.kept,
            sifted.dropped,
            project.root,
            project.config.project,
            project.config.task.names,
            parent,
            reason,
            _settings(project),
            project.store,
            project.config.data.dvc,
            inputs=inputs,
            feedback=harvest.feedback if harvest else (),
            facts={"redacted": sifted.redacted} if project.config.data.redact.enabled else {},
            extra={"blocks.parquet": sifted.blocks, "pages.parquet": sifted.pages, **_report(project, sifted, reason)},
        )
        done(_rows(version))
        return version


def _answer_rule(project: Project) -> AnswerRule | None:
    """Return what judges the labels of an extraction, None for other tasks."""
    return AnswerRule(project.config.task.json_schema) if project.config.task.type == "extraction" else None


def _judged(harvest: Harvest | None, reviewed: Corrections) -> pl.DataFrame:
    """Join the records of judgements and of review items; where both correct one record, the judgement of its answer counts."""
    if harvest is None:
        return reviewed.records
    return pl.concat([harvest.records, reviewed.records.join(harvest.records, on="supersedes", how="anti")])


def _tools(project: Project) -> Tools:
    """Return what the settings ask for: the base model's tokenizer and the embedding model to cut chunks, static embeddings to find copies and leaks."""
    section = project.config.data
    tools = Tools()
    if section.dedup.semantic or section.contamination.benchmarks:
        with needs_extra("data"):
            from tunesmith.models.static_embed import StaticEmbedder
        tools = Tools(embed_static=StaticEmbedder(section.embedding_model, project.root).encode)
    if section.chunk is None:
        return tools
    from tunesmith.models.engine import load_tokenizer

    tokenizer = load_tokenizer(project.base.path)
    return replace(tools, count_tokens=lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]), embed=_embedder(project))


def _report(project: Project, prepared: Prepared, reason: str) -> dict[str, str]:
    """Return report.json and report.html of what was prepared."""
    facts = {"project": project.config.project, "reason": reason, "labels": project.config.task.names}
    report = data_report(prepared.kept, prepared.dropped, prepared.pages, prepared.checks, prepared.redacted, prepared.benchmarks, facts)
    # A picture would show what was taken out of the text.
    draw = len(prepared.pages) and not project.config.data.redact.enabled
    sources = dict(
        pl.concat([prepared.kept.select("document_id", "source"), prepared.dropped.select("id", "source").rename({"id": "document_id"})]).iter_rows()
    )
    pictures = page_pictures(project.root, sources, prepared.pages, prepared.blocks) if draw else {}
    return {"report.json": render_json(report), "report.html": render_html(report, pictures)}


def data_report_of(project: Project, dataset: DatasetVersion) -> dict[str, Any]:
    """Return report.json of a dataset version; empty for one of an earlier release, which had none."""
    path = project.root / dataset.path / "report.json"
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return report


def embed_texts(project: Project, texts: Sequence[str], progress: Callable[[int, int], None] | None = None) -> NDArray[np.float32]:
    """Return unit vectors of texts by `data.embedding_model`, shape (n_texts, n_dimensions).

    Args:
        project: The project.
        texts: What to read.
        progress: Called with texts read and texts in all; equal ones count once.

    Raises:
        NotFoundError: the model's package is not installed, or its folder does not exist.
    """
    return embedding_model(project).encode(texts, progress)


def embedding_model(project: Project) -> Embedder:
    """Open `data.embedding_model`, once a process.

    Raises:
        NotFoundError: the model's package is not installed, or its folder does not exist.
    """
    with needs_extra("data"):
        return _open_embedder(project.config.data.embedding_model, project.root)


def _embedder(project: Project) -> Embed:
    """Return what embeds texts here or in a worker elsewhere: it travels as the model's address."""
    return partial(_embed, model=project.config.data.embedding_model, root=project.root)


def _embed(texts: Sequence[str], *, model: str, root: Path) -> NDArray[np.float32]:
    with needs_extra("data"):
        return _open_embedder(model, root).encode(texts)


@cache
def _open_embedder(model: str, root: Path) -> Embedder:
    from tunesmith.models.embed import Embedder

    return Embedder(model, root)


def _input_digest(project: Project, queried: Mapping[str, pl.DataFrame]) -> str:
    """Identify what a dataset version is made from: the sources' and benchmarks' bytes, the settings and the label space."""
    # A query may stand still while the database does not.
    digests = [_rows_digest(queried[each.path]) if each.path in queried else _source_digest(project.root, each) for each in project.config.data.sources]
    benchmarks = [_source_digest(project.root, Source(path=path)) for path in project.config.data.contamination.benchmarks]
    withdrawn = [one.document_id for one in read_withdrawals(project.root)]
    optional = [part for part in (benchmarks, withdrawn, project.config.task.json_schema) if part]
    return content_id("inp", digests, _settings(project), project.config.task.names, *optional)


def _settings(project: Project) -> dict[str, Any]:
    """Return the settings that decide what is in a dataset version; where it is made is none of them."""
    settings = project.config.data.model_dump(mode="json", exclude={"engine": True, "ray_address": True, "ocr": {"n_workers"}})
    # Left out where empty, so that versions from before there were document types are still recognised.
    without = {"document_type", "document_type_column"}
    settings["sources"] = [{key: value for key, value in source.items() if value or key not in without} for source in settings["sources"]]
    return settings


def _rows_digest(rows: pl.DataFrame) -> str:
    typed = ["document_type"] if (rows["document_type"] != "").any() else []
    return content_id("qry", rows.select("id", *RANK_SCHEMA, *typed).rows())


def _source_digest(root: Path, source: Source) -> object:
    """Return the digest of a file, or of each file of a folder, or what its server says of it; what is missing is found out where it is read."""
    labels = root / source.label_from
    if is_remote(source.path):
        tables = [file_sha256(labels)] if labels.is_file() else fingerprint(source.label_from) if is_remote(source.label_from) else []
        return [fingerprint(source.path) or utc_now(), tables]
    path = root / source.path
    if path.is_file():
        return file_sha256(path)
    if not path.is_dir():
        return None
    files = [*(found for found in sorted(path.rglob("*")) if found.is_file()), *([labels] if labels.is_file() else [])]
    return [(found.relative_to(root).as_posix(), file_sha256(found)) for found in files]


def _rows(version: DatasetVersion) -> str:
    kept = ", ".join(f"{count:,} {split}" for split, count in version.rows.items())
    return f"{version.id}: {kept}; {sum(version.dropped.values()):,} rows dropped with their reason"


def compare_datasets(project: Project, old_id: str, new_id: str) -> Difference:
    """Say which records two dataset versions differ in."""
    old, new = (project.store.get(DatasetVersion, version) for version in (old_id, new_id))
    return diff(read(project, old), read(project, new))


def nearest_records(project: Project, text: str, dataset: DatasetVersion, k: int = 3) -> pl.DataFrame:
    """Return the train records of a dataset version that are most like a text, with their source and line."""
    return nearest(text, read(project, dataset), k)


def refuse_leaked_examples(project: Project, dataset: DatasetVersion) -> None:
    """Refuse examples of the prompt that stand in a held-out split, where the prompt would tell answers that are then asked for, or that were withdrawn.

    Raises:
        DataError: names the example and the record or document. White space, case and typographic quotes make no difference.
    """
    for number, document in withdrawn_examples(project).items():
        raise DataError(
            f"An example of the prompt must not say what was taken back. Received: task.examples[{number}], whose text is of {document}, see {WITHDRAWN_FILE}.",
            hint=f"Take task.examples[{number}] out of {project.file.name}, or put another record of train in its place.",
        )
    shown = {plain(example.text): number for number, example in enumerate(project.config.task.examples)}
    if not shown:
        return
    records = read(project, dataset).select("id", "split", "text").sort("id")
    for identity, split, text in records.filter(pl.col("split") != "train").iter_rows():
        if plain(text) in shown:
            other = next((text for text in records.filter(pl.col("split") == "train")["text"] if plain(text) not in shown), "")
            raise DataError(
                f"An example of the prompt must stand in no held-out split. Received: task.examples[{shown[plain(text)]}], which is {identity} of {split}.",
                hint=f"Take a record of train, as {other[:120]!r}.",
            )


def withdrawn_examples(project: Project) -> dict[int, str]:
    """Return number of each example of the prompt that says the text of a withdrawn document, or a part of it -> that document's id."""
    examples = project.config.task.examples
    withdrawals = read_withdrawals(project.root) if examples else []
    if not withdrawals:
        return {}
    of_digest = {one.content_sha256: one.document_id for one in withdrawals}
    texts: dict[str, str] = {}
    for version in project.store.all(DatasetVersion):
        if (project.root / version.path).is_dir():
            records = read(project, version).filter(pl.col("document_id").is_in([*of_digest.values()]))
            texts |= {plain(text): document for text, document in records.select("text", "document_id").iter_rows()}
    found = {}
    for number, example in enumerate(examples):
        shown = plain(example.text)
        same = [document for text, document in texts.items() if shown == text or (min(len(shown), len(text)) >= _TELLING and (shown in text or text in shown))]
        document = next(iter(same), of_digest.get(hashlib.sha256(example.text.encode()).hexdigest()))
        if document:
            found[number] = document
    return found


def read(project: Project, dataset: DatasetVersion) -> pl.DataFrame:
    """Return the records of a dataset version."""
    return read_records(project.root, dataset)


def dataset_of(project: Project, run: Run) -> DatasetVersion:
    """Return the dataset version that a run learnt from."""
    return project.store.get(DatasetVersion, run.dataset_version_id)
