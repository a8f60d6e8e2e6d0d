"""Every bad input gets a typed error that names field and limit, and no model work is done."""

from __future__ import annotations

import struct
import zlib
from collections.abc import AsyncIterator
from io import BytesIO
from math import inf, nan

import grpc
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
from samserve.app import Running
from samserve.core import rle
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import chosen, pictures
from tests.conftest import serving
from tests.rpc.errors import Failure, failure_of, stream_failure_of

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
HEIGHT, WIDTH = 48, 64

Service = tuple[Running, SegmentationServiceStub]

# What is refused leaves nothing behind, so one service serves all of these tests.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(_engine: None) -> AsyncIterator[Service]:
    """The service of all tests here."""
    async with serving() as pair:
        yield pair


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub(service: Service) -> SegmentationServiceStub:
    """Its stub."""
    return service[1]


def counts(service: Service) -> list[int]:
    """How often each network has run, by how it ended."""
    return [
        chosen.runs(service[0], network, outcome)
        for network in ("encoder", "decoder")
        for outcome in ("ok", "cancelled")
    ]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no data: a decompression bomb in miniature."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def jpeg() -> bytes:
    return pictures.file_of(pictures.noise(HEIGHT, WIDTH), "JPEG")


def animated_webp() -> bytes:
    frames = [Image.fromarray(pictures.noise(8, 8, seed)) for seed in range(3)]
    buffer = BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def raw(height: int, width: int, nbytes: int, layout: int = 1) -> pb.Image:
    size = pb.ImageSize(height=height, width=width)
    return pb.Image(raw=pb.RawImage(size=size, data=bytes(nbytes), layout=layout))


IMAGES = {
    "truncated JPEG": (pb.Image(encoded=jpeg()[:-200]), "IMAGE_UNREADABLE", "image.encoded"),
    "1-byte file": (pb.Image(encoded=b"x"), "IMAGE_UNREADABLE", "image.encoded"),
    "empty file": (pb.Image(encoded=b""), "IMAGE_UNREADABLE", "image.encoded"),
    "text file": (pb.Image(encoded=b"hello " * 99), "IMAGE_UNREADABLE", "image.encoded"),
    "GIF": (
        pb.Image(encoded=pictures.file_of(pictures.noise(8, 8), "GIF")),
        "IMAGE_UNREADABLE",
        "image.encoded",
    ),
    "animation": (pb.Image(encoded=animated_webp()), "IMAGE_UNREADABLE", "image.encoded"),
    "PNG bomb": (pb.Image(encoded=png_header(30000, 30000)), "IMAGE_TOO_LARGE", "image.encoded"),
    "long PNG": (pb.Image(encoded=png_header(60000, 10)), "IMAGE_TOO_LARGE", "image.encoded"),
    "zero-size raw": (raw(0, 0, 0), "INVALID_ARGUMENT", "image.raw.size"),
    "negative raw": (raw(-4, 4, 48), "INVALID_ARGUMENT", "image.raw.size"),
    "raw of other length": (raw(4, 4, 47), "INVALID_ARGUMENT", "image.raw.data"),
    "raw without layout": (raw(4, 4, 48, layout=0), "INVALID_ARGUMENT", "image.raw.layout"),
    "raw of unknown layout": (raw(4, 4, 48, layout=9), "INVALID_ARGUMENT", "image.raw.layout"),
    "raw bomb": (raw(30000, 30000, 10), "IMAGE_TOO_LARGE", "image.raw.size"),
    "nothing": (pb.Image(), "INVALID_ARGUMENT", "image.content"),
    "short hash": (pb.Image(encoded_sha256=b"123"), "INVALID_ARGUMENT", "image.encoded_sha256"),
    "unknown orientation": (
        pb.Image(encoded=jpeg(), orientation=7),
        "INVALID_ARGUMENT",
        "image.orientation",
    ),
}


@pytest.mark.parametrize("name", IMAGES)
async def test_a_bad_image_is_refused_by_every_rpc(name: str, service: Service) -> None:
    image, reason, field = IMAGES[name]
    stub = service[1]
    before = counts(service)

    failures = [
        await failure_of(stub.Embed(pb.EmbedRequest(image=image))),
        await failure_of(
            stub.Predict(pb.PredictRequest(image=image, prompts=[pictures.click(1, 1)]))
        ),
        await stream_failure_of(stub.AutoMask(pb.AutoMaskRequest(image=image))),
    ]

    for failure in failures:
        assert (failure.code, failure.reason) == (INVALID, reason)
        assert [found.split(".width")[0].split(".height")[0] for found in failure.fields] == [field]
    assert counts(service) == before
    await still_answers(service)


