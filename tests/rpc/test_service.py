"""The responses of the RPCs of a real server."""

from __future__ import annotations

import dataclasses
import hashlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samserve.app import Running
from samserve.cache.local.cache import LocalCache
from samserve.core import rle
from samserve.segmentation.automask.options import AutoMaskOptions
from samserve.types import CocoRle, Size
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import engine_choice, sample_images
from tests.conftest import serving
from tests.rpc.errors import failure_of

Service = tuple[Running, SegmentationServiceStub]


def mask_of(message: pb.Mask) -> np.ndarray:
    size = message.coco_rle.size
    return rle.decode(CocoRle(Size(size.height, size.width), message.coco_rle.counts))


async def predict(
    stub: SegmentationServiceStub, *prompts: pb.Prompt, **fields: Any
) -> pb.PredictResponse:
    """Call Predict on a small image, or on the given source."""
    source = {} if {"image", "embedding_id"} & fields.keys() else {"image": sample_images.image()}
    request = pb.PredictRequest(
        prompts=prompts or [sample_images.point_prompt()], **source, **fields
    )
    response: pb.PredictResponse = await stub.Predict(request)
    return response


async def embed(stub: SegmentationServiceStub, **fields: Any) -> pb.EmbedResponse:
    """Call Embed on a small image, or on the given one."""
    response: pb.EmbedResponse = await stub.Embed(
        pb.EmbedRequest(**{"image": sample_images.image(), **fields})
    )
    return response


async def test_embed_returns_id_size_model_and_expiry(stub: SegmentationServiceStub) -> None:
    response = await embed(stub)

    embedding = response.embedding
    assert len(embedding.id) == 64
    assert (embedding.image_size.height, embedding.image_size.width) == (48, 64)
    assert (embedding.model, embedding.cached) == ("fake", False)
    assert embedding.expire_time.seconds > 0
    assert [timing.stage for timing in response.timings] == [
        *("admit", "receive", "prepare", "hash", "cache_get_miss", "decode_image", "resize"),
        *("cache_put", "encode", "other"),
    ]


async def test_repeated_embed_is_cached_and_encodes_nothing(service: Service) -> None:
    running, stub = service
    first, second = [(await embed(stub)).embedding for _ in range(2)]

    assert second.id == first.id
    assert second.cached
    assert second.expire_time.ToNanoseconds() >= first.expire_time.ToNanoseconds()
    assert encodes(running) == 1


def encodes(running: Running) -> int:
    """Count the encodes without the one of the warm-up."""
    return engine_choice.run_count(running, "encoder") - 1


async def test_cached_image_is_found_by_the_hash_of_its_file(
    stub: SegmentationServiceStub,
) -> None:
    data = sample_images.png()
    first = await embed(stub, image=pb.Image(encoded=data))
    digest = pb.Image(encoded_sha256=hashlib.sha256(data).digest())
    second = await embed(stub, image=digest)
    predicted = await predict(stub, image=digest)

    assert second.embedding.id == predicted.embedding.id == first.embedding.id
    assert second.embedding.cached


async def test_predict_by_image_encodes_again_after_a_delete(service: Service) -> None:
    running, stub = service
    first = await predict(stub)
    await stub.DeleteEmbedding(pb.DeleteEmbeddingRequest(embedding_id=first.embedding.id))
    second = await predict(stub)

    assert [first.embedding.cached, second.embedding.cached] == [False, False]
    assert first.results == second.results
    assert encodes(running) == 2


async def test_coordinates_are_those_of_the_displayed_image(
    stub: SegmentationServiceStub,
) -> None:
    buffer = BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was rotated by 90 degrees
    Image.fromarray(sample_images.noise(48, 64)).save(buffer, "JPEG", exif=exif)
    rotated, unrotated = [
        (await embed(stub, image=pb.Image(encoded=buffer.getvalue(), orientation=orientation)))
        for orientation in (pb.ORIENTATION_UNSPECIFIED, pb.ORIENTATION_IGNORE)
    ]

    assert rotated.embedding.image_size == pb.ImageSize(height=64, width=48)
    assert unrotated.embedding.image_size == pb.ImageSize(height=48, width=64)
    assert rotated.embedding.id != unrotated.embedding.id


async def test_raw_pixels_and_a_png_of_them_give_the_same_masks(
    stub: SegmentationServiceStub,
) -> None:
    pixels = sample_images.noise(48, 64)
    size = pb.ImageSize(height=48, width=64)
    raws = [
        pb.RawImage(size=size, layout=pb.RAW_LAYOUT_RGB, data=pixels.tobytes()),
        pb.RawImage(size=size, layout=pb.RAW_LAYOUT_BGR, data=pixels[..., ::-1].tobytes()),
    ]
    sources = [pb.Image(encoded=sample_images.encode(pixels)), *(pb.Image(raw=raw) for raw in raws)]
    responses = [await predict(stub, image=source) for source in sources]

    assert responses[0].results == responses[1].results == responses[2].results
    assert len({response.embedding.id for response in responses}) == 3


