"""Not asking again and again who does not answer."""

from __future__ import annotations


class Breaker:
    """Opens after *failures* in a row, or at once where there is no doubt; an answer closes it.

    While it is open, nobody is made to wait for the node: a task in the background asks it, and
    closes the breaker when it answers.  So a node that hangs costs each call under way its timeout
    at most, and calls that come later nothing.
    """

    def __init__(self, failures: int) -> None:
        self._failures = failures
        self._in_a_row = 0

    @property
    def open(self) -> bool:
        """Whether the node is to be left alone."""
        return self._in_a_row >= self._failures

    def succeeded(self) -> None:
        """Note an answer, of whatever kind."""
        self._in_a_row = 0

    def failed(self, *, surely: bool = False) -> None:
        """Note that no answer came, or no connection; *surely* nobody else was answered either."""
        self._in_a_row = self._failures if surely else self._in_a_row + 1
