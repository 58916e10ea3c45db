"""One file a schema change, in order; never edited after a release."""
