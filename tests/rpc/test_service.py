"""What the RPCs answer, through the real server."""

from __future__ import annotations

import dataclasses
import hashlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samserve.app import Running
from samserve.core import rle
from samserve.segmentation.automask.options import AutoMaskOptions
from samserve.stores.local.store import MemoryStore
from samserve.types import CocoRle, Size
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import chosen, pictures
from tests.conftest import serving
from tests.rpc.errors import failure_of

Service = tuple[Running, SegmentationServiceStub]


def mask_of(message: pb.Mask) -> np.ndarray:
    size = message.coco_rle.size
    return rle.decode(CocoRle(Size(size.height, size.width), message.coco_rle.counts))


async def predict(
    stub: SegmentationServiceStub, *prompts: pb.Prompt, **fields: Any
) -> pb.PredictResponse:
    """Predict on a small picture, or on the source that is given."""
    source = {} if {"image", "embedding_id"} & fields.keys() else {"image": pictures.image()}
    request = pb.PredictRequest(prompts=prompts or [pictures.click()], **source, **fields)
    answer: pb.PredictResponse = await stub.Predict(request)
    return answer


async def embed(stub: SegmentationServiceStub, **fields: Any) -> pb.EmbedResponse:
    """Embed a small picture, or the one that is given."""
    answer: pb.EmbedResponse = await stub.Embed(
        pb.EmbedRequest(**{"image": pictures.image(), **fields})
    )
    return answer


async def test_embed_tells_id_size_model_and_expiry(stub: SegmentationServiceStub) -> None:
    answer = await embed(stub)

    embedding = answer.embedding
    assert len(embedding.id) == 64
    assert (embedding.image_size.height, embedding.image_size.width) == (48, 64)
    assert (embedding.model, embedding.cached) == ("fake", False)
    assert embedding.expire_time.seconds > 0
    assert [timing.stage for timing in answer.timings] == [
        *("admit", "receive", "prepare", "hash", "cache_get_miss", "decode_image", "resize"),
        *("cache_put", "encode", "other"),
    ]


async def test_a_repeated_embed_is_cached_and_encodes_nothing(service: Service) -> None:
    running, stub = service
    first, second = [(await embed(stub)).embedding for _ in range(2)]

    assert second.id == first.id
    assert second.cached
    assert second.expire_time.ToNanoseconds() >= first.expire_time.ToNanoseconds()
    assert encodes(running) == 1


def encodes(running: Running) -> int:
    """Count the encodes besides the warm-up's."""
    return chosen.runs(running, "encoder") - 1


async def test_a_known_image_is_found_by_the_hash_of_its_file(
    stub: SegmentationServiceStub,
) -> None:
    data = pictures.png()
    first = await embed(stub, image=pb.Image(encoded=data))
    digest = pb.Image(encoded_sha256=hashlib.sha256(data).digest())
    second = await embed(stub, image=digest)
    predicted = await predict(stub, image=digest)

    assert second.embedding.id == predicted.embedding.id == first.embedding.id
    assert second.embedding.cached


async def test_predict_heals_a_lost_embedding_from_the_image(service: Service) -> None:
    running, stub = service
    first = await predict(stub)
    await stub.DeleteEmbedding(pb.DeleteEmbeddingRequest(embedding_id=first.embedding.id))
    second = await predict(stub)

    assert [first.embedding.cached, second.embedding.cached] == [False, False]
    assert first.results == second.results
    assert encodes(running) == 2


async def test_coordinates_are_those_of_the_picture_as_people_see_it(
    stub: SegmentationServiceStub,
) -> None:
    buffer = BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    Image.fromarray(pictures.noise(48, 64)).save(buffer, "JPEG", exif=exif)
    turned, stored = [
        (await embed(stub, image=pb.Image(encoded=buffer.getvalue(), orientation=orientation)))
        for orientation in (pb.ORIENTATION_UNSPECIFIED, pb.ORIENTATION_IGNORE)
    ]

    assert turned.embedding.image_size == pb.ImageSize(height=64, width=48)
    assert stored.embedding.image_size == pb.ImageSize(height=48, width=64)
    assert turned.embedding.id != stored.embedding.id


