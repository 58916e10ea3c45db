"""run + evaluation -> model version."""
