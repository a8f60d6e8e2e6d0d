"""TLS proxies in front of nodes, because the servers in the wheels are built without TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
from pathlib import Path
from typing import Self

from harness.cluster.relay import Relay

_HANDSHAKE_TIMEOUT_S, _CLOSE_TIMEOUT_S = 5.0, 1.0


class TlsProxies:
    """Terminates TLS for every node of a cluster, each on its own port on loopback.

    ``Cluster(announce=proxies.announce)``; a context manager that must be entered before the
    cluster and exited after it.  With a ``client_ca``, clients need a certificate of it.
    Unencrypted connections fail.  For a stopped node, connections are accepted and then closed.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        """Read PEM files; ``certificate`` contains the chain."""
        self._client_ca = client_ca
        self._proxies: list[Relay] = []
        self.use(certificate, key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for proxy in self._proxies:
            proxy.close()

    def announce(self, node_port: int) -> int:
        """Start a proxy in front of a node, and return its port."""
        proxy = _TlsProxy(self, node_port)
        self._proxies.append(proxy)
        return proxy.port

    def use(self, certificate: Path, key: Path) -> None:
        """Use this certificate for new connections to all nodes."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        if self._client_ca is not None:
            context.load_verify_locations(self._client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        self.context = context


class _TlsProxy(Relay):
    def __init__(self, proxies: TlsProxies, target: int) -> None:
        self._owner = proxies
        super().__init__(target)

    def serve(self, client: socket.socket) -> None:
        context = self._owner.context
        with context.wrap_socket(client, server_side=True, do_handshake_on_connect=False) as tls:
            tls.settimeout(_HANDSHAKE_TIMEOUT_S)
            try:
                tls.do_handshake()
            except ssl.SSLError:
                _drain(tls)
                raise
            super().serve(tls)


def _drain(client: ssl.SSLSocket) -> None:
    """Read to the end: with unread bytes, a close would reset the connection before the alert."""
    client.settimeout(_CLOSE_TIMEOUT_S)
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_WR)
        while client.recv(1 << 16):
            pass
