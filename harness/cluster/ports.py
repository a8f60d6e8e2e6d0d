"""Choosing ports of which the one for clients and the one of the cluster bus are both free."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import Self

BUS_OFFSET = 10000
# With their bus ports below those that the kernel gives to outgoing connections (32768 and up):
# one of those could be in the way.
LOWEST, HIGHEST = 12000, 22767
_ATTEMPTS = 500


class Ports:
    """Ports that no other run of the harness chooses until this is closed; a context manager.

    So the node of another run does not move in while ours is down.  A server that allows the reuse
    of addresses, as Redis does, can listen there, and until then connections are refused.
    """

    def __init__(self) -> None:
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self, count: int) -> list[int]:
        """Return ``count`` different ports where nobody listens, nor 10000 above."""
        return [self._take_one() for _ in range(count)]

    def close(self) -> None:
        """Let others have them."""
        self._held.close()

    def _take_one(self) -> int:
        for _ in range(_ATTEMPTS):
            # Random, because several runs of the tests choose at the same time.
            port = random.randint(LOWEST, HIGHEST)  # noqa: S311
            with contextlib.ExitStack() as pair, contextlib.suppress(OSError):
                for number in (port, port + BUS_OFFSET):
                    pair.enter_context(_bound(number))
                self._held.enter_context(pair.pop_all())
                return port
        raise OSError(f"no free pair of ports between {LOWEST} and {HIGHEST}")


def _bound(port: int) -> socket.socket:
    """Return a socket that is in the way of others like it, but not of a server."""
    holder = socket.socket()
    try:
        holder.bind(("127.0.0.1", port))
    except OSError:
        holder.close()
        raise
    # Only now: binding itself is to fail if anybody else is there.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return holder
