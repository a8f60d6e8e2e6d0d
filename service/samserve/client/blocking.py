"""The blocking facade: the same client on an event loop in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack

import grpc

from samserve.client.client import Client, Source, Token
from samserve.client.images import ImageLike, Orientation
from samserve.client.requests import AutoMaskOptions, Multimask, Prompt
from samserve.client.results import (
    AutoMaskEvent,
    AutoMaskResult,
    Catalog,
    Embedding,
    Prediction,
    Progress,
)

_T = TypeVar("_T")


class SyncClient:
    """`Client` for code without asyncio; used as ``with SyncClient("host:port") as client``.

    The methods are those of `Client`.  Safe for use by several threads.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        token: Token = "",
        plaintext: bool = False,
    ) -> None:
        self._client = Client(
            target,
            timeout_s=timeout_s,
            credentials=credentials,
            token=token,
            plaintext=plaintext,
        )
        # Set while the client is open.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        opened: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(opened)), name="samserve-client", daemon=True
        )
        self._thread.start()
        self._loop = opened.result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def embed(
        self,
        image: ImageLike,
        *,
        model: str = "",
        orientation: Orientation = "exif",
        durable: bool = False,
        request_id: str = "",
    ) -> Embedding:
        """See `Client.embed`."""
        return self._run(
            self._client.embed(
                image,
                model=model,
                orientation=orientation,
                durable=durable,
                request_id=request_id,
            )
        )

    def prefetch(
        self,
        image: ImageLike,
        *,
        model: str = "",
        orientation: Orientation = "exif",
        request_id: str = "",
    ) -> Embedding:
        """See `Client.prefetch`."""
        return self._run(
            self._client.prefetch(
                image, model=model, orientation=orientation, request_id=request_id
            )
        )

    def predict(  # noqa: PLR0913 - each may be left out
        self,
        source: Source,
        prompts: Sequence[Prompt],
        *,
        model: str = "",
        multimask: Multimask = "auto",
        low_res_logits: bool | Literal["only"] = False,
        image: ImageLike | None = None,
        orientation: Orientation | None = None,
        request_id: str = "",
    ) -> Prediction:
        """See `Client.predict`."""
        return self._run(
            self._client.predict(
                source,
                prompts,
                model=model,
                multimask=multimask,
                low_res_logits=low_res_logits,
                image=image,
                orientation=orientation,
                request_id=request_id,
            )
        )

    def automask(
        self,
        source: Source,
        *,
        model: str = "",
        request_id: str = "",
        **options: Unpack[AutoMaskOptions],
    ) -> Generator[AutoMaskEvent]:
        """See `Client.automask`."""
        search = self._client.automask(source, model=model, request_id=request_id, **options)
        try:
            with suppress(StopAsyncIteration):
                while True:
                    yield self._run(anext(search))
        finally:
            self._run(search.aclose())

    def automask_all(
        self,
        source: Source,
        *,
        model: str = "",
        request_id: str = "",
        on_progress: Callable[[Progress], object] = lambda progress: None,
        **options: Unpack[AutoMaskOptions],
    ) -> AutoMaskResult:
        """See `Client.automask_all`; *on_progress* is called in the client's thread."""
        return self._run(
            self._client.automask_all(
                source, model=model, request_id=request_id, on_progress=on_progress, **options
            )
        )

    def delete_embedding(self, embedding: Embedding | str, *, request_id: str = "") -> bool:
        """See `Client.delete_embedding`."""
        return self._run(self._client.delete_embedding(embedding, request_id=request_id))

    def models(self, *, request_id: str = "") -> Catalog:
        """See `Client.models`."""
        return self._run(self._client.models(request_id=request_id))

    def ready(self) -> bool:
        """See `Client.ready`."""
        return self._run(self._client.ready())

    async def _serve(self, opened: Future[asyncio.AbstractEventLoop]) -> None:
        self._stop = asyncio.Event()
        async with self._client:
            opened.set_result(asyncio.get_running_loop())
            await self._stop.wait()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        if self._loop is None:
            work.close()
            raise RuntimeError("the client is not open: use `with SyncClient(...) as client`")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            # Ends the call when the waiting thread was interrupted; a finished one ignores it.
            future.cancel()
