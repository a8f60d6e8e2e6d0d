"""CVAT's interactor: clicks and boxes, for ``cvat-cli function run-agent``.

The protocol is that of ``cvat_sdk.auto_annotation``: the agent calls ``preprocess_image`` once for
a frame, keeps the result for ten minutes after its last use, and calls ``detect`` for every change
of the prompts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cvat_sdk.auto_annotation import (
    BadFunctionError,
    InteractionFunctionSpec,
    InteractionResultAttributes,
    InteractionResultShape,
)
from cvat_sdk.masks import encode_mask
from cvat_sdk.models import AttributeValRequest

from samserve.client import Embedding, EmbeddingNotFound, Mask, Prompt, SyncClient
from samserve.cvat.server import Server, client_of, to_png

if TYPE_CHECKING:
    from PIL import Image

Point = tuple[float, float]


def create(
    target: str = "127.0.0.1:50051",
    model: str = "",
    keep_mib: float = 256.0,
    retry_s: float = 10.0,
    **connection: Any,
) -> Interactor:
    """Return the function; the parameters are those of ``cvat-cli -p``.

    An empty *model* is the default of the gateway.  *keep_mib* limits the images that are kept to
    encode them again if the gateway loses their embeddings, such as by a restart.  A call is
    repeated for *retry_s* seconds while the gateway is unavailable.  *connection* are the
    parameters of `client_of`.
    """
    server = Server(partial(client_of, target, **connection), retry_s)
    return Interactor(server, model, int(keep_mib * (1 << 20)))


@dataclass(eq=False)
class Frame:
    """What the agent keeps for a frame: the embedding; ``image_size`` is height and width."""

    embedding: Embedding

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.embedding.image_size


class Interactor:
    """An ``InteractionFunction`` of CVAT."""

    spec = InteractionFunctionSpec(min_pos_points=0, min_neg_points=0, min_bounding_boxes=0)

    def __init__(self, server: Server, model: str, keep_bytes: int) -> None:
        self._server = server
        self._model = model
        self._files = _Files(keep_bytes)

    def preprocess_image(self, context: object, image: Image.Image) -> Frame:
        """Embed a frame; its file is kept beside it as far as there is room."""
        file = to_png(image)
        frame = Frame(self._embed(file))
        self._files.keep(frame, file)
        return frame

    def detect(self, context: object, pp_image: Frame, prompts: Any) -> list[Any]:
        """Return the mask of the object at the prompts, none if it has no pixels.

        Raises `BadFunctionError` for prompts that the model does not take, and as `Server.call`.
        """
        prompt = _prompt(prompts, pp_image.image_size)
        masks = self._predict(pp_image, prompt)
        best = max(masks, key=lambda mask: mask.predicted_iou)
        return [_shape(best)] if best.area else []

    def _predict(self, frame: Frame, prompt: Prompt) -> list[Mask]:
        def predict(client: SyncClient) -> list[Mask] | None:
            try:
                return client.predict(frame.embedding, [prompt]).results[0]
            except EmbeddingNotFound:
                return None

        masks = self._server.call(predict)
        if masks is None:
            file = self._files.find(frame)
            if file is None:
                raise BadFunctionError(
                    "samserve: the embedding of this frame was lost, and its image is no longer "
                    "kept; start the agent again, with a larger keep_mib"
                )
            frame.embedding = self._embed(file)
            masks = self._server.call(
                lambda client: client.predict(frame.embedding, [prompt], image=file).results[0]
            )
        return masks

    def _embed(self, file: bytes) -> Embedding:
        embed = partial(SyncClient.embed, image=file, model=self._model, orientation="ignore")
        return self._server.call(embed)


class _Files:
    """The files of the frames that were used last, within a number of bytes."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._bytes = 0
        self._files: OrderedDict[Frame, bytes] = OrderedDict()

    def keep(self, frame: Frame, file: bytes) -> None:
        self._files[frame] = file
        self._bytes += len(file)
        while self._bytes > self._capacity and self._files:
            _, dropped = self._files.popitem(last=False)
            self._bytes -= len(dropped)

    def find(self, frame: Frame) -> bytes | None:
        file = self._files.get(frame)
        if file is not None:
            self._files.move_to_end(frame)
        return file


def _prompt(prompts: Any, size: tuple[int, int]) -> Prompt:
    points = [
        (*_inside(point, size), label)
        for label, given in ((1, prompts.pos_points), (0, prompts.neg_points))
        for point in given
    ]
    box = prompts.bounding_box
    if not points and box is None:
        raise BadFunctionError("samserve: a point or a box is needed")
    if box is None:
        return Prompt(points=points)
    (x0, y0), (x1, y1) = (_inside(corner, size) for corner in box)
    return Prompt(points=points, box=(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))


def _inside(point: Sequence[float], size: tuple[int, int]) -> Point:
    """Return the nearest point of the image."""
    height, width = size
    return min(max(point[0], 0.0), float(width)), min(max(point[1], 0.0), float(height))


def _shape(mask: Mask) -> Any:
    confidence = AttributeValRequest(
        spec_id=int(InteractionResultAttributes.CONFIDENCE), value=f"{confidence_of(mask):.4f}"
    )
    return InteractionResultShape(type="mask", points=run_lengths(mask), attributes=[confidence])


def confidence_of(mask: Mask) -> float:
    """Return the predicted IoU within 0 to 1."""
    return min(max(mask.predicted_iou, 0.0), 1.0)


def run_lengths(mask: Mask) -> list[float]:
    """Return the pixels of a mask in CVAT's form: run lengths within the box, and the box."""
    x, y, width, height = (int(value) for value in mask.bbox)
    encoded: list[float] = encode_mask(mask.decode(), [x, y, x + width + 1, y + height + 1])
    return encoded
