"""What tools use to segment: one encode for each image, however many clicks, tools and users.

All requests about an image go to one gateway.  The bridge remembers the id of the embedding for
what a tool calls the image, such as a URL or the hash of what it sent, so that most requests need
neither the image nor its hash.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from samserve.bridge.caller import Caller
from samserve.bridge.gateways import Gateways
from samserve.bridge.settings import BridgeSettings
from samserve.client import (
    AutoMaskResult,
    Catalog,
    Client,
    Embedding,
    EmbeddingNotFound,
    Orientation,
    Prediction,
    Prompt,
)
from samserve.client.images import is_accepted, load
from samserve.errors import ImageTooLarge
from samserve.scheduling.single_flight import SingleFlight
from samserve.telemetry.metrics.bridge import BridgeMetrics

T = TypeVar("T")

# The owner, the model, the orientation, and the source or the content of an image.
_Key = tuple[bytes, str, Orientation, bytes]


@dataclass(frozen=True, slots=True, eq=False)
class ImageSource:
    """An image, as a tool refers to it.

    ``key`` is what the tool calls it, such as ``url:...`` or ``sha256:...``: equal keys must mean
    equal images, for one credential.  ``load`` returns the bytes of the file, in any format that
    `samserve.client` takes; it is called only if they are needed.  ``orientation`` is ``ignore``
    for tools that show images without their EXIF orientation.
    """

    key: str
    load: Callable[[], Awaitable[bytes]] = field(repr=False)
    orientation: Orientation = "exif"


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What is kept about an image: its hash, SHA-256 of the file, and its embedding's id."""

    sha256: bytes
    embedding: Embedding


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """An image with its embedding, for `Segmenter.predict` and `Segmenter.automask`."""

    source: ImageSource
    model: str
    known: Known

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels, after the EXIF orientation."""
        return self.known.embedding.image_size


class Segmenter:
    """Embeds images and segments them for callers; used on the event loop only.

    Its methods raise the classes of `samserve.client.errors`, and what `ImageSource.load` raises.
    An empty *model* is `gateways.model`, or the gateways' default.
    """

    def __init__(
        self, gateways: Gateways, settings: BridgeSettings, metrics: BridgeMetrics
    ) -> None:
        self._gateways = gateways
        self._limits = settings.limits
        self._model = settings.gateways.model
        self._metrics = metrics
        self._known: OrderedDict[_Key, Known] = OrderedDict()
        self._flights: SingleFlight[_Key, Known] = SingleFlight()
        self._conversions = asyncio.Semaphore(self._limits.max_concurrent_conversions)

    def held_images(self) -> int:
        """Return the number of entries that are kept."""
        return len(self._known)

    async def models(self, caller: Caller) -> Catalog:
        """Return the models of the gateways, and their limits."""
        return await self._gateways.models(caller)

    async def embed(
        self, source: ImageSource, caller: Caller, *, model: str = "", wait: bool = True
    ) -> Held:
        """Return an image with its embedding; without *wait*, as soon as a gateway has the image.

        The first `predict` then waits for the encoding.
        """
        model = model or self._model
        key = (caller.owner, model, source.orientation, _digest(source.key.encode()))
        known = self._find(key)
        if known is not None:
            self._metrics.count_embed("held")
            return Held(source, model, known)
        begin = partial(self._embedding, key, source, caller, wait)
        async with self._flights.join(key, begin) as (known, started):
            if not started:
                self._metrics.count_embed("joined")
            return Held(source, model, known)

    async def predict(
        self, held: Held, prompts: Sequence[Prompt], caller: Caller, **options: Any
    ) -> Prediction:
        """Segment one object per prompt; *options* as in `Client.predict`.

        If the gateway no longer has the embedding, the image is embedded again.
        """

        async def predict(client: Client, embedding: Embedding) -> Prediction:
            self._metrics.predicts.inc()
            return await client.predict(embedding, prompts, request_id=caller.request_id, **options)

        return await self._with_embedding(held, caller, predict)

    async def automask(self, held: Held, caller: Caller, **options: Any) -> AutoMaskResult:
        """Segment everything; *options* as in `Client.automask_all`.

        With crop layers, the image itself is sent: the gateway needs its pixels.
        """
        image = await self._file(held.source) if options.get("crop_n_layers") else None

        async def automask(client: Client, embedding: Embedding) -> AutoMaskResult:
            source, model = (embedding, "") if image is None else (image, embedding.model)
            return await client.automask_all(
                source,
                model=model,
                orientation=embedding.orientation,
                request_id=caller.request_id,
                **options,
            )

        return await self._with_embedding(held, caller, automask)

    async def _with_embedding(
        self, held: Held, caller: Caller, use: Callable[[Client, Embedding], Awaitable[T]]
    ) -> T:
        """Call the image's gateway; embed the image again if the embedding is lost."""
        source, model = held.source, held.model
        for _ in range(2):
            known = held.known
            with suppress(EmbeddingNotFound):
                return await self._gateways.call(
                    known.sha256, caller, partial(_use, use, known.embedding)
                )
            self._forget(known)
            held = await self.embed(source, caller, model=model)
        # Gateways come and go: the one that has it may have been left again.
        data = await self._file(source)

        async def both(client: Client) -> T:
            embedding = await client.embed(
                data,
                model=model,
                orientation=source.orientation,
                request_id=caller.request_id,
            )
            return await use(client, embedding)

        return await self._gateways.call(held.known.sha256, caller, both)

    @asynccontextmanager
    async def _embedding(
        self, key: _Key, source: ImageSource, caller: Caller, wait: bool
    ) -> AsyncIterator[Known]:
        """Embed an image; what another tool calls it may be known already."""
        try:
            data = await self._file(source)
            sha256 = await asyncio.to_thread(_digest, data)
            content = (*key[:3], sha256)
            known = self._find(content)
            if known is None:
                known = Known(sha256, await self._embed(data, content, caller, wait))
                self._keep(content, known)
                found = "cached" if known.embedding.cached else "encoded"
            else:
                found = "held"
        except BaseException:
            self._metrics.count_embed("failed")
            raise
        self._metrics.count_embed(found)
        if found == "encoded":
            self._metrics.encoded_bytes.inc(len(data))
        self._keep(key, known)
        del data
        yield known

    async def _embed(self, data: bytes, content: _Key, caller: Caller, wait: bool) -> Embedding:
        _, model, orientation, sha256 = content

        def embed(client: Client) -> Awaitable[Embedding]:
            method = client.embed if wait else client.prefetch
            return method(data, model=model, orientation=orientation, request_id=caller.request_id)

        return await self._gateways.call(sha256, caller, embed)

    async def _file(self, source: ImageSource) -> bytes:
        """Return the bytes of a file that gateways decode."""
        data = await source.load()
        limit = self._limits.max_image_bytes
        if len(data) > limit:
            raise ImageTooLarge(
                "image",
                f"has {len(data)} bytes; limits.max_image_bytes is {limit}",
                metadata={"limit": str(limit), "actual": str(len(data))},
            )
        if is_accepted(data):
            return data
        async with self._conversions:
            return (await asyncio.to_thread(load, data)).data

    def _find(self, key: _Key) -> Known | None:
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
        return known

    def _keep(self, key: _Key, known: Known) -> None:
        self._known[key] = known
        self._known.move_to_end(key)
        while len(self._known) > self._limits.max_held_images:
            self._known.popitem(last=False)

    def _forget(self, known: Known) -> None:
        """Forget a lost embedding under all names of its image, unless it was replaced since."""
        lost = [key for key, each in self._known.items() if each is known]
        for key in lost:
            del self._known[key]


def _use(
    use: Callable[[Client, Embedding], Awaitable[T]], embedding: Embedding, client: Client
) -> Awaitable[T]:
    return use(client, embedding)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
