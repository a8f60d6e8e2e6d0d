"""Who runs next, and how much runs at once."""