BOX = pb.Box(x_min=1, y_min=1, x_max=20, y_max=20)
TWO_POINTS = [pb.Point(x=5, y=5, label=1), pb.Point(x=9, y=9, label=2)]
TOKENS = {
    "all": (pb.MULTIMASK_ALL, sample_images.point_prompt(), [1, 2, 3]),
    "single": (pb.MULTIMASK_SINGLE, sample_images.point_prompt(), [0]),
    "auto, one point": (pb.MULTIMASK_AUTO, sample_images.point_prompt(), [1]),
    "unset, one point": (pb.MULTIMASK_UNSPECIFIED, sample_images.point_prompt(), [1]),
    "auto, box": (pb.MULTIMASK_AUTO, pb.Prompt(box=BOX), [1]),
    "auto, two points": (pb.MULTIMASK_AUTO, pb.Prompt(points=TWO_POINTS), [0]),
    "auto, point and box": (pb.MULTIMASK_AUTO, pb.Prompt(points=TWO_POINTS[:1], box=BOX), [0]),
}


@pytest.mark.parametrize("name", TOKENS)
async def test_multimask_selects_the_tokens(name: str, stub: SegmentationServiceStub) -> None:
    mode, prompt, tokens = TOKENS[name]
    response = await predict(stub, prompt, multimask=mode)

    assert [mask.token_index for mask in response.results[0].masks] == tokens


async def test_mask_has_its_area_box_and_scores(stub: SegmentationServiceStub) -> None:
    response = await predict(
        stub, sample_images.point_prompt(320, 240), image=sample_images.image(480, 640)
    )
    mask = response.results[0].masks[0]
    rows, columns = np.nonzero(mask_of(mask))

    assert mask.area == len(rows) > 0
    assert (mask.bbox.x, mask.bbox.y) == (columns.min(), rows.min())
    assert mask.bbox.width == columns.max() - columns.min()
    assert mask.bbox.height == rows.max() - rows.min()
    assert mask.predicted_iou == pytest.approx(0.95)
    assert 0.8 < mask.stability_score < 1


async def test_output_modes_encode_the_same_pixels(stub: SegmentationServiceStub) -> None:
    masks = {}
    for mode in (
        pb.OUTPUT_MODE_COCO_RLE,
        pb.OUTPUT_MODE_UNCOMPRESSED_RLE,
        pb.OUTPUT_MODE_BINARY_MASK,
    ):
        response = await predict(stub, image=sample_images.image(50, 70), output_mode=mode)
        masks[mode] = response.results[0].masks[0]
    expected = mask_of(masks[pb.OUTPUT_MODE_COCO_RLE])
    runs = masks[pb.OUTPUT_MODE_UNCOMPRESSED_RLE].uncompressed_rle
    values = np.arange(len(runs.counts)) % 2 == 1
    bits = np.frombuffer(masks[pb.OUTPUT_MODE_BINARY_MASK].binary_mask.bits, dtype=np.uint8)

    assert expected.any()
    assert (expected == np.repeat(values, runs.counts).reshape(70, 50).T).all()
    assert (np.unpackbits(bits)[: 50 * 70].reshape(50, 70) == expected).all()


async def test_low_res_logits_are_returned_on_request_and_usable_as_mask_prompt(
    stub: SegmentationServiceStub,
) -> None:
    image, prompt = sample_images.image(480, 640), sample_images.point_prompt(320, 240)
    first = await predict(stub, prompt, image=image, include_low_res_logits=True)
    logits = first.results[0].masks[0].low_res_logits
    mask = pb.Prompt(mask=pb.MaskInput(low_res_logits=logits))
    by_id = {"embedding_id": first.embedding.id}
    refined = await predict(stub, mask, multimask=pb.MULTIMASK_ALL, **by_id)

    assert len(logits) == 256 * 256 * 4
    assert [mask.low_res_logits for mask in refined.results[0].masks] == [b""] * 3
    assert (mask_of(refined.results[0].masks[0]) == mask_of(first.results[0].masks[0])).all()


async def test_logits_only_mode_returns_no_pixels(
    stub: SegmentationServiceStub,
) -> None:
    prompts = [sample_images.point_prompt(320, 240), sample_images.point_prompt(100, 100)]
    of = {"image": sample_images.image(480, 640), "multimask": pb.MULTIMASK_ALL}
    full = await predict(stub, *prompts, include_low_res_logits=True, **of)
    logits_only = await predict(stub, *prompts, output_mode=pb.OUTPUT_MODE_LOW_RES_LOGITS, **of)

    for with_pixels, without in zip(full.results, logits_only.results, strict=True):
        for expected, mask in zip(with_pixels.masks, without.masks, strict=True):
            assert mask == pb.Mask(
                predicted_iou=expected.predicted_iou,
                token_index=expected.token_index,
                low_res_logits=expected.low_res_logits,
            )
            assert len(mask.low_res_logits) == 256 * 256 * 4


