"""Chooses ports that are free and likely to stay free."""

from __future__ import annotations

import random
import socket

# Below the ephemeral ports of outgoing connections, which could otherwise occupy a chosen port.
_LOWEST, _HIGHEST = 20000, 32767
_ATTEMPTS = 200


def free_ports(count: int) -> list[int]:
    """Return ``count`` different ports of loopback on which no process listens at the moment."""
    sockets: list[socket.socket] = []
    try:
        while len(sockets) < count:
            sockets.append(_bound())
        return [bound.getsockname()[1] for bound in sockets]
    finally:
        for bound in sockets:
            bound.close()


def _bound() -> socket.socket:
    for _ in range(_ATTEMPTS):
        candidate = socket.socket()
        try:
            # Random, because several test runs choose ports at the same time.
            candidate.bind(("127.0.0.1", random.randint(_LOWEST, _HIGHEST)))  # noqa: S311
        except OSError:
            candidate.close()
        else:
            return candidate
    raise OSError(f"no free port between {_LOWEST} and {_HIGHEST}")
