"""Selection of ports that are free together with their cluster bus port."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import Self

BUS_OFFSET = 10000
# Bus ports stay below the ephemeral ports of the kernel (32768 and above), which outgoing
# connections may use.
LOWEST, HIGHEST = 12000, 22767
_ATTEMPTS = 500


class Ports:
    """Ports that are reserved against other runs of the harness; a context manager.

    So no node of another run takes a port while the node of this run is stopped.  A server that
    sets SO_REUSEADDR, as Redis does, can listen there; until then connections are refused.
    """

    def __init__(self) -> None:
        self._sockets = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reserve(self, count: int) -> list[int]:
        """Return ``count`` different ports that are free, as are the ports 10000 above."""
        return [self._reserve_one() for _ in range(count)]

    def close(self) -> None:
        """Release the ports."""
        self._sockets.close()

    def _reserve_one(self) -> int:
        for _ in range(_ATTEMPTS):
            # Random, because several test runs select ports at the same time.
            port = random.randint(LOWEST, HIGHEST)  # noqa: S311
            with contextlib.ExitStack() as pair, contextlib.suppress(OSError):
                for number in (port, port + BUS_OFFSET):
                    pair.enter_context(_bound(number))
                self._sockets.enter_context(pair.pop_all())
                return port
        raise OSError(f"no free pair of ports between {LOWEST} and {HIGHEST}")


def _bound(port: int) -> socket.socket:
    """Return a socket that blocks other such sockets, but not a server with SO_REUSEADDR."""
    reserving = socket.socket()
    try:
        reserving.bind(("127.0.0.1", port))
    except OSError:
        reserving.close()
        raise
    # Only now, because bind must fail if another process uses the port.
    reserving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return reserving