async def test_binary_mask_is_usable_as_a_prompt(stub: SegmentationServiceStub) -> None:
    mask = np.zeros((480, 640), dtype=bool)
    mask[100:300, 200:500] = True
    coco = pb.CocoRle(size=pb.ImageSize(height=480, width=640), counts=rle.encode(mask).counts)
    prompt = pb.Prompt(mask=pb.MaskInput(binary=coco))
    image = sample_images.image(480, 640)
    response = await predict(stub, prompt, image=image, multimask=pb.MULTIMASK_ALL)
    found = mask_of(response.results[0].masks[0])

    assert np.count_nonzero(found & mask) / np.count_nonzero(found | mask) > 0.95


async def test_mixed_prompts_return_the_masks_of_single_prompts_in_order(
    stub: SegmentationServiceStub,
) -> None:
    image = sample_images.image(480, 640)
    box = pb.Box(x_min=100, y_min=100, x_max=300, y_max=200)
    prompts = [
        sample_images.point_prompt(100, 100),
        pb.Prompt(box=box),
        sample_images.point_prompt(500, 400),
        pb.Prompt(points=[pb.Point(x=50, y=60, label=1), pb.Point(x=70, y=60, label=1)]),
        pb.Prompt(points=[pb.Point(x=150, y=150, label=1)], box=box),
        *[sample_images.point_prompt(20 * index + 5, 200) for index in range(30)],
    ]
    together = await predict(stub, *prompts, image=image)
    alone = [await predict(stub, prompt, image=image) for prompt in prompts]

    assert list(together.results) == [response.results[0] for response in alone]


async def test_delete_is_idempotent(stub: SegmentationServiceStub) -> None:
    embedded = await embed(stub)
    request = pb.DeleteEmbeddingRequest(embedding_id=embedded.embedding.id)

    deleted = [(await stub.DeleteEmbedding(request)).deleted for _ in range(2)]

    assert deleted == [True, False]


async def test_embedding_id_is_usable_with_the_name_of_its_model(
    stub: SegmentationServiceStub,
) -> None:
    embedded = await embed(stub, model="fake")
    response = await predict(stub, embedding_id=embedded.embedding.id, model="fake")

    assert response.embedding.cached


async def test_list_models_returns_capabilities_limits_and_defaults(
    stub: SegmentationServiceStub,
) -> None:
    response = await stub.ListModels(pb.ListModelsRequest())
    model = response.models[0]

    assert (model.name, model.family, model.default) == ("fake", "sam1", True)
    assert (model.image_side, model.mask_side, model.embedding_bytes) == (1024, 256, 2 << 20)
    assert (model.capabilities.points, model.capabilities.text) == (True, False)
    transports = {"triton": pb.TRANSPORT_SHARED_MEMORY, "triton-message": pb.TRANSPORT_MESSAGE}
    assert model.transport == transports.get(engine_choice.kind, pb.TRANSPORT_IN_PROCESS)
    assert response.limits.max_prompts == 256
    assert response.limits.max_exclude_masks == 1000
    assert response.automask_defaults == pb.AutoMaskOptions(
        points_per_side=32,
        points_per_batch=64,
        pred_iou_thresh=0.88,
        stability_score_thresh=0.95,
        stability_score_offset=1.0,
        box_nms_thresh=0.7,
        crop_n_layers=0,
        crop_nms_thresh=0.7,
        crop_overlap_ratio=512 / 1500,
        crop_n_points_downscale_factor=1,
        min_mask_region_area=0,
        max_masks=0,
        exclude_iou_thresh=0.7,
        exclude_parts=False,
        multimask_output=True,
        use_m2m=False,
    )


async def test_every_option_of_the_message_has_a_field() -> None:
    fields = {field.name for field in pb.AutoMaskOptions.DESCRIPTOR.fields}

    assert fields == {field.name for field in dataclasses.fields(AutoMaskOptions)}


async def test_expired_embedding_returns_not_found_and_is_encoded_again_under_the_same_id() -> None:
    times = [1000.0]
    cache = LocalCache(64 << 20, ttl_s=60, now=lambda: times[0])
    async with serving(cache=cache) as (_, stub):
        first = await embed(stub)
        times[0] += 61
        expired = await failure_of(predict(stub, embedding_id=first.embedding.id))
        second = await embed(stub)

    assert first.embedding.expire_time.seconds == 1060
    assert expired.reason == "EMBEDDING_NOT_FOUND"
    assert first.embedding.id == second.embedding.id
    assert not second.embedding.cached