async def test_raw_pixels_and_a_png_of_them_give_the_same_masks(
    stub: SegmentationServiceStub,
) -> None:
    pixels = pictures.noise(48, 64)
    size = pb.ImageSize(height=48, width=64)
    raws = [
        pb.RawImage(size=size, layout=pb.RAW_LAYOUT_RGB, data=pixels.tobytes()),
        pb.RawImage(size=size, layout=pb.RAW_LAYOUT_BGR, data=pixels[..., ::-1].tobytes()),
    ]
    sources = [pb.Image(encoded=pictures.file_of(pixels)), *(pb.Image(raw=raw) for raw in raws)]
    answers = [await predict(stub, image=source) for source in sources]

    assert answers[0].results == answers[1].results == answers[2].results
    assert len({answer.embedding.id for answer in answers}) == 3


BOX = pb.Box(x_min=1, y_min=1, x_max=20, y_max=20)
CLICKS = [pb.Point(x=5, y=5, label=1), pb.Point(x=9, y=9, label=2)]
TOKENS = {
    "all": (pb.MULTIMASK_ALL, pictures.click(), [1, 2, 3]),
    "single": (pb.MULTIMASK_SINGLE, pictures.click(), [0]),
    "auto, one click": (pb.MULTIMASK_AUTO, pictures.click(), [1]),
    "unset, one click": (pb.MULTIMASK_UNSPECIFIED, pictures.click(), [1]),
    "auto, box": (pb.MULTIMASK_AUTO, pb.Prompt(box=BOX), [1]),
    "auto, two clicks": (pb.MULTIMASK_AUTO, pb.Prompt(points=CLICKS), [0]),
    "auto, click and box": (pb.MULTIMASK_AUTO, pb.Prompt(points=CLICKS[:1], box=BOX), [0]),
}


@pytest.mark.parametrize("name", TOKENS)
async def test_multimask_chooses_the_tokens(name: str, stub: SegmentationServiceStub) -> None:
    mode, prompt, tokens = TOKENS[name]
    answer = await predict(stub, prompt, multimask=mode)

    assert [mask.token_index for mask in answer.results[0].masks] == tokens


async def test_a_mask_says_its_area_box_and_scores(stub: SegmentationServiceStub) -> None:
    answer = await predict(stub, pictures.click(320, 240), image=pictures.image(480, 640))
    mask = answer.results[0].masks[0]
    rows, columns = np.nonzero(mask_of(mask))

    assert mask.area == len(rows) > 0
    assert (mask.bbox.x, mask.bbox.y) == (columns.min(), rows.min())
    assert mask.bbox.width == columns.max() - columns.min()
    assert mask.bbox.height == rows.max() - rows.min()
    assert mask.predicted_iou == pytest.approx(0.95)
    assert 0.8 < mask.stability_score < 1


async def test_the_output_modes_say_the_same_pixels(stub: SegmentationServiceStub) -> None:
    masks = {}
    for mode in (
        pb.OUTPUT_MODE_COCO_RLE,
        pb.OUTPUT_MODE_UNCOMPRESSED_RLE,
        pb.OUTPUT_MODE_BINARY_MASK,
    ):
        answer = await predict(stub, image=pictures.image(50, 70), output_mode=mode)
        masks[mode] = answer.results[0].masks[0]
    expected = mask_of(masks[pb.OUTPUT_MODE_COCO_RLE])
    runs = masks[pb.OUTPUT_MODE_UNCOMPRESSED_RLE].uncompressed_rle
    values = np.arange(len(runs.counts)) % 2 == 1
    bits = np.frombuffer(masks[pb.OUTPUT_MODE_BINARY_MASK].binary_mask.bits, dtype=np.uint8)

    assert expected.any()
    assert (expected == np.repeat(values, runs.counts).reshape(70, 50).T).all()
    assert (np.unpackbits(bits)[: 50 * 70].reshape(50, 70) == expected).all()


async def test_low_res_logits_come_on_request_and_go_back_as_a_mask_prompt(
    stub: SegmentationServiceStub,
) -> None:
    image, prompt = pictures.image(480, 640), pictures.click(320, 240)
    first = await predict(stub, prompt, image=image, include_low_res_logits=True)
    logits = first.results[0].masks[0].low_res_logits
    mask = pb.Prompt(mask=pb.MaskInput(low_res_logits=logits))
    by_id = {"embedding_id": first.embedding.id}
    refined = await predict(stub, mask, multimask=pb.MULTIMASK_ALL, **by_id)

    assert len(logits) == 256 * 256 * 4
    assert [mask.low_res_logits for mask in refined.results[0].masks] == [b""] * 3
    assert (mask_of(refined.results[0].masks[0]) == mask_of(first.results[0].masks[0])).all()


