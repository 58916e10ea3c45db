"""The first schema: nouns and their parents, predictions, feedback, reviews, aliases and the gate's looks."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create every table of version 0001."""
    op.create_table(
        "noun",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("kind", sa.String, nullable=False, index=True),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("created_at", sa.String, nullable=False),
    )
    op.create_table(
        "parent",
        sa.Column("child_id", sa.String, primary_key=True),
        sa.Column("parent_id", sa.String, primary_key=True, index=True),
    )
    op.create_table(
        "prediction",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("deployment_id", sa.String, nullable=False),
        sa.Column("model_version_id", sa.String, nullable=False, index=True),
        sa.Column("variant", sa.String, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("text_sha256", sa.String, nullable=False),
        sa.Column("label", sa.String, nullable=False),
        sa.Column("confidence_raw", sa.Float, nullable=False),
        sa.Column("confidence", sa.Float, nullable=False, index=True),
        sa.Column("scores", sa.JSON, nullable=False),
        sa.Column("latency_seconds", sa.Float, nullable=False),
        sa.Column("created_at", sa.String, nullable=False),
    )
    # No foreign key to prediction: feedback that arrives early is kept and joins later.
    op.create_table(
        "feedback",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("event_id", sa.String, nullable=False, unique=True),
        sa.Column("prediction_id", sa.String, nullable=False, index=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("value", sa.JSON, nullable=False),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("created_at", sa.String, nullable=False),
    )
    op.create_table(
        "skipped_review",
        sa.Column("prediction_id", sa.String, primary_key=True),
        sa.Column("actor", sa.String, nullable=False),
        sa.Column("created_at", sa.String, nullable=False),
    )
    op.create_table(
        "alias",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("alias", sa.String, primary_key=True),
        sa.Column("model_version_id", sa.String, nullable=False),
        sa.Column("created_at", sa.String, nullable=False),
    )
    op.create_table(
        "gate_look",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("test_sha256", sa.String, nullable=False),
        sa.Column("model_version_id", sa.String, nullable=False, index=True),
        sa.Column("opponent_id", sa.String, nullable=False),
        sa.Column("error_spent", sa.Float, nullable=False),
        sa.Column("verdict", sa.JSON, nullable=False),
        sa.Column("created_at", sa.String, nullable=False),
    )
