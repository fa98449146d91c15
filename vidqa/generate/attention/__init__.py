"""Package attention."""
