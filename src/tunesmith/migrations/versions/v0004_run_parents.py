"""A run names the run that it started from and the judgements that it learnt from; earlier ones have neither."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Give every run `parent` and `feedback`."""
    noun = sa.table("noun", sa.column("id", sa.String), sa.column("kind", sa.String), sa.column("body", sa.JSON))
    connection = op.get_bind()
    for identity, body in connection.execute(sa.select(noun.c.id, noun.c.body).where(noun.c.kind == "run")).all():
        values = json.loads(body) if isinstance(body, str) else dict(body)
        connection.execute(sa.update(noun).where(noun.c.id == identity).values(body={"parent": None, "feedback": [], **values}))
