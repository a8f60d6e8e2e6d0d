"""Runtimes of the two networks of a model, behind one port."""
