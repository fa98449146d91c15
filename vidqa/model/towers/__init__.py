"""Package towers."""
