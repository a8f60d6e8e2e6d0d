"""Programs that development and tests run next to the service; not part of the package."""
