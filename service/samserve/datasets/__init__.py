"""Data sets of masks: their formats and checks.  Nothing here needs a server."""
