"""The HTTP listener for probes and metrics, and the readiness of the server."""
