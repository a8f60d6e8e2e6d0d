"""Choosing ports that are free, and stay so."""

from __future__ import annotations

import random
import socket

# Below the ports that the kernel gives to outgoing connections: one of those could be in the way.
_LOWEST, _HIGHEST = 20000, 32767
_ATTEMPTS = 200


def free_ports(count: int) -> list[int]:
    """Return ``count`` different ports of loopback that nobody listens on at this moment."""
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            sockets.append(_bound())
        return [taken.getsockname()[1] for taken in sockets]
    finally:
        for taken in sockets:
            taken.close()


def _bound() -> socket.socket:
    for _ in range(_ATTEMPTS):
        candidate = socket.socket()
        try:
            # Random, because several runs of the tests choose at the same time.
            candidate.bind(("127.0.0.1", random.randint(_LOWEST, _HIGHEST)))  # noqa: S311
        except OSError:
            candidate.close()
        else:
            return candidate
    raise OSError(f"no free port between {_LOWEST} and {_HIGHEST}")
