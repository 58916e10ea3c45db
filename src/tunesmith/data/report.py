"""The report of a dataset version: report.json for machines, report.html for people, from the same dict.

It says what was read, what was dropped and why, what the checks found, what was redacted, and shows pages with the blocks
that were read from them. The page is one file: no script, no font, no picture from elsewhere.

    version              id, project, parent, reason, labels, created for people
    read                 rows that came in, documents and pages among them
    rows                 split -> label -> records
    dropped              reason -> `count` and `examples` (source, source_line, evidence)
    checks               see `checks.Report.to_dict`
    redacted             kind of personal data -> replacements
    contamination        file of benchmark texts -> `texts`, and how many of them `leaked` into train rows, which are dropped as `contaminated`
    pages                caption -> picture as a data URI; only in the page, and none where personal data is redacted
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined

from tunesmith.data.address import explained, open_address
from tunesmith.data.checks import Report
from tunesmith.data.sifted import count_reasons
from tunesmith.entities import SPLITS
from tunesmith.errors import TunesmithError

_EXAMPLES = 3
_PICTURES = 4


def data_report(
    records: pl.DataFrame,
    dropped: pl.DataFrame,
    pages: pl.DataFrame,
    checks: Report,
    redacted: Mapping[str, int],
    benchmarks: Mapping[str, Mapping[str, int]],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Put the report together.

    Args:
        records: Columns of `Record`.
        dropped: Columns of `DROPPED_SCHEMA`.
        pages: Columns of `PAGE_SCHEMA`.
        checks: What the checks found.
        redacted: Kind of personal data -> replacements.
        benchmarks: File of benchmark texts -> `texts` and `leaked`.
        facts: Shown at the top: project, reason and the like; anything JSON can hold.
    """
    counts = records.group_by("split", "label").len().sort("split", "label")
    return {
        "version": dict(facts),
        "read": {
            "records": len(records),
            "dropped": len(dropped),
            "documents": pages["document_id"].n_unique(),
            "pages": len(pages),
            "scanned_pages": int(pages["is_scan"].sum()),
        },
        "rows": {split: dict(counts.filter(split=split).select("label", "len").iter_rows()) for split in SPLITS},
        "dropped": {reason: {"count": count, "examples": _examples(dropped, reason)} for reason, count in count_reasons(dropped).items()},
        "checks": checks.to_dict(),
        "redacted": dict(redacted),
        "contamination": {file: dict(counts) for file, counts in benchmarks.items()},
    }


def _examples(dropped: pl.DataFrame, reason: str) -> list[dict[str, Any]]:
    return dropped.filter(reason=reason).head(_EXAMPLES).select("source", "source_line", "evidence").to_dicts()


def page_pictures(root: Path, sources: Mapping[str, str], pages: pl.DataFrame, blocks: pl.DataFrame) -> dict[str, str]:
    """Draw the first pages of a few documents with their blocks, scans first.

    Args:
        root: Folder of the project.
        sources: Id of a document -> its address.
        pages: Columns of `PAGE_SCHEMA`.
        blocks: Columns of `block_schema()`.

    Returns:
        Caption -> PNG as a data URI. A document that is there no more, or cannot be drawn, is left out.
    """
    from tunesmith.data.page_picture import page_picture

    drawn: dict[str, str] = {}
    first = pages.filter(page=1).filter(pl.col("width") > 0).sort("is_scan", "document_id", descending=[True, False])
    # Half of them scans, where there are any.
    scans, others = first.filter("is_scan"), first.filter(~pl.col("is_scan"))
    for document_id in pl.concat([scans.head(_PICTURES // 2), others, scans.slice(_PICTURES // 2)])["document_id"]:
        if len(drawn) == _PICTURES:
            break
        source = sources.get(document_id, "")
        try:
            system, path = open_address(source, root)
            with explained(source):
                raw = system.cat_file(path)
            own = (frame.filter(pl.col("document_id") == document_id) for frame in (pages, blocks))
            picture = page_picture(raw, source, 1, *own)
        except TunesmithError:
            continue
        drawn[f"{source}, page 1"] = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return drawn


def render_json(report: Mapping[str, Any]) -> str:
    """Return report.json."""
    return json.dumps(report, indent=2, ensure_ascii=False) + "\n"


def render_html(report: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Return report.html."""
    environment = Environment(loader=PackageLoader("tunesmith.data", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.j2").render(report=report, pictures=pictures)
