"""Generates the README and the values schema of the Helm chart from its ``values.yaml``."""
