"""The connection to a Ray cluster."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.exceptions

from samserve.annotate.ray.quiet import notices_discarded
from samserve.errors import InvalidRequest, Misconfigured
from samserve.system.addresses import parse_target, split
from samserve.system.telemetry_off import VARIABLES

_CONNECT_TIMEOUT_S = 10.0
LOCAL = "auto"


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be the driver of a job of the cluster until the block ends, which ends its workers.

    *address* is that of the cluster's head, HOST:PORT, or ``auto`` for the cluster of which this
    machine is a node.  Raises `samserve.errors.InvalidRequest` for an address that cannot be one,
    and `Misconfigured` for a cluster that cannot be used.
    """
    _check(address)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # Before Ray and others are imported there.
            runtime_env={"env_vars": VARIABLES},
        )
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError, SystemExit) as error:
        raise Misconfigured(f"the Ray cluster {address} cannot be used: {_line(error)}") from error
    with notices_discarded():
        try:
            yield
        finally:
            ray.shutdown()


def _check(address: str) -> None:
    """Raise an error unless a server listens there, for which Ray itself waits two minutes."""
    if address == LOCAL:
        return
    if address.startswith("ray://"):
        # Ray Data needs a driver that is in the cluster.
        raise InvalidRequest(
            "ray",
            f"{address}: addresses of Ray Client are not supported. Run the command on a node of "
            "the cluster, for example by `ray job submit`, with --ray auto",
        )
    try:
        parse_target(address)
        host, port = split(address)
    except ValueError as error:
        raise InvalidRequest("ray", f"{address!r}: expected HOST:PORT or auto") from error
    try:
        socket.create_connection((host, port), _CONNECT_TIMEOUT_S).close()
    except OSError as error:
        text = f"the Ray cluster {address} is unreachable: {error.strerror or error}"
        raise Misconfigured(text) from error


def _line(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "it does not respond"
    return " ".join(str(error).split())[:500]