def box(x_min: float, y_min: float, x_max: float, y_max: float) -> pb.Prompt:
    return pb.Prompt(box=pb.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max))


def mask(height: int, width: int, counts: str) -> pb.Prompt:
    coco = pb.CocoRle(size=pb.ImageSize(height=height, width=width), counts=counts)
    return pb.Prompt(mask=pb.MaskInput(binary=coco))


def logits(data: bytes) -> pb.Prompt:
    return pb.Prompt(mask=pb.MaskInput(low_res_logits=data))


PROMPTS = {
    "NaN": (pictures.click(nan, 1), "prompts[0].points[0].x", "finite"),
    "infinite": (pictures.click(1, inf), "prompts[0].points[0].y", "finite"),
    "right of the image": (pictures.click(64.5, 1), "prompts[0].points[0].x", "64"),
    "below the image": (pictures.click(1, 48.5), "prompts[0].points[0].y", "48"),
    "left of the image": (pictures.click(-0.1, 1), "prompts[0].points[0].x", "64"),
    "label 7": (pictures.click(1, 1, label=7), "prompts[0].points[0].label", "LABEL_BACKGROUND"),
    "label -1": (pictures.click(1, 1, label=-1), "prompts[0].points[0].label", "LABEL_BACKGROUND"),
    "no label": (pictures.click(1, 1, label=0), "prompts[0].points[0].label", "LABEL_BACKGROUND"),
    "inverted box": (box(9, 1, 5, 9), "prompts[0].box.x_max", "9"),
    "empty box": (box(1, 5, 9, 5), "prompts[0].box.y_max", "5"),
    "NaN box": (box(1, nan, 9, 5), "prompts[0].box.y_min", "finite"),
    "box outside": (box(1, 1, 9, 99), "prompts[0].box.y_max", "48"),
    "no prompt at all": (pb.Prompt(), "prompts[0]", "at least one"),
    "too many points": (
        pb.Prompt(points=[pb.Point(x=1, y=1, label=1)] * 65),
        "prompts[0].points",
        "64",
    ),
    "mask of another size": (
        mask(64, 48, rle.encode(np.zeros((64, 48), dtype=bool)).counts),
        "prompts[0].mask.binary.size",
        "48x64",
    ),
    "broken mask": (mask(48, 64, "\x00\x01"), "prompts[0].mask.binary", ""),
    "huge mask": (mask(2**31 - 1, 2**31 - 1, "0"), "prompts[0].mask.binary", ""),
    "negative mask": (mask(-1, 64, "0"), "prompts[0].mask.binary", ""),
    "no mask": (pb.Prompt(mask=pb.MaskInput()), "prompts[0].mask.content", "one of"),
    "logits of no square": (logits(bytes(12)), "prompts[0].mask.low_res_logits", "12 bytes"),
    "logits of another size": (logits(bytes(4 * 16)), "prompts[0].mask.low_res_logits", "256"),
    "NaN logits": (
        logits(struct.pack("<f", nan) * 65536),
        "prompts[0].mask.low_res_logits",
        "finite",
    ),
}


@pytest.mark.parametrize("name", PROMPTS)
async def test_a_bad_prompt_is_refused_with_its_field_and_limit(
    name: str, service: Service
) -> None:
    prompt, field, limit = PROMPTS[name]
    image = pictures.image(HEIGHT, WIDTH)
    before = counts(service)

    failure = await failure_of(service[1].Predict(pb.PredictRequest(image=image, prompts=[prompt])))

    assert (failure.code, failure.fields) == (INVALID, [field])
    assert limit in failure.descriptions[0]
    assert counts(service) == before
    await still_answers(service)


@pytest.mark.parametrize("name", PROMPTS)
async def test_a_bad_prompt_on_a_stored_embedding_decodes_nothing(
    name: str, service: Service
) -> None:
    prompt, field, _ = PROMPTS[name]
    stub = service[1]
    embedded = await stub.Embed(pb.EmbedRequest(image=pictures.image(HEIGHT, WIDTH)))
    before = counts(service)

    failure = await failure_of(
        stub.Predict(pb.PredictRequest(embedding_id=embedded.embedding.id, prompts=[prompt]))
    )

    assert (failure.code, failure.fields) == (INVALID, [field])
    assert counts(service) == before


