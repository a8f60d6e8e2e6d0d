"""The asyncio client."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from types import TracebackType
from typing import Literal, Self, TypeVar, Unpack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from samserve.client import images, requests, responses
from samserve.client.channel import check_private, open_channel
from samserve.client.errors import EmbeddingNotFound, Unavailable, typed_errors
from samserve.client.images import ImageLike, Orientation, Upload
from samserve.client.requests import AutoMaskOptions, Multimask, Prompt
from samserve.client.results import (
    AutoMaskEvent,
    AutoMaskRecord,
    AutoMaskResult,
    Catalog,
    Embedding,
    Prediction,
    Progress,
    Summary,
)
from samserve.client.tracing import trace_headers
from samserve.v1 import samserve_pb2 as pb
from samserve.v1 import samserve_pb2_grpc

Source = Embedding | ImageLike
"""What is segmented: an `Embedding` or its id (any ``str``), or a picture (a path as ``Path``)."""

Token = str | Callable[[], str]
"""An API key or bearer token, or what gives one; empty sends none."""

_HEALED_BY_IMAGE = ("EMBEDDING_NOT_FOUND", "STORE_UNAVAILABLE")

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Client:
    """Calls one samserve server; used as ``async with Client("host:port") as client``.

    *timeout_s* bounds each call; without it the server's own deadlines hold.  Every method takes
    a *request_id*, which the server logs and errors carry; a new one is made where it is empty.
    *token* is an API key or a bearer token; a callable is asked at each call, for tokens that
    expire.  It wants *credentials* (TLS), unless the server is on this machine or *plaintext* says
    that the network is trusted; `ValueError` otherwise, and for a token that cannot be sent.
    A call is a part of the caller's current trace where OpenTelemetry is installed.
    Safe for concurrent use on the event loop that opened it.  Raises the classes of
    `samserve.client.errors`.
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
        if token and credentials is None and not plaintext:
            check_private(target)
        self._target = target
        self._token = token
        self._timeout_s = timeout_s
        self._credentials = credentials
        # Set while the client is open.
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        self._channel = open_channel(self._target, self._credentials)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        channel, self._channel = self._opened(), None
        await channel.close()

    async def embed(
        self,
        image: ImageLike,
        *,
        model: str = "",
        orientation: Orientation = "exif",
        durable: bool = False,
        request_id: str = "",
    ) -> Embedding:
        """Encode a picture and keep its embedding; again, to extend its life.

        A file over 256 KiB is first asked for by its SHA-256, and sent only if the server does
        not know it.  With *durable*, it is where the death of any one machine does not lose it, or
        `Unavailable` is raised.
        """
        request = pb.EmbedRequest(model=model, durability=requests.durability_value(durable))
        return await self._embed(request, image, orientation, request_id)

    async def prefetch(
        self,
        image: ImageLike,
        *,
        model: str = "",
        orientation: Orientation = "exif",
        request_id: str = "",
    ) -> Embedding:
        """Have a picture encoded that will be needed soon, without waiting for it.

        `predict` with what this gives waits until it is encoded.
        """
        request = pb.EmbedRequest(model=model, prefetch=True)
        return await self._embed(request, image, orientation, request_id)

    async def _embed(
        self,
        request: pb.EmbedRequest,
        image: ImageLike,
        orientation: Orientation,
        request_id: str,
    ) -> Embedding:
        async def send(message: pb.Image) -> pb.EmbedResponse:
            request.image.CopyFrom(message)
            return await self._call(self._stub().Embed, request, request_id)

        upload = await asyncio.to_thread(images.read, image, orientation)
        response = await _asking_first(upload, send)
        return responses.embedding(response.embedding, response.timings, orientation)

    async def predict(  # noqa: PLR0913 - each may be left out
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
        """Segment one object per prompt.

        A picture as *source* is asked for and sent as in `embed`, and stays embedded: go on with
        ``prediction.embedding``.  With an `Embedding` or an id as *source*, *image* is what it was
        made of, and is sent if the server does not find it, or cannot look for it.  An `Embedding`
        knows the *model* and *orientation* that it was made with; name them beside an id if they
        were not the default model and ``exif``.  With ``low_res_logits="only"``
        masks have no pixels, box, area or stability score, which spares the upsampling.
        """
        known = source if isinstance(source, Embedding) else None
        orientation = orientation or (known.orientation if known else "exif")
        messages = await asyncio.to_thread(lambda: [requests.prompt_message(p) for p in prompts])
        request = pb.PredictRequest(
            model=model,
            prompts=messages,
            multimask=requests.multimask_value(multimask),
            include_low_res_logits=bool(low_res_logits),
            output_mode=requests.output_mode_value(pixels=low_res_logits != "only"),
        )

        async def send(message: pb.Image | None) -> pb.PredictResponse:
            if message is not None:
                request.image.CopyFrom(message)
            return await self._call(self._stub().Predict, request, request_id)

        located = await _locate(source, orientation)
        if isinstance(located, str):
            request.embedding_id = located
            try:
                return responses.prediction(await send(None), orientation)
            except (EmbeddingNotFound, Unavailable) as error:
                if image is None or error.reason not in _HEALED_BY_IMAGE:
                    raise
                located = await asyncio.to_thread(images.read, image, orientation)
                # The image alone would be embedded by the default model.
                request.model = model or (known.model if known else "")
        return responses.prediction(await _asking_first(located, send), orientation)

    async def automask(
        self,
        source: Source,
        *,
        model: str = "",
        request_id: str = "",
        **options: Unpack[AutoMaskOptions],
    ) -> AsyncGenerator[AutoMaskEvent]:
        """Segment everything; *options* as in `AutoMaskOptions`.

        Yields `Progress` while the search runs, then each `AutoMaskRecord`, then one `Summary`.
        Closing the generator ends the search on the server.
        """
        request = pb.AutoMaskRequest(model=model, options=requests.automask_message(options))
        orientation = source.orientation if isinstance(source, Embedding) else "exif"
        located = await _locate(source, orientation)
        if isinstance(located, str):
            request.embedding_id = located
        else:
            # Always the file itself: crops need its pixels, and the search outweighs the upload.
            request.image.CopyFrom(located.message)
        request_id = request_id or uuid.uuid4().hex
        call = self._stub().AutoMask(
            request, timeout=self._timeout_s, metadata=self._metadata(request_id)
        )
        with _ended(call), typed_errors(request_id):
            async for message in call:
                for event in responses.automask_events(message, orientation):
                    yield event

    async def automask_all(
        self,
        source: Source,
        *,
        model: str = "",
        request_id: str = "",
        on_progress: Callable[[Progress], object] = lambda progress: None,
        **options: Unpack[AutoMaskOptions],
    ) -> AutoMaskResult:
        """Segment everything and wait for the end; *on_progress* is called on the way."""
        records: list[AutoMaskRecord] = []
        summary: Summary | None = None
        search = self.automask(source, model=model, request_id=request_id, **options)
        async with aclosing(search) as events:
            async for event in events:
                match event:
                    case Progress():
                        on_progress(event)
                    case AutoMaskRecord():
                        records.append(event)
                    case Summary():
                        summary = event
        assert summary is not None, "a stream that succeeds ends with its summary"
        return AutoMaskResult(records, summary)

    async def delete_embedding(self, embedding: Embedding | str, *, request_id: str = "") -> bool:
        """Forget an embedding; False if there was none.  Safe to repeat."""
        known = embedding.id if isinstance(embedding, Embedding) else embedding
        request = pb.DeleteEmbeddingRequest(embedding_id=known)
        response = await self._call(self._stub().DeleteEmbedding, request, request_id)
        return response.deleted

    async def models(self, *, request_id: str = "") -> Catalog:
        """List what is served, the limits on requests and the defaults of AutoMask."""
        request = pb.ListModelsRequest()
        return responses.catalog(await self._call(self._stub().ListModels, request, request_id))

    async def ready(self) -> bool:
        """Ask whether the server wants calls, by the standard health service."""
        stub = health_pb2_grpc.HealthStub(self._opened())
        request = health_pb2.HealthCheckRequest()
        response = await self._call(stub.Check, request, "")
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        request_id: str,
    ) -> _Response:
        request_id = request_id or uuid.uuid4().hex
        metadata = self._metadata(request_id)
        with typed_errors(request_id):
            return await method(request, timeout=self._timeout_s, metadata=metadata)

    def _metadata(self, request_id: str) -> tuple[tuple[str, str], ...]:
        token = (self._token() if callable(self._token) else self._token).strip()
        if not (token.isascii() and token.isprintable()):
            raise ValueError("the token has characters that no token has")
        named = (("x-request-id", request_id), *trace_headers())
        return (*named, ("authorization", f"Bearer {token}")) if token else named

    def _opened(self) -> grpc.aio.Channel:
        if self._channel is None:
            raise RuntimeError("the client is not open: use `async with Client(...) as client`")
        return self._channel

    def _stub(self) -> samserve_pb2_grpc.SegmentationServiceAsyncStub:
        return samserve_pb2_grpc.SegmentationServiceStub(self._opened())


@contextmanager
def _ended(call: grpc.aio.Call) -> Iterator[None]:
    """End a call with the block; one that is over ignores it."""
    try:
        yield
    finally:
        call.cancel()


async def _asking_first(
    upload: Upload, send: Callable[[pb.Image], Awaitable[_Response]]
) -> _Response:
    """Send the digest if there is one; the picture if there is none, or the server's miss."""
    if upload.digest is not None:
        try:
            return await send(upload.digest)
        except EmbeddingNotFound:
            pass
    return await send(upload.message)


async def _locate(source: Source, orientation: Orientation) -> str | Upload:
    """Give the id of an embedding, or a picture ready to be sent."""
    if isinstance(source, Embedding):
        return source.id
    if isinstance(source, str):
        return source
    return await asyncio.to_thread(images.read, source, orientation)
