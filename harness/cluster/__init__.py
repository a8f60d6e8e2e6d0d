"""A real cluster of Valkey or Redis on loopback, for trying and for tests."""
