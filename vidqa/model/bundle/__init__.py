"""Package bundle."""