async def test_the_prompt_that_is_wrong_is_named_among_many(stub: SegmentationServiceStub) -> None:
    prompts = [pictures.click(), pictures.click(), pictures.click(y=480)]

    failure = await failure_of(
        stub.Predict(pb.PredictRequest(image=pictures.image(), prompts=prompts))
    )

    assert failure.fields == ["prompts[2].points[0].y"]
    assert failure.metadata["limit"] == "48"
    assert failure.metadata["value"] == "480"


@pytest.mark.parametrize("count", [0, 257])
async def test_prompts_must_be_from_one_to_the_limit(
    count: int, stub: SegmentationServiceStub
) -> None:
    request = pb.PredictRequest(image=pictures.image(), prompts=[pictures.click()] * count)

    failure = await failure_of(stub.Predict(request))

    assert (failure.code, failure.fields) == (INVALID, ["prompts"])
    assert failure.metadata["limit"] == "256"


async def test_an_unknown_id_is_not_found(stub: SegmentationServiceStub) -> None:
    calls = [
        failure_of(
            stub.Predict(pb.PredictRequest(embedding_id="0" * 64, prompts=[pictures.click()]))
        ),
        stream_failure_of(stub.AutoMask(pb.AutoMaskRequest(embedding_id="0" * 64))),
        failure_of(stub.Embed(pb.EmbedRequest(image=pb.Image(encoded_sha256=bytes(32))))),
    ]

    for call in calls:
        failure = await call
        assert (failure.code, failure.reason) == (NOT_FOUND, "EMBEDDING_NOT_FOUND")


@pytest.mark.parametrize("embedding_id", ["", "x" * 129])
async def test_an_id_of_impossible_length_is_refused(
    embedding_id: str, stub: SegmentationServiceStub
) -> None:
    calls: list[Failure] = [
        await failure_of(
            stub.Predict(pb.PredictRequest(embedding_id=embedding_id, prompts=[pictures.click()]))
        ),
        await failure_of(
            stub.DeleteEmbedding(pb.DeleteEmbeddingRequest(embedding_id=embedding_id))
        ),
    ]

    assert [failure.fields for failure in calls] == [["embedding_id"]] * 2


async def test_an_unknown_model_is_not_found_and_the_served_ones_are_named(
    stub: SegmentationServiceStub,
) -> None:
    failure = await failure_of(
        stub.Embed(pb.EmbedRequest(image=pictures.image(), model="sam_vit_z"))
    )

    assert (failure.code, failure.reason) == (NOT_FOUND, "MODEL_NOT_FOUND")
    assert failure.metadata["served"] == "fake"


async def test_a_request_without_source_is_refused(stub: SegmentationServiceStub) -> None:
    failure = await failure_of(stub.Predict(pb.PredictRequest(prompts=[pictures.click()])))

    assert (failure.code, failure.fields) == (INVALID, ["source"])


@pytest.mark.parametrize("field", ["multimask", "output_mode"])
async def test_an_unknown_enum_value_is_refused(field: str, stub: SegmentationServiceStub) -> None:
    request = pb.PredictRequest(image=pictures.image(), prompts=[pictures.click()], **{field: 99})

    failure = await failure_of(stub.Predict(request))

    assert (failure.code, failure.fields) == (INVALID, [field])


