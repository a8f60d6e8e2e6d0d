"""Checks that a server can listen on a port."""

from __future__ import annotations

from samserve.cli.errors import CommandError
from samserve.system import addresses


def check_free(host: str, port: int) -> None:
    """Raise `CommandError` if a server cannot listen there; port 0 only checks the host.

    The server itself would also report a port in use, but later.
    """
    try:
        for listener in addresses.listen(host, port):
            listener.close()
    except OSError as error:
        address = addresses.join(host, port)
        raise CommandError(
            f"cannot listen on {address}: {addresses.error_reason(error)}"
        ) from error
