"""Operating system services: files, addresses, signals, limits, background tasks."""
