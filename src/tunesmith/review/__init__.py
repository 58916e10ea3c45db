"""prediction -> feedback -> the next records."""
