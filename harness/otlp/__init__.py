"""A real receiver of OpenTelemetry traces on loopback, for tests."""
