"""A real Valkey or Redis Cluster on loopback, for tests and for trying out samserve."""
