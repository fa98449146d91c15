"""Package outputs."""
