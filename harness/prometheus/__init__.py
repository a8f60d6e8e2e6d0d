"""A real Prometheus, and the exporter for Valkey and Redis, on loopback."""
