"""Package kv_cache."""
