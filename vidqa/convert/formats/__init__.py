"""Package formats."""
