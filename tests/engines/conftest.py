"""What tests on a real Triton need."""

from tests.triton.servers import holding

__all__ = ["holding"]
