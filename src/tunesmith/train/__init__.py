"""dataset version -> run."""
