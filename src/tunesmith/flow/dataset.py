"""documents -> dataset version."""

from __future__ import annotations

import polars as pl

from tunesmith.data.diff import Difference, diff
from tunesmith.data.freeze import freeze, read_records
from tunesmith.data.nearest import nearest
from tunesmith.data.prepare import prepare_records
from tunesmith.data.versioning import version_with_dvc
from tunesmith.entities import DatasetVersion, Run, content_id
from tunesmith.errors import DataError
from tunesmith.files import file_sha256
from tunesmith.project import Project
from tunesmith.review.harvest import Harvest


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


def next_version(project: Project, parent: DatasetVersion | None, harvest: Harvest | None = None) -> DatasetVersion:
    """Freeze the version that follows a parent, with the records of judgements where some were harvested; unchanged inputs return the parent."""
    with project.step("prepare") as done:
        inputs = _input_digest(project)
        if parent is not None and parent.inputs == inputs and harvest is None:
            read(project, parent)
            if project.config.data.dvc:
                version_with_dvc(project.root, parent, parent.reason)
            done(_rows(parent), skipped=True)
            return parent
        previous = read(project, parent) if parent else None
        sifted = prepare_records(
            project.config.data,
            project.config.task.names,
            project.root,
            previous,
            harvest.records if harvest else None,
            lambda what, at, n: project.progress.advance(at, n, what),
        )
        reason = f"{len(harvest.feedback)} judgements" if harvest else "sources or settings changed" if parent else "first version"
        version = freeze(
            sifted.kept,
            sifted.dropped,
            project.root,
            project.config.project,
            project.config.task.names,
            parent,
            reason,
            project.config.data.model_dump(mode="json"),
            project.store,
            project.config.data.dvc,
            inputs=inputs,
            feedback=harvest.feedback if harvest else (),
        )
        done(_rows(version))
        return version


def _input_digest(project: Project) -> str:
    """Identify what a dataset version is made from: the sources' bytes, the settings and the label space."""
    paths = [project.root / source.path for source in project.config.data.sources]
    digests = [file_sha256(path) if path.is_file() else None for path in paths]  # a missing file is refused where files are read
    return content_id("inp", digests, project.config.data.model_dump(mode="json"), project.config.task.names)


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


def read(project: Project, dataset: DatasetVersion) -> pl.DataFrame:
    """Return the records of a dataset version."""
    return read_records(project.root, dataset)


def dataset_of(project: Project, run: Run) -> DatasetVersion:
    """Return the dataset version that a run learnt from."""
    return project.store.get(DatasetVersion, run.dataset_version_id)
