"""Messages of the protocol: parsing, and everything that the service does before an inference.

An input is one byte that selects the call, and the serialized request.
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
from samserve.segmentation.automask.checks import check_request
from samserve.segmentation.automask.crops import plan_crops
from samserve.segmentation.automask.exclusion import Exclusion
from samserve.segmentation.automask.options import AutoMaskOptions
from samserve.segmentation.embed import EmbeddingService
from samserve.segmentation.sources import EmbeddingRef, Source
from samserve.settings import LimitSettings
from samserve.types import ImageDigest, ModelInfo, Size
from samserve.v1 import samserve_pb2 as pb

from fuzz import files, protobufs
from fuzz.targets import rle

_LIMITS = LimitSettings(
    max_prompts=16,
    max_points=8,
    max_points_per_side=12,
    max_crop_n_layers=2,
    max_exclude_masks=4,
    max_response_bytes=1 << 14,
)
_IMAGE_LIMITS = images.ImageLimits(max_pixels=5000, max_side=100)
_CACHED_SIZE = Size(16, 24)
_MODEL = replace(MODEL, image_size=64, mask_size=16)
_MAX_PROMPTS_PER_BATCH = 4
_CONTENTS = (
    *(files.jpegs()[0], files.pngs()[0], files.webps()[0], b"", b"fake", b"A" * 129, b"a" * 64),
    *(bytes(size) for size in (31, 32, 54, 162, 900, 1024)),
    *(b"\0\0\xc0\x7f" * 256, b"\xff" * 9, b"o" * 6, b"0n2", b"\r\nx: y", b"\xc3\xa9" * 65),
)


class _NoCache:
    """Placeholder for all parts but the engine, none of which is used."""


_EMBEDDINGS = EmbeddingService(FakeEngine(model=_MODEL), *cast(Any, [_NoCache()] * 5))


def run(data: bytes) -> None:
    """Parse the message and process it as the servicer does."""
    call = (_embed, _predict, _automask, _delete)[data[0] % 4 if data else 0]
    request = _message(data)
    # The counter of fields accepts every message that protobuf accepts.
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
    size, model = _image_size(call.source, call.model)
    call.options.check_logits(len(prompts), model)
    prompting.check_prompts(prompts, size, model)
    transform = SAM1.transform(size, model)
    ready = tuple(prompting.with_logits(prompt, SAM1, transform) for prompt in prompts)
    groups = list(prompting.batch_prompts(ready, SAM1, transform, _MAX_PROMPTS_PER_BATCH))
    indices = sorted(index for group in groups for index in group.indices)
    assert indices == list(range(len(prompts)))
    for group in groups:
        _check_group(group, model)


def _check_group(group: prompting.PromptGroup, model: ModelInfo) -> None:
    """Check the tensors for the decoder."""
    batch, count = group.batch, len(group.indices)
    assert 1 <= count <= _MAX_PROMPTS_PER_BATCH
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
    size, _ = _image_size(call.source, call.model)
    check_request(call.options, size, _MODEL)
    exclusion = Exclusion.of(options)
    assert all(0 < mask.area <= size.pixels for mask in exclusion.masks)
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


def _image_size(source: Source, model: str) -> tuple[Size, ModelInfo]:
    """Return the size of the image; a cached one always has the same size."""
    chosen = _EMBEDDINGS.model(model)
    if isinstance(source, EmbeddingRef):
        return _CACHED_SIZE, chosen
    ids.embedding_id(source.image, chosen)
    if isinstance(source.image, ImageDigest):
        return _CACHED_SIZE, chosen
    return images.probe(source.image, _IMAGE_LIMITS), chosen


@functools.cache
def seeds() -> list[bytes]:
    """Return valid requests of every kind, and empty ones."""
    image = pb.Image(encoded=files.pngs()[0])
    size = pb.ImageSize(height=6, width=9)
    raw = pb.Image(raw=pb.RawImage(size=size, layout=pb.RAW_LAYOUT_RGB, data=bytes(162)))
    digest = pb.Image(encoded_sha256=bytes(32))
    sources = (image, raw, digest)
    embeds = [_input(0, pb.EmbedRequest(image=source, model="fake")) for source in sources]
    predicts = [
        _input(1, pb.PredictRequest(image=source, prompts=_prompts(measured)))
        for source, measured in zip(sources, (Size(6, 9), Size(6, 9), _CACHED_SIZE), strict=True)
    ]
    by_id = pb.PredictRequest(embedding_id="a" * 64, prompts=_prompts(_CACHED_SIZE))
    by_id.output_mode = pb.OUTPUT_MODE_LOW_RES_LOGITS
    automasks = [
        _input(2, pb.AutoMaskRequest(image=source, options=options))
        for source in sources
        for options in _options()
    ]
    other = [_input(1, by_id), _input(2, pb.AutoMaskRequest(embedding_id="a" * 64))]
    delete = _input(3, pb.DeleteEmbeddingRequest(embedding_id="a" * 64))
    return [*embeds, *predicts, *automasks, *other, delete, *(bytes([kind]) for kind in range(4))]


def _input(kind: int, request: Message) -> bytes:
    return bytes([kind]) + request.SerializeToString()


def _prompts(image: Size) -> list[pb.Prompt]:
    point = pb.Point(x=1, y=2, label=pb.Point.LABEL_FOREGROUND)
    box = pb.Box(x_min=0, y_min=0, x_max=image.width, y_max=image.height)
    size = pb.ImageSize(height=image.height, width=image.width)
    counts = rle.random_mask(image, Random(0)).counts
    return [
        pb.Prompt(points=[point]),
        pb.Prompt(points=[point, point], box=box),
        pb.Prompt(box=box),
        pb.Prompt(mask=pb.MaskInput(binary=pb.CocoRle(size=size, counts=counts))),
        pb.Prompt(points=[point], mask=pb.MaskInput(low_res_logits=bytes(1024))),
    ]


def _options() -> list[pb.AutoMaskOptions]:
    grid = pb.PointGrid(points=[pb.NormalizedPoint(x=0.5, y=0.5)])
    region = pb.Box(x_min=0, y_min=0, x_max=5, y_max=5)
    excluded = [
        pb.CocoRle(
            size=pb.ImageSize(height=size.height, width=size.width),
            counts=rle.random_mask(size, Random(seed)).counts,
        )
        for seed, size in enumerate((Size(6, 9), Size(6, 9), _CACHED_SIZE))
    ]
    return [
        pb.AutoMaskOptions(points_per_side=2, exclude=excluded[:2], exclude_iou_thresh=0.5),
        pb.AutoMaskOptions(points_per_side=2, exclude=excluded[2:], exclude_parts=True),
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
    return _input(data[0] % 4 if data else 0, request)
