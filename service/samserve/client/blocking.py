"""The blocking client: the asyncio client on an event loop in a thread."""

from __future__ import annotations

import asyncio
import atexit
import functools
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from samserve.client import forks
from samserve.client.client import Client
from samserve.client.metadata import Token

_P = ParamSpec("_P")
_T = TypeVar("_T")


# How long the exit of the process waits for a client's thread, which may run a callback.
_CLOSE_TIMEOUT_S = 2.0

_open_clients: weakref.WeakSet[SyncClient] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close all open clients when the process exits.

    Python then stops the clients' threads, and an unfinished ``automask`` would wait for its thread
    for ever.
    """
    for client in list(_open_clients):
        client._close(_CLOSE_TIMEOUT_S)


class _NotOpen(RuntimeError):
    """The client is not open, or was closed during a call."""


def _blocking(
    method: Callable[Concatenate[Client, _P], Coroutine[Any, Any, _T]],
) -> Callable[Concatenate[SyncClient, _P], _T]:
    """Return a blocking method for *method* of `Client`, with its arguments and docstring."""

    @functools.wraps(method)
    def call(self: SyncClient, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._run(method(self._client, *args, **kwargs))

    return call


def _blocking_generator(
    method: Callable[Concatenate[Client, _P], AsyncGenerator[_T]],
) -> Callable[Concatenate[SyncClient, _P], Generator[_T]]:
    """Return a blocking generator for an asynchronous one, in the same way."""

    @functools.wraps(method)
    def generate(self: SyncClient, /, *args: _P.args, **kwargs: _P.kwargs) -> Generator[_T]:
        events = method(self._client, *args, **kwargs)
        try:
            while (event := self._run(_next(events))) is not None:
                yield event
        finally:
            # Closing the client has ended its AutoMask calls.
            with suppress(_NotOpen):
                self._run(events.aclose())

    return generate


async def _next(events: AsyncGenerator[_T]) -> _T | None:
    """Return the next event; on the event loop, which can then end the call when it closes."""
    return await anext(events, None)


class SyncClient:
    """`Client` for code without asyncio; used as ``with SyncClient("host:port") as client``.

    The methods are those of `Client` without ``await``; callbacks run in the client's thread.  Safe
    for use by several threads.  When the client is closed, calls in flight in other threads raise
    `RuntimeError`, and the generators of `automask` end.

    The client stays open in forked processes: the first call there opens a new connection.  If a
    call was in flight in the parent at the fork, calls in the child raise `RuntimeError` at once.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        server_name: str = "",
        token: Token = "",
        plaintext: bool = False,
    ) -> None:
        self._client = Client(
            target,
            timeout_s=timeout_s,
            credentials=credentials,
            server_name=server_name,
            token=token,
            plaintext=plaintext,
        )
        self._open = False
        # Guards the start of a call, the opening and the closing against each other.
        self._lock = threading.Lock()
        # Set while a thread runs the client's event loop.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._thread: threading.Thread | None = None
        forks.register(self)

    def __enter__(self) -> Self:
        with self._lock:
            if self._open:
                raise RuntimeError("the client is already open: use it, or create another one")
            self._start()
            self._open = True
        _open_clients.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self, within_s: float | None = None) -> None:
        _open_clients.discard(self)
        with self._lock:
            self._open = False
            loop, self._loop = self._loop, None
            thread, self._thread = self._thread, None
            if loop is not None:
                # After all calls that have begun, whose futures would otherwise never finish.
                loop.call_soon_threadsafe(self._stop.set)
        if thread is not None:
            thread.join(within_s)

    embed = _blocking(Client.embed)
    prefetch = _blocking(Client.prefetch)
    predict = _blocking(Client.predict)
    automask = _blocking_generator(Client.automask)
    automask_all = _blocking(Client.automask_all)
    delete_embedding = _blocking(Client.delete_embedding)
    get_embedding = _blocking(Client.get_embedding)
    put_embedding = _blocking(Client.put_embedding)
    models = _blocking(Client.models)
    promote_model = _blocking(Client.promote_model)
    ready = _blocking(Client.ready)

    def before_fork(self) -> bool:
        """Do nothing: the connection drops its channel itself."""
        return True

    def after_fork(self) -> None:
        """Reset the thread in the child; the next call starts a new one."""
        self._lock = threading.Lock()
        self._loop = self._thread = None

    def _start(self) -> None:
        started: Future[asyncio.AbstractEventLoop] = Future()
        thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name="samserve-client", daemon=True
        )
        thread.start()
        loop = started.result()
        try:
            asyncio.run_coroutine_threadsafe(self._client.__aenter__(), loop).result()
        except BaseException:
            loop.call_soon_threadsafe(self._stop.set)
            thread.join()
            raise
        self._loop, self._thread = loop, thread

    async def _serve(self, started: Future[asyncio.AbstractEventLoop]) -> None:
        self._stop = asyncio.Event()
        started.set_result(asyncio.get_running_loop())
        await self._stop.wait()
        await self._client.__aexit__(None, None, None)

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        try:
            future = self._submit(work)
        except RuntimeError:
            work.close()
            raise
        try:
            return future.result()
        except CancelledError:
            raise _NotOpen("the client was closed during this call") from None
        finally:
            # Cancels the call if the waiting thread was interrupted; no effect if it has finished.
            future.cancel()

    def _submit(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        with self._lock:
            if not self._open:
                raise _NotOpen("the client is not open: use `with SyncClient(...) as client`")
            if self._loop is None:
                self._start()
            assert self._loop is not None, "a started client has an event loop"
            return asyncio.run_coroutine_threadsafe(work, self._loop)
