"""TLS in front of nodes, because the servers in the wheels are built without it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from pathlib import Path
from typing import Self

from harness.cluster.errors import HarnessError
from harness.cluster.node import HOST
from harness.cluster.streams import Plain, Secure, Stream, pump

_THREAD_S = 10.0


class TlsFront:
    """Ends TLS for one node, at a port of its own on loopback; a context manager.

    With a ``client_ca`` a client must have a certificate of it.  Connections in the clear fail.  A
    client of a node that is down is connected, and then cut off.
    """

    def __init__(
        self,
        node_port: int,
        certificate: Path,
        key: Path,
        client_ca: Path | None = None,
    ) -> None:
        """Listen.  ``certificate`` is a file with the chain; all files are PEM, and read now."""
        self._node_port = node_port
        self._client_ca = client_ca
        self._context = self._load(certificate, key)
        self._listener = socket.create_server((HOST, 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        """Where it listens."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._serving: asyncio.Task[None] | None = None
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(started,), name=f"tls-front-{self.port}", daemon=True
        )
        self._thread.start()
        if not started.wait(_THREAD_S):
            raise HarnessError(f"the TLS front at port {self.port} did not start")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def use(self, certificate: Path, key: Path) -> None:
        """Show another certificate to those who connect from now on."""
        self._context = self._load(certificate, key)

    def close(self) -> None:
        """Stop listening, and cut all connections."""
        if self._loop is not None and self._serving is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join(_THREAD_S)
        if self._thread.is_alive():
            raise HarnessError(f"the TLS front at port {self.port} did not end")
        self._listener.close()

    def _load(self, certificate: Path, key: Path) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        if self._client_ca is not None:
            context.load_verify_locations(self._client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _run(self, started: threading.Event) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._serve(started))

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._serving = asyncio.get_running_loop(), asyncio.current_task()
        started.set()
        async with asyncio.TaskGroup() as connections:
            while True:
                accepted, _ = await self._loop.sock_accept(self._listener)
                connections.create_task(self._handle(accepted))

    async def _handle(self, accepted: socket.socket) -> None:
        """Serve one connection; whatever becomes of it is no matter of the others."""
        with contextlib.ExitStack() as closing, contextlib.suppress(OSError):
            closing.enter_context(accepted)
            client = closing.enter_context(Secure(accepted, self._context))
            await client.handshake()
            await self._relay(client)

    async def _relay(self, client: Stream) -> None:
        """Pass on in both directions until one of them ends."""
        with socket.socket() as connection:
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, (HOST, self._node_port))
            node = Plain(connection)
            directions = {
                asyncio.create_task(pump(client, node)),
                asyncio.create_task(pump(node, client)),
            }
            try:
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for direction in directions:
                    direction.cancel()
                await asyncio.gather(*directions, return_exceptions=True)


class TlsFronts:
    """A front for every node of a cluster: ``Cluster(announce=fronts.announce)``; see `TlsFront`.

    To be entered before the cluster, and left after it.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path,
        client_ca: Path | None = None,
    ) -> None:
        self._files = (certificate, key)
        self._client_ca = client_ca
        self._fronts: list[TlsFront] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as closing:
            for front in self._fronts:
                closing.enter_context(front)

    def announce(self, node_port: int) -> int:
        """Put a front before a node, and return its port."""
        front = TlsFront(node_port, *self._files, self._client_ca)
        self._fronts.append(front)
        return front.port

    def use(self, certificate: Path, key: Path) -> None:
        """Show another certificate to those who connect from now on, at every front."""
        self._files = (certificate, key)
        for front in self._fronts:
            front.use(certificate, key)
