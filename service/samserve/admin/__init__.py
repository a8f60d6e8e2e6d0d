"""The HTTP listener for probes and metrics, and what makes a server ready."""
