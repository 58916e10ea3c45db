"""documents -> records -> dataset version."""