GRID = pb.PointGrid(points=[pb.NormalizedPoint(x=0.5, y=0.5)])
OPTIONS = {
    "no points": ({"points_per_side": 0}, "points_per_side", "128"),
    "too many points": ({"points_per_side": 10**6}, "points_per_side", "128"),
    "no batch": ({"points_per_batch": 0}, "points_per_batch", "1024"),
    "too large a batch": ({"points_per_batch": 10**6}, "points_per_batch", "1024"),
    "negative IoU": ({"pred_iou_thresh": -0.1}, "pred_iou_thresh", "1"),
    "NaN IoU": ({"pred_iou_thresh": nan}, "pred_iou_thresh", "1"),
    "stability over 1": ({"stability_score_thresh": 1.1}, "stability_score_thresh", "1"),
    "infinite offset": ({"stability_score_offset": inf}, "stability_score_offset", "1e+06"),
    "huge offset": ({"stability_score_offset": 1e300}, "stability_score_offset", "1e+06"),
    "negative offset": ({"stability_score_offset": -1}, "stability_score_offset", "0"),
    "NMS over 1": ({"box_nms_thresh": 2}, "box_nms_thresh", "1"),
    "crop NMS over 1": ({"crop_nms_thresh": 2}, "crop_nms_thresh", "1"),
    "too many layers": ({"crop_n_layers": 9}, "crop_n_layers", "3"),
    "negative layers": ({"crop_n_layers": -1}, "crop_n_layers", "3"),
    "overlap of 1": ({"crop_overlap_ratio": 1.0}, "crop_overlap_ratio", "1"),
    "downscale of 0": (
        {"crop_n_points_downscale_factor": 0},
        "crop_n_points_downscale_factor",
        "1",
    ),
    "negative region": ({"min_mask_region_area": -5}, "min_mask_region_area", "0"),
    "negative bound": ({"max_masks": -1}, "max_masks", "0"),
    "both grid kinds": (
        {"points_per_side": 4, "point_grids": [GRID]},
        "point_grids",
        "not both",
    ),
    "grid without points": ({"point_grids": [pb.PointGrid()]}, "point_grids[0].points", "1"),
    "grids for no layer": ({"point_grids": [GRID, GRID]}, "point_grids", "1"),
    "grid point outside": (
        {"point_grids": [pb.PointGrid(points=[pb.NormalizedPoint(x=1.5, y=0)])]},
        "point_grids[0].points[0]",
        "1",
    ),
    "grid point NaN": (
        {"point_grids": [pb.PointGrid(points=[pb.NormalizedPoint(x=nan, y=0)])]},
        "point_grids[0].points[0]",
        "1",
    ),
    "region outside": (
        {"region_of_interest": pb.Box(x_min=0, y_min=0, x_max=65, y_max=10)},
        "region_of_interest.x_max",
        "64",
    ),
    "empty region": (
        {"region_of_interest": pb.Box(x_min=5, y_min=0, x_max=5, y_max=10)},
        "region_of_interest.x_max",
        "5",
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
async def test_a_bad_automask_option_is_refused_with_its_field_and_limit(
    name: str, service: Service
) -> None:
    options, field, limit = OPTIONS[name]
    request = pb.AutoMaskRequest(
        image=pictures.image(HEIGHT, WIDTH),
        options=pb.AutoMaskOptions(**options),  # type: ignore[arg-type]  # a table of options
    )
    before = counts(service)

    failure = await stream_failure_of(service[1].AutoMask(request))

    assert (failure.code, failure.fields) == (INVALID, [f"options.{field}"])
    assert limit in failure.descriptions[0]
    assert counts(service) == before
    await still_answers(service)


async def test_crops_need_the_image(stub: SegmentationServiceStub) -> None:
    embedded = await stub.Embed(pb.EmbedRequest(image=pictures.image()))
    options = pb.AutoMaskOptions(crop_n_layers=1)

    failure = await stream_failure_of(
        stub.AutoMask(pb.AutoMaskRequest(embedding_id=embedded.embedding.id, options=options))
    )

    assert (failure.code, failure.fields) == (INVALID, ["options.crop_n_layers"])


async def still_answers(service: Service) -> None:
    answer = await service[1].Predict(
        pb.PredictRequest(image=pictures.image(seed=5), prompts=[pictures.click()])
    )
    assert len(answer.results) == 1


async def test_a_search_cannot_answer_without_pixels(stub: SegmentationServiceStub) -> None:
    failure = await stream_failure_of(
        stub.AutoMask(
            pb.AutoMaskRequest(image=pictures.image(), output_mode=pb.OUTPUT_MODE_LOW_RES_LOGITS)
        )
    )

    assert (failure.code, failure.fields) == (INVALID, ["output_mode"])


@pytest.mark.parametrize(
    "body",
    [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", bytes(100), b"\x0b" * 200],
    ids=["tag", "length", "zeros", "groups"],
)
@pytest.mark.parametrize("method", ["Embed", "Predict", "AutoMask", "DeleteEmbedding"])
async def test_bytes_that_are_no_request(service: Service, method: str, body: bytes) -> None:
    async with grpc.aio.insecure_channel(service[0].address) as channel:
        call = channel.unary_unary(f"/samserve.v1.SegmentationService/{method}")
        failure = await failure_of(call(body))

    assert failure.code is INVALID
    assert failure.fields == ["request"]


async def test_a_call_without_a_request(service: Service) -> None:
    async with grpc.aio.insecure_channel(service[0].address) as channel:
        call = channel.stream_unary("/samserve.v1.SegmentationService/Embed")
        failure = await failure_of(call(iter(())))

    assert failure.code is INVALID
    assert failure.fields == ["request"]
