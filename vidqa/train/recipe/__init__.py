"""Package recipe."""
