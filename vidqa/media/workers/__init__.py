"""Package workers."""
