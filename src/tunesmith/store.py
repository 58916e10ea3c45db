"""Lineage and operational rows, through SQLAlchemy: SQLite by default, PostgreSQL by URL.

The store decides; MLflow and DVC are projections of it. Nothing is acknowledged before it is on disk: SQLite runs in WAL
mode with `synchronous=FULL`, and every write is one transaction, schema changes too. Writing a noun that exists already
changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.pool import NullPool

from tunesmith.entities import NOUNS, Feedback, Noun, Prediction, utc_now
from tunesmith.errors import BackendError, DataError, NotFoundError

SCHEMA_VERSION = "0007"

NounT = TypeVar("NounT", bound=Noun)

_KINDS = {noun.prefix: noun for noun in NOUNS}


class Store:
    """One database of nouns, predictions, feedback, aliases and gate looks.

    Args:
        url: SQLAlchemy URL. Tables are created or migrated on opening.

    Raises:
        BackendError: the database cannot be opened, or was written by a newer release.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = sa.create_engine(url, poolclass=NullPool) if url.startswith("sqlite") else sa.create_engine(url)
        if url.startswith("sqlite"):
            sa.event.listen(self._engine, "connect", _durable_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        try:
            self._migrate()
        except sa.exc.SQLAlchemyError as error:
            raise BackendError(f"The store at {self._engine.url!r} cannot be opened: {error.__cause__ or error}.") from error
        tables = sa.MetaData()
        tables.reflect(self._engine)
        self._noun, self._parent = tables.tables["noun"], tables.tables["parent"]
        self._prediction, self._feedback = tables.tables["prediction"], tables.tables["feedback"]
        self._skipped, self._alias, self._look = tables.tables["skipped_review"], tables.tables["alias"], tables.tables["gate_look"]
        self._item, self._item_label = tables.tables["review_item"], tables.tables["review_label"]
        for table, column in (
            (self._item, "evidence"),
            (self._noun, "body"),
            (self._prediction, "scores"),
            (self._prediction, "fields"),
            (self._feedback, "value"),
            (self._look, "verdict"),
        ):
            table.c[column].type = sa.JSON()

    @classmethod
    def at(cls, path: Path) -> Store:
        """Open the SQLite store in a file, creating it where missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{path}")

    def _migrate(self) -> None:
        with self._engine.connect() as connection:
            if _schema_version(connection) == SCHEMA_VERSION:
                return
        settings = AlembicConfig()
        settings.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        with self._writer.begin() as connection:
            found = _schema_version(connection)  # again, now that no other process can migrate
            if found is not None and found > SCHEMA_VERSION:
                raise BackendError(
                    f"The store has schema {found}, newer than the {SCHEMA_VERSION} that this release knows.",
                    hint="pip install --upgrade tunesmith",
                )
            settings.attributes["connection"] = connection
            command.upgrade(settings, "head")

    # Nouns

    def put(self, *nouns: Noun) -> None:
        """Write nouns and their parents in one transaction; those that exist already are left as they are."""
        with self._writer.begin() as connection:
            for noun in nouns:
                if isinstance(noun, Prediction):
                    self._insert_new(connection, self._prediction, noun.model_dump(mode="json"), "id")
                    continue
                row = {"id": noun.id, "kind": noun.prefix, "body": noun.model_dump(mode="json"), "created_at": getattr(noun, "created_at", utc_now())}
                self._insert_new(connection, self._noun, row, "id")
                for parent in noun.parents:
                    self._insert_new(connection, self._parent, {"child_id": noun.id, "parent_id": parent}, "child_id", "parent_id")

    def _insert_new(self, connection: sa.Connection, table: sa.Table, row: dict[str, Any], *key: str) -> bool:
        """Insert a row unless its key exists. Returns whether it was new."""
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        return bool(connection.execute(dialect.insert(table).values(row).on_conflict_do_nothing(index_elements=list(key))).rowcount)

    def get(self, kind: type[NounT], noun_id: str) -> NounT:
        """Return a noun of a kind by its id; `Noun` stands for any kind.

        Raises:
            NotFoundError: nothing of that kind has the id.
        """
        found = self.find(kind, noun_id)
        if found is None:
            raise NotFoundError(f"No {kind.__name__} has the id {noun_id!r}.", hint="tunesmith data log")
        return found

    def find(self, kind: type[NounT], noun_id: str) -> NounT | None:
        """Return a noun of a kind by its id, or None."""
        own = _KINDS.get(noun_id.partition("_")[0])
        if own is None or not issubclass(own, kind):
            return None
        if own is Prediction:
            row = self._one(sa.select(self._prediction).where(self._prediction.c.id == noun_id))
        elif own is Feedback:
            row = self._one(sa.select(self._feedback).where(self._feedback.c.id == noun_id))
        else:
            found = self._one(sa.select(self._noun.c.body).where(self._noun.c.id == noun_id))
            row = found["body"] if found else None
        return own.model_validate(row) if row else None

    def all(self, kind: type[NounT]) -> list[NounT]:
        """Return every noun of a kind that is kept in the noun table, oldest first."""
        query = sa.select(self._noun.c.body).where(self._noun.c.kind == kind.prefix).order_by(self._noun.c.created_at, self._noun.c.id)
        with self._engine.connect() as connection:
            return [kind.model_validate(body) for body in connection.execute(query).scalars()]

    def children(self, noun_id: str) -> list[str]:
        """Return the ids of what was made from a noun: derived nouns, its predictions and its feedback."""
        queries = (
            sa.select(self._parent.c.child_id).where(self._parent.c.parent_id == noun_id),
            sa.select(self._prediction.c.id).where(self._prediction.c.model_version_id == noun_id),
            sa.select(self._feedback.c.id).where(self._feedback.c.prediction_id == noun_id),
        )
        with self._engine.connect() as connection:
            return sorted(found for query in queries for found in connection.execute(query).scalars())

    def _one(self, query: sa.Select[Any]) -> dict[str, Any] | None:
        with self._engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        return dict(row) if row else None

    # Predictions and feedback

    def put_feedback(self, feedback: Feedback) -> Feedback:
        """Store a judgement once for its event id.

        Returns:
            The stored judgement: the given one, or the equal one that an earlier delivery left.

        Raises:
            DataError: the event id was used for another judgement.
        """
        with self._writer.begin() as connection:
            self._insert_new(connection, self._feedback, feedback.model_dump(mode="json"), "event_id")
            row = connection.execute(sa.select(self._feedback).where(self._feedback.c.event_id == feedback.event_id)).mappings().one()
        stored = Feedback.model_validate(dict(row))
        ignored = {"id": "", "created_at": ""}
        if stored.model_copy(update=ignored) != feedback.model_copy(update=ignored):
            raise DataError(f"event_id must name one judgement. Received {feedback.event_id!r} again with another content.", hint="Send a new event_id.")
        return stored

    def feedback(self, after: Iterable[str] = ()) -> list[Feedback]:
        """Return judgements, oldest first, without those whose ids are given."""
        seen = set(after)
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(self._feedback).order_by(self._feedback.c.id)).mappings()
            return [Feedback.model_validate(dict(row)) for row in rows if row["id"] not in seen]

    def next_for_review(self) -> Prediction | None:
        """Return the prediction with the lowest confidence that nobody judged or skipped, or None."""
        judged = sa.select(self._feedback.c.prediction_id)
        skipped = sa.select(self._skipped.c.prediction_id)
        query = (
            sa.select(self._prediction)
            .where(self._prediction.c.id.not_in(judged), self._prediction.c.id.not_in(skipped))
            .order_by(self._prediction.c.confidence, self._prediction.c.id)
            .limit(1)
        )
        row = self._one(query)
        return Prediction.model_validate(row) if row else None

    def skip_review(self, prediction_id: str, actor: str) -> None:
        """Leave a prediction out of the review queue."""
        with self._writer.begin() as connection:
            self._insert_new(connection, self._skipped, {"prediction_id": prediction_id, "actor": actor, "created_at": utc_now()}, "prediction_id")

    # Review items, which ask about a record or a document

    def put_review_items(self, rows: Iterable[dict[str, Any]]) -> int:
        """Store review items, columns of the table `review_item`; those that exist already are left as they are. Returns how many were new."""
        with self._writer.begin() as connection:
            return sum(self._insert_new(connection, self._item, row, "id") for row in rows)

    def review_items(self) -> list[dict[str, Any]]:
        """Return all review items, the highest score first."""
        query = sa.select(self._item).order_by(self._item.c.score.desc(), self._item.c.id)
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def put_review_labels(self, rows: Iterable[dict[str, Any]]) -> int:
        """Store what reviewers said, columns of the table `review_label`, all or nothing.

        A label that repeats the last one of its reviewer for its item is left out, so that a file can be imported again.

        Returns:
            How many were new.
        """
        added = 0
        with self._writer.begin() as connection:
            for row in rows:
                of = sa.select(self._item_label.c.label).where(self._item_label.c.item_id == row["item_id"], self._item_label.c.reviewer == row["reviewer"])
                if connection.execute(of.order_by(self._item_label.c.labelled_at.desc()).limit(1)).scalar() != row["label"]:
                    added += self._insert_new(connection, self._item_label, row, "item_id", "reviewer", "labelled_at")
        return added

    def review_labels(self) -> list[dict[str, Any]]:
        """Return what reviewers said about review items, oldest first."""
        query = sa.select(self._item_label).order_by(self._item_label.c.labelled_at, self._item_label.c.item_id, self._item_label.c.reviewer)
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    # Aliases and the gate

    def alias(self, name: str, alias: str) -> str | None:
        """Return the model version id that an alias of a registered model points to."""
        row = self._one(sa.select(self._alias).where(self._alias.c.name == name, self._alias.c.alias == alias))
        return row["model_version_id"] if row else None

    def looks(self, name: str, test_sha256: str) -> list[dict[str, Any]]:
        """Return the gate's looks at one test split, oldest first."""
        query = sa.select(self._look).where(self._look.c.name == name, self._look.c.test_sha256 == test_sha256).order_by(self._look.c.number)
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def looks_of(self, model_version_id: str) -> list[dict[str, Any]]:
        """Return the looks that a model version was the challenger in, oldest first."""
        query = sa.select(self._look).where(self._look.c.model_version_id == model_version_id).order_by(self._look.c.number)
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def put_look(self, *, moves_alias: str | None, **row: Any) -> None:
        """Record one look of the gate at a test split and move the alias it grants, both or neither.

        Args:
            moves_alias: The alias that the model version takes, or None.
            row: name, test_sha256, model_version_id, opponent_id, error_spent, verdict.
        """
        now = utc_now()
        with self._writer.begin() as connection:
            connection.execute(sa.insert(self._look).values(created_at=now, **row))
            if moves_alias:
                connection.execute(sa.delete(self._alias).where(self._alias.c.name == row["name"], self._alias.c.alias == moves_alias))
                taken = {"name": row["name"], "alias": moves_alias, "model_version_id": row["model_version_id"], "created_at": now}
                connection.execute(sa.insert(self._alias).values(taken))


def _schema_version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def _durable_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # Python's driver would commit before each change of the schema: we say BEGIN ourselves
    connection.execute("PRAGMA busy_timeout=30000")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes its turn at once: one that reads first and then writes is refused when another wrote in between.
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))
