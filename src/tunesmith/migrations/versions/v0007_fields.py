"""A prediction of an extraction says how sure it is of each field; earlier ones do not say."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the column."""
    op.add_column("prediction", sa.Column("fields", sa.JSON, nullable=False, server_default="[]"))
