"""The asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from types import TracebackType
from typing import Literal, Self, TypeVar, Unpack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from samserve.client import images, requests, responses
from samserve.client.calls import Call, asking_first
from samserve.client.channel import check_credentials, check_private, check_target
from samserve.client.connection import Connection
from samserve.client.errors import EmbeddingNotFound, Unavailable, typed
from samserve.client.images import ImageLike, Orientation, Upload
from samserve.client.metadata import call_metadata
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

    *target* is ``host:port``, with an IPv6 address in brackets, or a name that gRPC resolves.
    *timeout_s* bounds each call, with all requests that it takes; without it the server's own
    deadlines hold.  Every method takes a *request_id*, which the server logs and errors carry: up
    to 128 letters, digits and ``_.:/-``; a new one is made where it is empty.
    *token* is an API key or a bearer token; a callable is asked at each call, for tokens that
    expire.  It wants *credentials* (TLS), unless the server is on this machine or *plaintext* says
    that the network is trusted; `ValueError` otherwise, and for a token that cannot be sent.
    *server_name* is the name that the server's certificate is for, where *target* has another one.
    A call is a part of the caller's current trace where OpenTelemetry is installed.
    Safe for concurrent use on the event loop that opened it.  Raises the classes of
    `samserve.client.errors`.

    A process that is forked needs a client of its own, which works unless a call was under way in
    the parent; otherwise `RuntimeError` is raised at once.
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
        check_target(target)
        check_credentials(credentials)
        if timeout_s is not None and not (isinstance(timeout_s, int | float) and timeout_s > 0):
            raise ValueError(f"timeout_s must be over 0 seconds, or None; got {timeout_s!r}")
        if not (isinstance(token, str) or callable(token)):
            raise TypeError(f"token must be a str, or give one; got {type(token).__name__}")
        if token and credentials is None and not plaintext:
            check_private(target)
        self._token = token
        self._timeout_s = timeout_s
        self._encrypted = credentials is not None
        self._connection = Connection(target, credentials, server_name)

    async def __aenter__(self) -> Self:
        self._connection.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._connection.close()

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
        request = pb.EmbedRequest(
            model=requests.checked_model(model), durability=requests.durability_value(durable)
        )
        return await self._embed(request, image, orientation, self._begin(request_id))

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
        request = pb.EmbedRequest(model=requests.checked_model(model), prefetch=True)
        return await self._embed(request, image, orientation, self._begin(request_id))

    async def _embed(
        self,
        request: pb.EmbedRequest,
        image: ImageLike,
        orientation: Orientation,
        call: Call,
    ) -> Embedding:
        upload = await asyncio.to_thread(images.read, image, orientation)
        response = await self._send_embed(request, upload, call)
        made = responses.embedding(response.embedding, response.timings, orientation)
        return replace(made, durable=request.durability == pb.DURABILITY_DURABLE)

    async def _send_embed(
        self, request: pb.EmbedRequest, upload: Upload, call: Call
    ) -> pb.EmbedResponse:
        async def send(message: pb.Image) -> pb.EmbedResponse:
            request.image.CopyFrom(message)
            return await self._call(lambda channel: _stub(channel).Embed, request, call)

        return await asking_first(upload, send)

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
        knows the *model* and *orientation* that it was made with, and whether it was to be durable;
        name the first two beside an id if they were not the default model and ``exif``; an
        *orientation* that is not the `Embedding`'s raises ``ValueError``.  With
        ``low_res_logits="only"`` masks have no pixels, box, area or stability score, which spares
        the upsampling.
        """
        call = self._begin(request_id)
        known = source if isinstance(source, Embedding) else None
        orientation = images.chosen_orientation(orientation, known.orientation if known else None)
        messages = await asyncio.to_thread(requests.prompt_messages, prompts)
        request = pb.PredictRequest(
            model=requests.checked_model(model),
            prompts=messages,
            multimask=requests.multimask_value(multimask),
            include_low_res_logits=bool(requests.checked_logits(low_res_logits)),
            output_mode=requests.output_mode_value(pixels=low_res_logits != "only"),
        )
        response = await self._send_predict(request, source, image, orientation, call)
        durable = known is not None and known.durable
        return responses.prediction(response, orientation, durable=durable)

    async def _send_predict(
        self,
        request: pb.PredictRequest,
        source: Source,
        image: ImageLike | None,
        orientation: Orientation,
        call: Call,
    ) -> pb.PredictResponse:
        async def send(message: pb.Image) -> pb.PredictResponse:
            request.image.CopyFrom(message)
            return await self._call(lambda channel: _stub(channel).Predict, request, call)

        located = await _locate(source, orientation)
        if not isinstance(located, str):
            return await asking_first(located, send)
        request.embedding_id = located
        try:
            return await self._call(lambda channel: _stub(channel).Predict, request, call)
        except (EmbeddingNotFound, Unavailable) as error:
            if image is None or error.reason not in _HEALED_BY_IMAGE:
                raise
            lost = isinstance(error, EmbeddingNotFound)
        upload = await asyncio.to_thread(images.read, image, orientation)
        if isinstance(source, Embedding):
            # The image alone would be embedded by the default model, and not durably.
            request.model = request.model or source.model
            if source.durable and lost:
                await self._make_durable(request.model, upload, call)
        return await asking_first(upload, send)

    async def _make_durable(self, model: str, upload: Upload, call: Call) -> None:
        """Embed an image again; where it cannot be durable now, the click is answered anyway."""
        request = pb.EmbedRequest(model=model, durability=pb.DURABILITY_DURABLE)
        with suppress(Unavailable):
            await self._send_embed(request, upload, call)

    async def automask(
        self,
        source: Source,
        *,
        model: str = "",
        orientation: Orientation | None = None,
        request_id: str = "",
        **options: Unpack[AutoMaskOptions],
    ) -> AsyncGenerator[AutoMaskEvent]:
        """Segment everything; *options* as in `AutoMaskOptions`, *orientation* as in `predict`.

        Yields `Progress` while the search runs, then each `AutoMaskRecord`, then one `Summary`.
        Closing the generator ends the search on the server.
        """
        begun = self._begin(request_id)
        request = pb.AutoMaskRequest(
            model=requests.checked_model(model), options=requests.automask_message(options)
        )
        known = source if isinstance(source, Embedding) else None
        orientation = images.chosen_orientation(orientation, known.orientation if known else None)
        durable = known is not None and known.durable
        located = await _locate(source, orientation)
        if isinstance(located, str):
            request.embedding_id = located
        else:
            # Always the file itself: crops need its pixels, and the search outweighs the upload.
            request.image.CopyFrom(located.message)
        async with aclosing(self._search(request, begun)) as messages:
            async for message in messages:
                for event in responses.automask_events(message, orientation, durable=durable):
                    yield event

    async def _search(
        self, request: pb.AutoMaskRequest, begun: Call
    ) -> AsyncGenerator[pb.AutoMaskResponse]:
        with self._connection.under_way():
            call = _stub(self._connection.channel()).AutoMask(
                request, timeout=begun.left_s(), metadata=self._metadata(begun)
            )
            try:
                async for message in call:
                    yield message
            except grpc.aio.AioRpcError as error:
                raise typed(error, begun.request_id, encrypted=self._encrypted)  # noqa: B904
            finally:
                call.cancel()
                # The traceback of an error would hold the channel: see `forks`.
                del call

    async def automask_all(
        self,
        source: Source,
        *,
        model: str = "",
        orientation: Orientation | None = None,
        request_id: str = "",
        on_progress: Callable[[Progress], object] = lambda progress: None,
        **options: Unpack[AutoMaskOptions],
    ) -> AutoMaskResult:
        """Segment everything and wait for the end; *on_progress* is called on the way."""
        records: list[AutoMaskRecord] = []
        summary: Summary | None = None
        search = self.automask(
            source, model=model, orientation=orientation, request_id=request_id, **options
        )
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
        known = embedding.id if isinstance(embedding, Embedding) else requests.checked_id(embedding)
        request = pb.DeleteEmbeddingRequest(embedding_id=known)
        call = self._begin(request_id)
        return (
            await self._call(lambda channel: _stub(channel).DeleteEmbedding, request, call)
        ).deleted

    async def models(self, *, request_id: str = "") -> Catalog:
        """List what is served, the limits on requests and the defaults of AutoMask."""
        request = pb.ListModelsRequest()
        call = self._begin(request_id)
        return responses.catalog(
            await self._call(lambda channel: _stub(channel).ListModels, request, call)
        )

    async def ready(self) -> bool:
        """Ask whether the server wants calls, by the standard health service."""
        request = health_pb2.HealthCheckRequest()
        response = await self._call(
            lambda channel: health_pb2_grpc.HealthStub(channel).Check, request, self._begin("")
        )
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    def _begin(self, request_id: str) -> Call:
        return Call.begin(request_id, self._timeout_s)

    async def _call(
        self,
        method: Callable[[grpc.aio.Channel], grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]],
        request: _Request,
        call: Call,
    ) -> _Response:
        with self._connection.under_way():
            try:
                # No name for what holds the channel, or the traceback of an error would keep it.
                return await method(self._connection.channel())(
                    request, timeout=call.left_s(), metadata=self._metadata(call)
                )
            except grpc.aio.AioRpcError as error:
                raise typed(error, call.request_id, encrypted=self._encrypted)  # noqa: B904

    def _metadata(self, call: Call) -> tuple[tuple[str, str], ...]:
        token = self._token() if callable(self._token) else self._token
        return call_metadata(call.request_id, token)


def _stub(channel: grpc.aio.Channel) -> samserve_pb2_grpc.SegmentationServiceAsyncStub:
    return samserve_pb2_grpc.SegmentationServiceStub(channel)


async def _locate(source: Source, orientation: Orientation) -> str | Upload:
    """Give the id of an embedding, or a picture ready to be sent."""
    if isinstance(source, Embedding):
        return source.id
    if isinstance(source, str):
        return requests.checked_id(source)
    return await asyncio.to_thread(images.read, source, orientation)
