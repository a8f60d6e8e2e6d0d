"""`samserve cache`."""
