"""A prediction says whether it needs no review; earlier ones, whose model versions had no threshold, do not say."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the column."""
    op.add_column("prediction", sa.Column("accepted", sa.Boolean, nullable=True))
