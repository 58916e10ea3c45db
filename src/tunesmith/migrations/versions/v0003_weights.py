"""A run holds the digest of its weights, which are an adapter or a whole model."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Rename `adapter_sha256` of runs to `weights_sha256`."""
    noun = sa.table("noun", sa.column("id", sa.String), sa.column("kind", sa.String), sa.column("body", sa.JSON))
    connection = op.get_bind()
    for identity, body in connection.execute(sa.select(noun.c.id, noun.c.body).where(noun.c.kind == "run")).all():
        values = json.loads(body) if isinstance(body, str) else dict(body)
        if "adapter_sha256" in values:
            values["weights_sha256"] = values.pop("adapter_sha256")
            connection.execute(sa.update(noun).where(noun.c.id == identity).values(body=values))
