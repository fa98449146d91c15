"""Package frame_index."""
