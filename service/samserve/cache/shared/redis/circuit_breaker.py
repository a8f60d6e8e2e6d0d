"""The circuit breaker of a node: after failures, calls for it fail at once until it responds."""

from __future__ import annotations


class CircuitBreaker:
    """Opens after *failures* consecutive failures, or at once; a response closes it.

    While it is open, no call waits for the node: a background task probes the node, and closes the
    circuit when it responds.  So a node that hangs delays calls in flight by the timeout at most,
    and later calls not at all.
    """

    def __init__(self, failures: int) -> None:
        self._failures = failures
        self._consecutive = 0

    @property
    def open(self) -> bool:
        """Whether calls fail without being tried."""
        return self._consecutive >= self._failures

    def record_success(self) -> None:
        """Count a response of any kind."""
        self._consecutive = 0

    def record_failure(self, *, at_once: bool = False) -> None:
        """Count a missing response or connection; *at_once* opens the circuit."""
        self._consecutive = self._failures if at_once else self._consecutive + 1
