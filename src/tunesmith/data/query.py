"""The result of an SQL query -> rows, read only.

A source whose path ends in .sql is a file with one SELECT. The database is an SQLAlchemy URL that stands in an environment
variable or in a file of its own, never in tunesmith.yaml, because it may hold a password; messages never show it. SQLite
is opened so that it cannot be written, PostgreSQL and MySQL are told so for the transaction, and whatever the database,
the transaction is rolled back. Add ORDER BY, so that rows keep their numbers.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tunesmith.errors import BackendError, ConfigError, DataError, MissingExtraError

_READ_ONLY = {"sqlite": "PRAGMA query_only = ON", "postgresql": "SET TRANSACTION READ ONLY", "mysql": "SET TRANSACTION READ ONLY"}


def read_query(sql: str, name: str, database: str, root: Path) -> tuple[list[str], list[tuple[int, dict[str, Any]]]]:
    """Run a query.

    Args:
        sql: One SELECT, or WITH ... SELECT.
        name: The source's path, for messages.
        database: `env:NAME` or `file:PATH`: where the SQLAlchemy URL stands.
        root: Folder of the project, which the path is relative to.

    Returns:
        The columns, and for each row its number, counted from 1, and its values.

    Raises:
        ConfigError: there is no URL where `database` points to, or it is none.
        DataError: the query is none, or the database refuses it.
        MissingExtraError: the database's driver is not installed.
        BackendError: the database cannot be reached.
    """
    plain = re.sub(r"--[^\n]*|/\*.*?\*/", " ", sql, flags=re.DOTALL).strip().rstrip(";").strip()
    if not re.match(r"(?:select|with)\b", plain, re.IGNORECASE) or ";" in re.sub(r"'(?:[^']|'')*'", "", plain):
        raise DataError(f"{name}: must hold one SELECT. Received: {plain[:60]!r}.")
    try:
        engine = sa.create_engine(_url(database, root))
    except sa.exc.ArgumentError:
        raise ConfigError(
            f"{database} must hold an SQLAlchemy URL, such as postgresql+psycopg://user:password@host/database. Received: something else."
        ) from None
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "a database driver", "sql") from None
    try:
        with engine.connect() as connection:
            if statement := _READ_ONLY.get(connection.dialect.name):
                connection.exec_driver_sql(statement)
            result = connection.exec_driver_sql(plain)
            columns = list(result.keys())
            rows = [(number, dict(zip(columns, row, strict=True))) for number, row in enumerate(result, start=1)]
            connection.rollback()
            return columns, rows
    except sa.exc.OperationalError as error:
        if error.statement is None:
            raise BackendError(f"The database of {name} cannot be reached: {error.orig}.", hint=f"Check the URL in {database}.") from None
        raise DataError(f"{name}: the database must accept the query. Received: {error.orig}.") from None
    except sa.exc.DBAPIError as error:
        raise DataError(f"{name}: the database must accept the query. Received: {error.orig}.") from None
    finally:
        engine.dispose()


def _url(database: str, root: Path) -> str:
    kind, _, place = database.partition(":")
    if kind == "env":
        found = os.environ.get(place, "")
    else:
        try:
            found = (root / place).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            found = ""
    if not found:
        hint = f"export {place}=sqlite:////path/to/file.db" if kind == "env" else "Write the SQLAlchemy URL into that file, and keep it out of git."
        raise ConfigError(f"A query needs a database (data.sources[].database). Received: nothing in {database}.", hint=hint)
    return found
