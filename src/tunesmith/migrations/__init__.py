"""The store's schema, append-only. Alembic applies what a database lacks when it is opened."""
