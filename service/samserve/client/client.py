"""The asyncio client: a method for each RPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Literal, Self, Unpack

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from samserve.client import health, images, requests, responses
from samserve.client.calls import Call, automask_method, embed_method, predict_method, stub
from samserve.client.channel import check_credentials, check_private, check_target
from samserve.client.connection import Connection
from samserve.client.embedding_files import EmbeddingFileCalls
from samserve.client.errors import EmbeddingNotFound, Unavailable
from samserve.client.images import ImageLike, Orientation
from samserve.client.metadata import Token
from samserve.client.polygons import PolygonOptions
from samserve.client.promotion import PromotionCalls
from samserve.client.requests import (
    AutoMaskOptions,
    HqMode,
    MaskFormat,
    Multimask,
    Prompt,
    Source,
)
from samserve.client.results import (
    AutoMaskEvent,
    AutoMaskRecord,
    AutoMaskResult,
    Catalog,
    Embedding,
    EmbedOptions,
    Prediction,
    Progress,
    Summary,
)
from samserve.v1 import samserve_pb2 as pb

_RETRY_WITH_IMAGE = ("EMBEDDING_NOT_FOUND", "CACHE_UNAVAILABLE")


class Client(EmbeddingFileCalls, PromotionCalls):
    """Client of one samserve server; used as ``async with Client("host:port") as client``.

    *target* is ``host:port``, with an IPv6 address in brackets, or a name that gRPC resolves.
    *timeout_s* limits each call, including all requests that it needs; without it the server's
    deadlines apply.  Every method has a *request_id*, which the server logs and errors contain: up
    to 128 letters, digits and ``_.:/-``; if it is empty, a new one is generated.
    *token* is an API key or a bearer token, or a callable that returns one for each call, for
    tokens that expire.  A token requires *credentials* (TLS), unless the server is on this machine
    or *plaintext* declares the network as trusted; otherwise `ValueError` is raised, as for a token
    that cannot be sent.
    *server_name* is the name in the server's certificate, if *target* has another one.
    If OpenTelemetry is installed, a call is a child of the caller's current span.
    Safe for concurrent use on the event loop that opened it.  Raises the classes of
    `samserve.client.errors`.

    A forked process needs a client of its own, which works unless a call was in flight in the
    parent at the fork; otherwise `RuntimeError` is raised at once.
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
            raise ValueError(f"timeout_s must be greater than 0, or None; got {timeout_s!r}")
        if not (isinstance(token, str) or callable(token)):
            raise TypeError(
                f"token must be a str, or a callable that returns one; got {type(token).__name__}"
            )
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
        """Encode an image and cache its embedding; a repeated call extends its lifetime.

        For a file over 256 KiB the client first sends its SHA-256, and sends the file only if the
        server has no embedding of it.  With *durable*, the embedding survives the loss of any one
        machine, or `Unavailable` is raised.
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
        """Request the encoding of an image that will be needed soon, without waiting for it.

        `predict` with the returned embedding waits until the image is encoded.
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
        durable = request.durability == pb.DURABILITY_DURABLE
        embed_options = EmbedOptions(orientation, durable, upload.converted_from)
        return responses.embedding(response.embedding, response.timings, embed_options)

    async def predict(  # noqa: PLR0913 - all but two are optional
        self,
        source: Source,
        prompts: Sequence[Prompt],
        *,
        model: str = "",
        multimask: Multimask = "auto",
        hq_mode: HqMode | None = None,
        low_res_logits: bool | Literal["only"] = False,
        mask_format: MaskFormat | None = None,
        polygon_options: PolygonOptions | None = None,
        min_island_area: int = 0,
        min_hole_area: int = 0,
        clip_to_box: bool = False,
        image: ImageLike | None = None,
        orientation: Orientation | None = None,
        request_id: str = "",
    ) -> Prediction:
        """Segment one object per prompt.

        *multimask* and *hq_mode* select the masks of each prompt; without *hq_mode*, SAM-HQ's mask
        is added.  `InvalidArgument` is raised if it is set for a model of another family.
        An image as *source* is sent as in `embed`, and its embedding is cached: use
        ``prediction.embedding`` for further calls.  With an `Embedding` or an id as *source*,
        *image* is its image, which is sent if the server does not find the embedding, or if its
        cache is unavailable.  An `Embedding` contains its *model*, *orientation* and durability;
        with an id, pass the first two unless they are the default model and ``exif``.  An
        *orientation* other than that of the `Embedding` raises ``ValueError``.  With
        ``low_res_logits="only"`` masks have no pixels, box, area or stability score, which saves
        the upsampling.
        *mask_format* is that of the pixels, ``coco_rle`` if it is None: see `Mask`;
        *polygon_options* are for ``polygons``.  *clip_to_box* removes pixels outside of the
        prompt's box, then *min_hole_area* fills holes and *min_island_area* removes islands of
        fewer pixels.  Scores and logits remain those of the unchanged mask.
        """
        call = self._begin(request_id)
        embed_options = requests.embed_options(source, orientation)
        request = pb.PredictRequest(
            model=requests.checked_model(model),
            prompts=await asyncio.to_thread(requests.prompt_messages, prompts),
            multimask=requests.multimask_value(multimask),
            hq_mode=requests.hq_mode_value(hq_mode),
            include_low_res_logits=bool(requests.checked_logits(low_res_logits)),
            output_mode=requests.output_mode_value(mask_format, low_res_logits),
            polygon_options=requests.polygon_message(polygon_options),
            min_island_area=requests.area_value(min_island_area, "min_island_area"),
            min_hole_area=requests.area_value(min_hole_area, "min_hole_area"),
            clip_to_box=requests.switch_value(clip_to_box, "clip_to_box"),
        )
        return await self._predict(request, source, image, embed_options, call)

    async def _predict(
        self,
        request: pb.PredictRequest,
        source: Source,
        image: ImageLike | None,
        embed_options: EmbedOptions,
        call: Call,
    ) -> Prediction:
        """Predict by the id in *source*, or by the image that it is."""
        sent = await asyncio.to_thread(requests.id_or_upload, source, embed_options.orientation)
        if isinstance(sent, str):
            request.embedding_id = sent
            response = await self._predict_stored(request, source, image, embed_options, call)
        else:
            response = await call.upload(predict_method, request, sent)
            embed_options = embed_options._replace(converted_from=sent.converted_from)
        return responses.prediction(response, embed_options)

    async def _predict_stored(
        self,
        request: pb.PredictRequest,
        source: Source,
        image: ImageLike | None,
        embed_options: EmbedOptions,
        call: Call,
    ) -> pb.PredictResponse:
        """Predict by the id of an embedding, or by *image* if the server does not find it."""
        try:
            return await call.send(predict_method, request)
        except (EmbeddingNotFound, Unavailable) as error:
            if image is None or error.reason not in _RETRY_WITH_IMAGE:
                raise
            lost = isinstance(error, EmbeddingNotFound)
        upload = await asyncio.to_thread(images.read, image, embed_options.orientation)
        if isinstance(source, Embedding):
            # The image alone would be encoded by the default model, and not be durable.
            request.model = request.model or source.model
        if embed_options.durable and lost:
            embed_request = pb.EmbedRequest(model=request.model, durability=pb.DURABILITY_DURABLE)
            # If it cannot be durable now, Predict succeeds without.
            with suppress(Unavailable):
                await call.upload(embed_method, embed_request, upload)
        return await call.upload(predict_method, request, upload)

    async def automask(
        self,
        source: Source,
        *,
        model: str = "",
        orientation: Orientation | None = None,
        mask_format: MaskFormat | None = None,
        polygon_options: PolygonOptions | None = None,
        request_id: str = "",
        **options: Unpack[AutoMaskOptions],
    ) -> AsyncGenerator[AutoMaskEvent]:
        """Segment everything; *options* as in `AutoMaskOptions`, the others as in `predict`.

        Yields `Progress` while the call runs, then each `AutoMaskRecord`, then one `Summary`.
        Closing the generator cancels the call on the server.
        """
        call = self._begin(request_id)
        request = pb.AutoMaskRequest(
            model=requests.checked_model(model),
            # In a thread, because masks to exclude may be encoded.
            options=await asyncio.to_thread(requests.automask_message, options),
            output_mode=requests.output_mode_value(mask_format),
            polygon_options=requests.polygon_message(polygon_options),
        )
        embed_options = requests.embed_options(source, orientation)
        sent = await asyncio.to_thread(requests.id_or_upload, source, embed_options.orientation)
        if isinstance(sent, str):
            request.embedding_id = sent
        else:
            # Always the file itself: crops need its pixels, and AutoMask takes far longer than the
            # upload.
            request.image.CopyFrom(sent.message)
            embed_options = embed_options._replace(converted_from=sent.converted_from)
        async with aclosing(call.stream(automask_method, request)) as messages:
            async for message in messages:
                for event in responses.automask_events(message, embed_options):
                    yield event

    async def automask_all(  # noqa: PLR0913 - all but one are optional
        self,
        source: Source,
        *,
        model: str = "",
        orientation: Orientation | None = None,
        mask_format: MaskFormat | None = None,
        polygon_options: PolygonOptions | None = None,
        request_id: str = "",
        on_progress: Callable[[Progress], object] = lambda progress: None,
        **options: Unpack[AutoMaskOptions],
    ) -> AutoMaskResult:
        """Segment everything and return the result; *on_progress* is called meanwhile."""
        records: list[AutoMaskRecord] = []
        summary: Summary | None = None
        generator = self.automask(
            source,
            model=model,
            orientation=orientation,
            mask_format=mask_format,
            polygon_options=polygon_options,
            request_id=request_id,
            **options,
        )
        async with aclosing(generator) as events:
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
        """Delete an embedding; return False if there was none.  Safe to repeat."""
        request = pb.DeleteEmbeddingRequest(embedding_id=requests.id_of(embedding))
        response = await self._begin(request_id).send(
            lambda channel: stub(channel).DeleteEmbedding, request
        )
        return response.deleted

    async def models(self, *, request_id: str = "") -> Catalog:
        """Return the served models with their defaults of AutoMask, and the limits of requests."""
        request = pb.ListModelsRequest()
        response = await self._begin(request_id).send(
            lambda channel: stub(channel).ListModels, request
        )
        return responses.catalog(response)

    async def ready(self) -> bool:
        """Return whether the server is ready, by the standard health service."""
        response = await self._begin("").send(health.check_method, StringValue())
        return response.value == health.SERVING

    def _begin(self, request_id: str) -> Call:
        return Call.begin(self._connection, self._token, request_id, self._timeout_s)
