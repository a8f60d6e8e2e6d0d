"""The circuit breaker of one node."""

from __future__ import annotations


class CircuitBreaker:
    """Opens after *failures* in a row, or at once where there is no doubt; an answer closes it.

    While it is open no call waits for the node: a background task probes it, and closes the circuit
    when it answers.  So a node that hangs costs each call under way its timeout at most, and later
    calls nothing.
    """

    def __init__(self, failures: int) -> None:
        self._failures = failures
        self._in_a_row = 0

    @property
    def open(self) -> bool:
        """Whether calls fail without being tried."""
        return self._in_a_row >= self._failures

    def succeeded(self) -> None:
        """Count an answer, of whatever kind."""
        self._in_a_row = 0

    def failed(self, *, at_once: bool = False) -> None:
        """Count a missing answer or connection; *at_once* opens the circuit."""
        self._in_a_row = self._failures if at_once else self._in_a_row + 1
