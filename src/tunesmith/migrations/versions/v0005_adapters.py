"""A prediction names the adapter that answered and how sure the router was of the route; earlier ones had one adapter and no router."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add both columns."""
    op.add_column("prediction", sa.Column("adapter", sa.String, nullable=False, server_default=""))
    op.add_column("prediction", sa.Column("route_confidence", sa.Float, nullable=True))
