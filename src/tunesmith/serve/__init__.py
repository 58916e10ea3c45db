"""model version -> deployment -> prediction."""
