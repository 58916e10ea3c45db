"""run -> evaluation."""
