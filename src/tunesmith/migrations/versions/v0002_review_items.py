"""Review items that are not predictions, and what reviewers said about them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the tables of version 0002."""
    op.create_table(
        "review_item",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("target_id", sa.String, nullable=False, index=True),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("proposed_label", sa.String, nullable=False),
        sa.Column("reason", sa.String, nullable=False),
        sa.Column("score", sa.Float, nullable=False),
        sa.Column("evidence", sa.JSON, nullable=False),
        sa.Column("guideline_version", sa.String, nullable=False),
        sa.Column("reviewers", sa.Integer, nullable=False),
        sa.Column("created_at", sa.String, nullable=False),
    )
    op.create_table(
        "review_label",
        sa.Column("item_id", sa.String, primary_key=True),
        sa.Column("reviewer", sa.String, primary_key=True),
        sa.Column("labelled_at", sa.String, primary_key=True),
        sa.Column("label", sa.String, nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("guideline_version", sa.String, nullable=False),
        sa.Column("created_at", sa.String, nullable=False),
    )
