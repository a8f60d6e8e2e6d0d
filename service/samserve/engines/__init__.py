"""Runtimes for the two networks of a model, behind one port."""
