"""The asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Literal, Self, Unpack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from samserve.client import images, requests, responses
from samserve.client.calls import Call, embed_method, predict_method, stub
from samserve.client.channel import check_credentials, check_private, check_target
from samserve.client.connection import Connection
from samserve.client.errors import EmbeddingNotFound, Unavailable
from samserve.client.images import ImageLike, Orientation
from samserve.client.metadata import Token
from samserve.client.requests import AutoMaskOptions, Multimask, Prompt, Source
from samserve.client.results import (
    Asked,
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

_HEALED_BY_IMAGE = ("EMBEDDING_NOT_FOUND", "STORE_UNAVAILABLE")


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
        """Encode an image and keep its embedding; again, to extend its life.

        A file over 256 KiB is first asked for by its SHA-256, and sent only if the server does
        not know it.  With *durable*, it is where the death of any one machine does not lose it, or
        `Unavailable` is raised.
        """
        request = pb.EmbedRequest(model=requests.checked_model(model))
        if durable:
            request.durability = pb.DURABILITY_DURABLE
        return await self._embed(request, image, orientation, self._begin(request_id))

    async def prefetch(
        self,
        image: ImageLike,
        *,
        model: str = "",
        orientation: Orientation = "exif",
        request_id: str = "",
    ) -> Embedding:
        """Have an image encoded that will be needed soon, without waiting for it.

        `predict` with what this returns waits until it is encoded.
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
        response = await call.upload(embed_method, request, upload)
        asked = Asked(orientation, request.durability == pb.DURABILITY_DURABLE)
        return responses.embedding(response.embedding, response.timings, asked)

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

        An image as *source* is asked for and sent as in `embed`, and stays embedded: go on with
        ``prediction.embedding``.  With an `Embedding` or an id as *source*, *image* is what it was
        made of, and is sent if the server does not find it, or cannot look for it.  An `Embedding`
        knows the *model* and *orientation* that it was made with, and whether it was to be durable;
        name the first two beside an id if they were not the default model and ``exif``; an
        *orientation* that is not the `Embedding`'s raises ``ValueError``.  With
        ``low_res_logits="only"`` masks have no pixels, box, area or stability score, which spares
        the upsampling.
        """
        call = self._begin(request_id)
        asked = requests.asked(source, orientation)
        messages = await asyncio.to_thread(requests.prompt_messages, prompts)
        request = pb.PredictRequest(
            model=requests.checked_model(model),
            prompts=messages,
            multimask=requests.multimask_value(multimask),
            include_low_res_logits=bool(requests.checked_logits(low_res_logits)),
            output_mode=requests.output_mode_value(low_res_logits),
        )
        located = await asyncio.to_thread(requests.locate, source, asked.orientation)
        if isinstance(located, str):
            request.embedding_id = located
            response = await self._predict_stored(request, source, image, asked, call)
        else:
            response = await call.upload(predict_method, request, located)
        return responses.prediction(response, asked)

    async def _predict_stored(
        self,
        request: pb.PredictRequest,
        source: Source,
        image: ImageLike | None,
        asked: Asked,
        call: Call,
    ) -> pb.PredictResponse:
        """Predict by the id of an embedding; by *image* where the server does not find it."""
        try:
            return await call.send(predict_method, request)
        except (EmbeddingNotFound, Unavailable) as error:
            if image is None or error.reason not in _HEALED_BY_IMAGE:
                raise
            lost = isinstance(error, EmbeddingNotFound)
        upload = await asyncio.to_thread(images.read, image, asked.orientation)
        if isinstance(source, Embedding):
            # The image alone would be embedded by the default model, and not durably.
            request.model = request.model or source.model
        if asked.durable and lost:
            again = pb.EmbedRequest(model=request.model, durability=pb.DURABILITY_DURABLE)
            # Where it cannot be durable now, the click is answered anyway.
            with suppress(Unavailable):
                await call.upload(embed_method, again, upload)
        return await call.upload(predict_method, request, upload)

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
        call = self._begin(request_id)
        request = pb.AutoMaskRequest(
            model=requests.checked_model(model), options=requests.automask_message(options)
        )
        asked = requests.asked(source, orientation)
        located = await asyncio.to_thread(requests.locate, source, asked.orientation)
        if isinstance(located, str):
            request.embedding_id = located
        else:
            # Always the file itself: crops need its pixels, and the search outweighs the upload.
            request.image.CopyFrom(located.message)
        async with aclosing(call.search(request)) as messages:
            async for message in messages:
                for event in responses.automask_events(message, asked):
                    yield event

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
        response = await self._begin(request_id).send(
            lambda channel: stub(channel).DeleteEmbedding, request
        )
        return response.deleted

    async def models(self, *, request_id: str = "") -> Catalog:
        """List what is served, the limits on requests and the defaults of AutoMask."""
        request = pb.ListModelsRequest()
        response = await self._begin(request_id).send(
            lambda channel: stub(channel).ListModels, request
        )
        return responses.catalog(response)

    async def ready(self) -> bool:
        """Ask whether the server wants calls, by the standard health service."""
        request = health_pb2.HealthCheckRequest()
        response = await self._begin("").send(
            lambda channel: health_pb2_grpc.HealthStub(channel).Check, request
        )
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    def _begin(self, request_id: str) -> Call:
        return Call.begin(self._connection, self._token, request_id, self._timeout_s)
