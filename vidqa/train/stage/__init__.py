"""Package stage."""
