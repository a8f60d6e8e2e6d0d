"""Whether a port can be listened on."""

from __future__ import annotations

from samserve.cli.errors import CommandError
from samserve.system import addresses


def check_free(host: str, port: int) -> None:
    """Raise `CommandError` if nothing could listen there; with port 0 only the host can be wrong.

    A server that finds a port taken says so too, but later.
    """
    try:
        for listener in addresses.listen(host, port):
            listener.close()
    except OSError as error:
        place = addresses.join(host, port)
        raise CommandError(f"cannot listen on {place}: {addresses.why(error)}") from error
