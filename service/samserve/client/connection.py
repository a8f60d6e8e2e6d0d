"""The channel of a client, from its opening to its close, across forks of the process."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc

from samserve.client import forks
from samserve.client.channel import open_channel

_never_free = ctypes.pythonapi.Py_IncRef
_never_free.argtypes = [ctypes.py_object]
_never_free.restype = None

# How long a fork waits for the event loop of another thread to release the channel.
_RELEASE_TIMEOUT_S = 2.0


class Connection:
    """Holds a channel while it is open, except during a fork of the process.

    Used on the event loop that opened it.
    """

    def __init__(
        self, target: str, credentials: grpc.ChannelCredentials | None, server_name: str = ""
    ) -> None:
        self._target = target
        self._credentials = credentials
        self._server_name = server_name
        # Set while it is open.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        # Created at the first use.
        self._channel: grpc.aio.Channel | None = None
        self._calls = 0
        self._forked = False
        forks.register(self)

    def open(self) -> None:
        """Open the channel; raises `RuntimeError` if it is open, or gRPC cannot work here."""
        if self._loop is not None and not self._forked:
            raise RuntimeError("the client is already open: create another one, or use this one")
        forks.check_usable()
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._forked = False
        # At once, so that a target which gRPC rejects raises here.
        self.channel()

    async def close(self) -> None:
        """Close the channel; calls in flight end as well."""
        channel, self._channel = self._channel, None
        self._loop = None
        if channel is not None:
            await channel.close()

    @property
    def encrypted(self) -> bool:
        """Whether the channel uses TLS."""
        return self._credentials is not None

    def channel(self) -> grpc.aio.Channel:
        """Return the channel.  Raises `RuntimeError` if it cannot be used here."""
        if self._loop is None:
            raise RuntimeError("the client is not open: use `async with Client(...) as client`")
        if self._forked:
            forks.check_usable()
            raise RuntimeError(
                "the client was opened before this process was forked: open one in the child, "
                "`async with Client(...) as client`, or use SyncClient, which reopens itself"
            )
        if self._channel is None:
            forks.mark_used()
            self._channel = open_channel(self._target, self._credentials, self._server_name)
        return self._channel

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the channel during the block, also across forks."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    def before_fork(self) -> bool:
        """Drop the channel if no call is in flight: see `forks`."""
        loop = self._loop
        if self._channel is None or loop is None:
            return True
        if self._thread == threading.get_ident() or not loop.is_running():
            self._release()
        else:
            self._release_in(loop)
        return self._channel is None

    def after_fork(self) -> None:
        """Mark the connection as the parent's in the child, which lacks its event loop."""
        self._forked = self._loop is not None
        self._calls = 0
        if self._channel is not None:
            # Never freed: that would wait for a thread that exists in the parent only, and remove
            # gRPC's socket from the parent's epoll set, which both processes share.
            _never_free(self._channel)
            self._channel = None

    def _release_in(self, loop: asyncio.AbstractEventLoop) -> None:
        released = threading.Event()

        def release() -> None:
            self._release()
            released.set()

        # A loop that has just been closed has no call in flight either.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(release)
            released.wait(_RELEASE_TIMEOUT_S)

    def _release(self) -> None:
        if not self._calls:
            # Dropping the last reference closes it.
            self._channel = None
