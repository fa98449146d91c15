"""Package monitor."""
