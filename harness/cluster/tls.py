"""TLS in front of nodes, because the servers in the wheels are built without it."""

from __future__ import annotations

import contextlib
import socket
import ssl
from pathlib import Path
from typing import Self

from harness.cluster.relay import Relay

_HANDSHAKE_S, _FAREWELL_S = 5.0, 1.0


class TlsFronts:
    """Ends TLS for every node of a cluster, each at a port of its own on loopback.

    ``Cluster(announce=fronts.announce)``; a context manager, to be entered before the cluster and
    left after it.  With a ``client_ca`` a client must have a certificate of it.  Connections in the
    clear fail.  A client of a node that is down is connected, and then cut off.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        """Take files in PEM, which are read now; ``certificate`` has the chain."""
        self._client_ca = client_ca
        self._fronts: list[Relay] = []
        self.use(certificate, key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for front in self._fronts:
            front.close()

    def announce(self, node_port: int) -> int:
        """Put a front before a node, and return its port."""
        front = _Front(self, node_port)
        self._fronts.append(front)
        return front.port

    def use(self, certificate: Path, key: Path) -> None:
        """Show this certificate to those who connect from now on, at every front."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        if self._client_ca is not None:
            context.load_verify_locations(self._client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        self.context = context


class _Front(Relay):
    def __init__(self, fronts: TlsFronts, target: int) -> None:
        self._fronts = fronts
        super().__init__(target)

    def serve(self, caller: socket.socket) -> None:
        context = self._fronts.context
        with context.wrap_socket(caller, server_side=True, do_handshake_on_connect=False) as client:
            client.settimeout(_HANDSHAKE_S)
            try:
                client.do_handshake()
            except ssl.SSLError:
                _let_it_hear(client)
                raise
            super().serve(client)


def _let_it_hear(client: ssl.SSLSocket) -> None:
    """Read on to the end: to close with bytes unread would overtake the alert."""
    client.settimeout(_FAREWELL_S)
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_WR)
        while client.recv(1 << 16):
            pass
