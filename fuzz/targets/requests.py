"""Messages of the protocol: parsing, and all that the service does before a model runs.

An input is one byte that chooses the call, and the serialized request.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from random import Random
from typing import Any, cast

import numpy as np
from google.protobuf.message import Message
from samserve import images
from samserve.engines.fake import MODEL, FakeEngine
from samserve.errors import InvalidRequest
from samserve.models.families import SAM1
from samserve.rpc import field_limit, requests
from samserve.segmentation import ids
from samserve.segmentation import prompts as prompting
from samserve.segmentation.automask.crops import plan_crops
from samserve.segmentation.automask.options import AutoMaskOptions
from samserve.segmentation.embed import EmbeddingService
from samserve.segmentation.sources import EmbeddingRef, Source
from samserve.settings import LimitSettings
from samserve.types import ImageDigest, ModelInfo, Size
from samserve.v1 import samserve_pb2 as pb

from fuzz import files, protobufs
from fuzz.targets import rle

_LIMITS = LimitSettings(
    prompts=16, points=8, points_per_side=12, crop_n_layers=2, response_bytes=1 << 14
)
_IMAGE_LIMITS = images.ImageLimits(max_pixels=5000, max_side=100)
_STORED = Size(16, 24)
_MODEL = replace(MODEL, image_size=64, mask_size=16)
_MOST_PER_RUN = 4
_CONTENTS = (
    *(files.jpegs()[0], files.pngs()[0], files.webps()[0], b"", b"fake", b"A" * 129, b"a" * 64),
    *(bytes(size) for size in (31, 32, 54, 162, 900, 1024)),
    *(b"\0\0\xc0\x7f" * 256, b"\xff" * 9, b"o" * 6, b"0n2", b"\r\nx: y", b"\xc3\xa9" * 65),
)


class _NoStore:
    """Stands for all but the engine, which is not reached."""


_EMBEDDINGS = EmbeddingService(FakeEngine(model=_MODEL), *cast(Any, [_NoStore()] * 5))


def run(data: bytes) -> None:
    """Parse the message and do with it what the servicer does."""
    call = (_embed, _predict, _automask, _delete)[data[0] % 4 if data else 0]
    request = _message(data)
    # Whoever counts fields takes whatever protobuf takes.
    assert field_limit.count_fields(request.DESCRIPTOR, memoryview(data[1:]), 1 << 14) > 0
    call(cast(Any, request))


def _message(data: bytes) -> Message:
    kinds = (pb.EmbedRequest, pb.PredictRequest, pb.AutoMaskRequest, pb.DeleteEmbeddingRequest)
    return field_limit.parse(kinds[data[0] % 4 if data else 0], data[1:], 1 << 14)


def _embed(request: pb.EmbedRequest) -> None:
    image = requests.embed(request).image
    model = _EMBEDDINGS.model(request.model)
    assert len(ids.embedding_id(image, model)) == 64
    if not isinstance(image, ImageDigest):
        images.probe(image, _IMAGE_LIMITS)


def _predict(request: pb.PredictRequest) -> None:
    requests.prompts_are_quick(request)
    call = requests.predict(request, _LIMITS)
    prompts = call.prompts
    size, model = _sized(call.source, call.model)
    call.options.check_logits(len(prompts), model)
    prompting.check_prompts(prompts, size, model)
    transform = SAM1.transform(size, model)
    ready = tuple(prompting.with_logits(prompt, SAM1, transform) for prompt in prompts)
    groups = list(prompting.group(ready, SAM1, transform, _MOST_PER_RUN))
    indices = sorted(index for group in groups for index in group.indices)
    assert indices == list(range(len(prompts)))
    for group in groups:
        _check_group(group, model)


def _check_group(group: prompting.PromptGroup, model: ModelInfo) -> None:
    """Look at the tensors that the decoder would get."""
    batch, count = group.batch, len(group.indices)
    assert 1 <= count <= _MOST_PER_RUN
    assert batch.point_labels.shape == batch.point_coords.shape[:2]
    assert batch.point_coords.shape[0] == count
    assert batch.point_coords.shape[2] == 2
    assert batch.mask_input.shape[0] in (0, count)
    assert batch.mask_input.shape[1:] == (model.mask_size, model.mask_size)
    for tensor in (batch.point_coords, batch.point_labels, batch.mask_input):
        assert tensor.dtype == np.float32
        assert np.isfinite(tensor).all()
    assert (batch.point_coords >= 0).all()
    assert (batch.point_coords <= model.image_size).all()


def _automask(request: pb.AutoMaskRequest) -> None:
    call = requests.automask(request, _LIMITS)
    options = AutoMaskOptions.of(SAM1, call.options)
    size, _ = _sized(call.source, call.model)
    if options.region_of_interest is not None:
        prompting.check_box_inside("options.region_of_interest", options.region_of_interest, size)
    crops = plan_crops(size, options)
    assert crops[0].size == size
    for crop in crops:
        assert crop.size.height > 0
        assert crop.size.width > 0
        transform = SAM1.transform(crop.size, _MODEL)
        coords, labels = SAM1.grid_prompts(transform.points_to_model(crop.points))
        assert np.isfinite(coords).all()
        assert len(coords) == len(labels) == len(crop.points)


def _delete(request: pb.DeleteEmbeddingRequest) -> None:
    requests.delete(request)


def _sized(source: Source, model: str) -> tuple[Size, ModelInfo]:
    """Find the size of the image; what would be in the store has always the same."""
    chosen = _EMBEDDINGS.model(model)
    if isinstance(source, EmbeddingRef):
        return _STORED, chosen
    ids.embedding_id(source.image, chosen)
    if isinstance(source.image, ImageDigest):
        return _STORED, chosen
    return images.probe(source.image, _IMAGE_LIMITS), chosen


@functools.cache
def seeds() -> list[bytes]:
    """Return requests of every kind that are good, and the empty ones."""
    image = pb.Image(encoded=files.pngs()[0])
    size = pb.ImageSize(height=6, width=9)
    raw = pb.Image(raw=pb.RawImage(size=size, layout=pb.RAW_LAYOUT_RGB, data=bytes(162)))
    digest = pb.Image(encoded_sha256=bytes(32))
    sources = (image, raw, digest)
    embeds = [_packed(0, pb.EmbedRequest(image=each, model="fake")) for each in sources]
    predicts = [
        _packed(1, pb.PredictRequest(image=each, prompts=_prompts(measured)))
        for each, measured in zip(sources, (Size(6, 9), Size(6, 9), _STORED), strict=True)
    ]
    by_id = pb.PredictRequest(embedding_id="a" * 64, prompts=_prompts(_STORED))
    by_id.output_mode = pb.OUTPUT_MODE_LOW_RES_LOGITS
    automasks = [
        _packed(2, pb.AutoMaskRequest(image=each, options=options))
        for each in sources
        for options in _options()
    ]
    other = [_packed(1, by_id), _packed(2, pb.AutoMaskRequest(embedding_id="a" * 64))]
    delete = _packed(3, pb.DeleteEmbeddingRequest(embedding_id="a" * 64))
    return [*embeds, *predicts, *automasks, *other, delete, *(bytes([kind]) for kind in range(4))]


def _packed(kind: int, request: Message) -> bytes:
    return bytes([kind]) + request.SerializeToString()


def _prompts(image: Size) -> list[pb.Prompt]:
    click = pb.Point(x=1, y=2, label=pb.Point.LABEL_FOREGROUND)
    box = pb.Box(x_min=0, y_min=0, x_max=image.width, y_max=image.height)
    size = pb.ImageSize(height=image.height, width=image.width)
    counts = rle.random_mask(image, Random(0)).counts
    return [
        pb.Prompt(points=[click]),
        pb.Prompt(points=[click, click], box=box),
        pb.Prompt(box=box),
        pb.Prompt(mask=pb.MaskInput(binary=pb.CocoRle(size=size, counts=counts))),
        pb.Prompt(points=[click], mask=pb.MaskInput(low_res_logits=bytes(1024))),
    ]


def _options() -> list[pb.AutoMaskOptions]:
    grid = pb.PointGrid(points=[pb.NormalizedPoint(x=0.5, y=0.5)])
    region = pb.Box(x_min=0, y_min=0, x_max=5, y_max=5)
    return [
        pb.AutoMaskOptions(points_per_side=4, crop_n_layers=1, crop_overlap_ratio=0.3),
        pb.AutoMaskOptions(point_grids=[grid], region_of_interest=region, max_masks=3),
        pb.AutoMaskOptions(
            points_per_side=3,
            crop_n_layers=2,
            crop_n_points_downscale_factor=2,
            min_mask_region_area=1,
        ),
    ]


def mutate(data: bytes, random: Random) -> bytes:
    """Change one to three fields of a request; bytes that do not parse become a seed."""
    try:
        request = _message(data)
    except InvalidRequest:
        return random.choice(seeds())
    for _ in range(random.randrange(1, 4)):
        protobufs.mutate(request, random, _CONTENTS)
    return _packed(data[0] % 4 if data else 0, request)
