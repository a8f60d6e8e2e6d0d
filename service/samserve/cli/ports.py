"""Whether a port can be listened on."""

from __future__ import annotations

import os
import socket

from samserve.cli.errors import CommandError

ANY_PORT = 0


def check_free(host: str, port: int) -> None:
    """Raise `CommandError` if nothing could listen there; `ANY_PORT` is always free.

    A server that finds a port taken says so too, but gRPC adds a line of its own to it.
    """
    if port == ANY_PORT:
        return
    try:
        family, *_, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except socket.gaierror as error:
        raise CommandError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise CommandError(f"cannot listen on {host}:{port}: {reason}") from error
