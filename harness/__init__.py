"""What development and tests run beside the service; no part of the package."""
