"""Key -> features on disk: key, entry (bytes of one entry), store, index (path -> content digest), maintain."""
