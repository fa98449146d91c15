"""Package backends."""