async def test_an_answer_may_be_low_res_logits_and_nothing_else(
    stub: SegmentationServiceStub,
) -> None:
    prompts = [pictures.click(320, 240), pictures.click(100, 100)]
    of = {"image": pictures.image(480, 640), "multimask": pb.MULTIMASK_ALL}
    full = await predict(stub, *prompts, include_low_res_logits=True, **of)
    bare = await predict(stub, *prompts, output_mode=pb.OUTPUT_MODE_LOW_RES_LOGITS, **of)

    for with_pixels, without in zip(full.results, bare.results, strict=True):
        for expected, mask in zip(with_pixels.masks, without.masks, strict=True):
            assert mask == pb.Mask(
                predicted_iou=expected.predicted_iou,
                token_index=expected.token_index,
                low_res_logits=expected.low_res_logits,
            )
            assert len(mask.low_res_logits) == 256 * 256 * 4


async def test_an_ordinary_mask_is_taken_as_a_prompt(stub: SegmentationServiceStub) -> None:
    mask = np.zeros((480, 640), dtype=bool)
    mask[100:300, 200:500] = True
    coco = pb.CocoRle(size=pb.ImageSize(height=480, width=640), counts=rle.encode(mask).counts)
    prompt = pb.Prompt(mask=pb.MaskInput(binary=coco))
    image = pictures.image(480, 640)
    answer = await predict(stub, prompt, image=image, multimask=pb.MULTIMASK_ALL)
    found = mask_of(answer.results[0].masks[0])

    assert np.count_nonzero(found & mask) / np.count_nonzero(found | mask) > 0.95


async def test_prompts_of_many_kinds_are_answered_in_order_as_if_alone(
    stub: SegmentationServiceStub,
) -> None:
    image = pictures.image(480, 640)
    box = pb.Box(x_min=100, y_min=100, x_max=300, y_max=200)
    prompts = [
        pictures.click(100, 100),
        pb.Prompt(box=box),
        pictures.click(500, 400),
        pb.Prompt(points=[pb.Point(x=50, y=60, label=1), pb.Point(x=70, y=60, label=1)]),
        pb.Prompt(points=[pb.Point(x=150, y=150, label=1)], box=box),
        *[pictures.click(20 * index + 5, 200) for index in range(30)],
    ]
    together = await predict(stub, *prompts, image=image)
    alone = [await predict(stub, prompt, image=image) for prompt in prompts]

    assert list(together.results) == [answer.results[0] for answer in alone]


async def test_delete_forgets_and_is_safe_to_repeat(stub: SegmentationServiceStub) -> None:
    embedded = await embed(stub)
    request = pb.DeleteEmbeddingRequest(embedding_id=embedded.embedding.id)

    deleted = [(await stub.DeleteEmbedding(request)).deleted for _ in range(2)]

    assert deleted == [True, False]


async def test_an_id_may_be_used_with_the_name_of_its_model(stub: SegmentationServiceStub) -> None:
    embedded = await embed(stub, model="fake")
    answer = await predict(stub, embedding_id=embedded.embedding.id, model="fake")

    assert answer.embedding.cached


async def test_list_models_tells_capabilities_limits_and_defaults(
    stub: SegmentationServiceStub,
) -> None:
    answer = await stub.ListModels(pb.ListModelsRequest())
    model = answer.models[0]

    assert (model.name, model.family, model.default) == ("fake", "sam1", True)
    assert (model.image_side, model.mask_side, model.embedding_bytes) == (1024, 256, 2 << 20)
    assert (model.capabilities.points, model.capabilities.text) == (True, False)
    transports = {"triton": pb.TRANSPORT_SHARED_MEMORY, "triton-message": pb.TRANSPORT_MESSAGE}
    assert model.transport == transports.get(chosen.kind, pb.TRANSPORT_IN_PROCESS)
    assert answer.limits.max_prompts == 256
    assert answer.automask_defaults == pb.AutoMaskOptions(
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
    )


async def test_every_option_of_the_message_is_known() -> None:
    fields = {field.name for field in pb.AutoMaskOptions.DESCRIPTOR.fields}

    assert fields == {field.name for field in dataclasses.fields(AutoMaskOptions)}


async def test_an_expired_embedding_is_embedded_again_under_the_same_id() -> None:
    times = [1000.0]
    store = MemoryStore(64 << 20, ttl_s=60, now=lambda: times[0])
    async with serving(store=store) as (_, stub):
        first = await embed(stub)
        times[0] += 61
        expired = await failure_of(predict(stub, embedding_id=first.embedding.id))
        second = await embed(stub)

    assert first.embedding.expire_time.seconds == 1060
    assert expired.reason == "EMBEDDING_NOT_FOUND"
    assert first.embedding.id == second.embedding.id
    assert not second.embedding.cached
