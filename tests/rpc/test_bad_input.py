"""Every invalid input returns a typed error with field and limit, without an inference."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import AsyncIterator
from io import BytesIO
from math import inf, nan
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
from samserve.app import Running
from samserve.core import rle
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import engine_choice, sample_images
from tests.conftest import serving
from tests.rpc.errors import Failure, failure_of

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
HEIGHT, WIDTH = 48, 64

Service = tuple[Running, SegmentationServiceStub]

# Rejected calls have no effect, so one service serves all of these tests.
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
    """Count the runs of each network, by their outcome."""
    return [
        engine_choice.run_count(service[0], network, outcome)
        for network in ("encoder", "decoder")
        for outcome in ("ok", "cancelled")
    ]


async def rejected(service: Service, *calls: Any) -> list[Failure]:
    """Check that calls are rejected without an inference, and that later calls succeed."""
    before = counts(service)
    failures = [await failure_of(call) for call in calls]
    assert counts(service) == before
    assert {failure.code for failure in failures} == {INVALID}
    assert len((await service[1].Predict(predict(image=sample_images.image(seed=5)))).results) == 1
    return failures


def predict(*prompts: pb.Prompt, **fields: Any) -> pb.PredictRequest:
    return pb.PredictRequest(prompts=prompts or [sample_images.point_prompt()], **fields)


def png_header(width: int, height: int) -> bytes:
    """Return a PNG with a large size and little data: a small decompression bomb."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def jpeg() -> bytes:
    return sample_images.encode(sample_images.noise(HEIGHT, WIDTH), "JPEG")


def animated_webp() -> bytes:
    frames = [Image.fromarray(sample_images.noise(8, 8, seed)) for seed in range(3)]
    buffer = BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def raw(height: int, width: int, nbytes: int, layout: int = 1) -> pb.Image:
    size = pb.ImageSize(height=height, width=width)
    return pb.Image(raw=pb.RawImage(size=size, data=bytes(nbytes), layout=layout))


UNREADABLE = {
    "truncated JPEG": jpeg()[:-200],
    "1-byte file": b"x",
    "empty file": b"",
    "text file": b"hello " * 99,
    "GIF": sample_images.encode(sample_images.noise(8, 8), "GIF"),
    "animation": animated_webp(),
}
IMAGES = {
    **{
        name: (pb.Image(encoded=data), "IMAGE_UNREADABLE", "encoded")
        for name, data in UNREADABLE.items()
    },
    "PNG bomb": (pb.Image(encoded=png_header(30000, 30000)), "IMAGE_TOO_LARGE", "encoded"),
    "long PNG": (pb.Image(encoded=png_header(60000, 10)), "IMAGE_TOO_LARGE", "encoded"),
    "zero-size raw": (raw(0, 0, 0), "INVALID_ARGUMENT", "raw.size"),
    "negative raw": (raw(-4, 4, 48), "INVALID_ARGUMENT", "raw.size"),
    "raw of other length": (raw(4, 4, 47), "INVALID_ARGUMENT", "raw.data"),
    "raw without layout": (raw(4, 4, 48, layout=0), "INVALID_ARGUMENT", "raw.layout"),
    "raw of unknown layout": (raw(4, 4, 48, layout=9), "INVALID_ARGUMENT", "raw.layout"),
    "raw bomb": (raw(30000, 30000, 10), "IMAGE_TOO_LARGE", "raw.size"),
    "no content": (pb.Image(), "INVALID_ARGUMENT", "content"),
    "short hash": (pb.Image(encoded_sha256=b"123"), "INVALID_ARGUMENT", "encoded_sha256"),
    "unknown orientation": (
        pb.Image(encoded=jpeg(), orientation=7),
        "INVALID_ARGUMENT",
        "orientation",
    ),
}


@pytest.mark.parametrize("name", IMAGES)
async def test_every_rpc_rejects_an_invalid_image(name: str, service: Service) -> None:
    image, reason, field = IMAGES[name]
    stub = service[1]

    failures = await rejected(
        service,
        stub.Embed(pb.EmbedRequest(image=image)),
        stub.Predict(predict(image=image)),
        stub.AutoMask(pb.AutoMaskRequest(image=image)),
    )

    for failure in failures:
        (found,) = failure.fields
        assert failure.reason == reason
        assert re.sub(r"\.(width|height)$", "", found) == f"image.{field}"


def box(x_min: float, y_min: float, x_max: float, y_max: float) -> pb.Prompt:
    return pb.Prompt(box=pb.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max))


def mask(height: int, width: int, counts: str) -> pb.Prompt:
    coco = pb.CocoRle(size=pb.ImageSize(height=height, width=width), counts=counts)
    return pb.Prompt(mask=pb.MaskInput(binary=coco))


def logits(data: bytes) -> pb.Prompt:
    return pb.Prompt(mask=pb.MaskInput(low_res_logits=data))


POINT = [pb.Point(x=1, y=1, label=1)]
EMPTY = rle.encode(np.zeros((64, 48), dtype=bool))
NAN = struct.pack("<f", nan)
PROMPTS = {
    "NaN": (sample_images.point_prompt(nan, 1), "prompts[0].points[0].x", "finite"),
    "infinite": (sample_images.point_prompt(1, inf), "prompts[0].points[0].y", "finite"),
    "right of the image": (sample_images.point_prompt(64.5, 1), "prompts[0].points[0].x", "64"),
    "below the image": (sample_images.point_prompt(1, 48.5), "prompts[0].points[0].y", "48"),
    "left of the image": (sample_images.point_prompt(-0.1, 1), "prompts[0].points[0].x", "64"),
    "label 7": (
        sample_images.point_prompt(1, 1, label=7),
        "prompts[0].points[0].label",
        "LABEL_BACKGROUND",
    ),
    "label -1": (
        sample_images.point_prompt(1, 1, label=-1),
        "prompts[0].points[0].label",
        "LABEL_BACKGROUND",
    ),
    "no label": (
        sample_images.point_prompt(1, 1, label=0),
        "prompts[0].points[0].label",
        "LABEL_BACKGROUND",
    ),
    "inverted box": (box(9, 1, 5, 9), "prompts[0].box.x_max", "9"),
    "empty box": (box(1, 5, 9, 5), "prompts[0].box.y_max", "5"),
    "NaN box": (box(1, nan, 9, 5), "prompts[0].box.y_min", "finite"),
    "box outside": (box(1, 1, 9, 99), "prompts[0].box.y_max", "48"),
    "no prompt at all": (pb.Prompt(), "prompts[0]", "at least one"),
    "too many points": (pb.Prompt(points=POINT * 65), "prompts[0].points", "64"),
    "mask of another size": (mask(64, 48, EMPTY.counts), "prompts[0].mask.binary.size", "48x64"),
    "broken mask": (mask(48, 64, "\x00\x01"), "prompts[0].mask.binary", ""),
    "huge mask": (mask(2**31 - 1, 2**31 - 1, "0"), "prompts[0].mask.binary", ""),
    "negative mask": (mask(-1, 64, "0"), "prompts[0].mask.binary", ""),
    "no mask": (pb.Prompt(mask=pb.MaskInput()), "prompts[0].mask.content", "one of"),
    "logits of no square": (logits(bytes(12)), "prompts[0].mask.low_res_logits", "12 bytes"),
    "logits of another size": (logits(bytes(4 * 16)), "prompts[0].mask.low_res_logits", "256"),
    "NaN logits": (logits(NAN * 65536), "prompts[0].mask.low_res_logits", "finite"),
}


@pytest.mark.parametrize("name", PROMPTS)
async def test_invalid_prompt_is_rejected_with_field_and_limit(name: str, service: Service) -> None:
    prompt, field, limit = PROMPTS[name]
    stub, image = service[1], sample_images.image(HEIGHT, WIDTH)
    embedded = await stub.Embed(pb.EmbedRequest(image=image))

    failures = await rejected(
        service,
        stub.Predict(predict(prompt, image=sample_images.image(HEIGHT, WIDTH, seed=1))),
        stub.Predict(predict(prompt, embedding_id=embedded.embedding.id)),
    )

    for failure in failures:
        assert failure.fields == [field]
        assert limit in failure.descriptions[0]


@pytest.mark.parametrize("count", [0, 257])
async def test_number_of_prompts_must_be_within_the_limit(count: int, service: Service) -> None:
    request = pb.PredictRequest(
        image=sample_images.image(), prompts=[sample_images.point_prompt()] * count
    )

    (failure,) = await rejected(service, service[1].Predict(request))

    assert (failure.fields, failure.metadata["limit"]) == (["prompts"], "256")


async def test_unknown_embedding_id_returns_not_found(stub: SegmentationServiceStub) -> None:
    for call in (
        stub.Predict(predict(embedding_id="0" * 64)),
        stub.AutoMask(pb.AutoMaskRequest(embedding_id="0" * 64)),
        stub.Embed(pb.EmbedRequest(image=pb.Image(encoded_sha256=bytes(32)))),
    ):
        failure = await failure_of(call)
        assert (failure.code, failure.reason) == (NOT_FOUND, "EMBEDDING_NOT_FOUND")


@pytest.mark.parametrize("embedding_id", ["", "x" * 129])
async def test_embedding_id_of_invalid_length_is_rejected(
    embedding_id: str, service: Service
) -> None:
    deletion = pb.DeleteEmbeddingRequest(embedding_id=embedding_id)

    failures = await rejected(
        service,
        service[1].Predict(predict(embedding_id=embedding_id)),
        service[1].DeleteEmbedding(deletion),
    )

    assert [failure.fields for failure in failures] == [["embedding_id"]] * 2


async def test_unknown_model_returns_not_found_with_the_served_models(
    stub: SegmentationServiceStub,
) -> None:
    request = pb.EmbedRequest(image=sample_images.image(), model="sam_vit_z")

    failure = await failure_of(stub.Embed(request))

    assert (failure.code, failure.reason) == (NOT_FOUND, "MODEL_NOT_FOUND")
    assert failure.metadata["served"] == "fake"


def grid(x: float, y: float) -> pb.PointGrid:
    return pb.PointGrid(points=[pb.NormalizedPoint(x=x, y=y)])


def roi(x_min: float, x_max: float) -> dict[str, Any]:
    return {"region_of_interest": pb.Box(x_min=x_min, y_min=0, x_max=x_max, y_max=10)}


def exclude(*masks: tuple[int, int, str]) -> dict[str, Any]:
    """Return excluded masks of heights, widths and run lengths."""
    sized = [(pb.ImageSize(height=height, width=width), text) for height, width, text in masks]
    return {"exclude": [pb.CocoRle(size=size, counts=text) for size, text in sized]}


NOTHING = (HEIGHT, WIDTH, EMPTY.counts)
GRID = grid(0.5, 0.5)
DOWNSCALE = "crop_n_points_downscale_factor"
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
    "downscale of 0": ({DOWNSCALE: 0}, DOWNSCALE, "1"),
    "negative region": ({"min_mask_region_area": -5}, "min_mask_region_area", "0"),
    "negative bound": ({"max_masks": -1}, "max_masks", "0"),
    "both grid kinds": ({"points_per_side": 4, "point_grids": [GRID]}, "point_grids", "not both"),
    "grid without points": ({"point_grids": [pb.PointGrid()]}, "point_grids[0].points", "1"),
    "grids for no layer": ({"point_grids": [GRID, GRID]}, "point_grids", "1"),
    "grid point outside": ({"point_grids": [grid(1.5, 0)]}, "point_grids[0].points[0]", "1"),
    "grid point NaN": ({"point_grids": [grid(nan, 0)]}, "point_grids[0].points[0]", "1"),
    "too many excluded": (exclude(*[NOTHING] * 1001), "exclude", "1000"),
    "ten thousand excluded": (exclude(*[NOTHING] * 10_000), "exclude", "1000"),
    "excluded of another size": (
        exclude(NOTHING, (WIDTH, HEIGHT, EMPTY.counts)),
        *("exclude[1].size", "48x64"),
    ),
    "excluded without size": (exclude((0, 0, "0")), "exclude[0]", "size 0x0"),
    "broken excluded": (exclude(*[NOTHING] * 3, (48, 64, "\x00\x01")), "exclude[3]", "characters"),
    "short excluded": (exclude((48, 64, "1")), "exclude[0]", "3072"),
    "excluded run of 2**35": (exclude((48, 64, "ooooooo0")), "exclude[0]", "characters"),
    "excluded of many runs": (exclude((48, 64, "0" * (1 << 20))), "exclude[0]", "too many"),
    "huge excluded": (exclude((2**31 - 1, 2**31 - 1, "0")), "exclude[0]", "2**31"),
    "negative excluded": (exclude((-1, 64, "0")), "exclude[0]", "size -1x64"),
    "excluded without runs": (exclude((48, 64, "")), "exclude[0]", "empty"),
    "exclude IoU over 1": ({"exclude_iou_thresh": 1.5}, "exclude_iou_thresh", "1"),
    "exclude IoU NaN": ({"exclude_iou_thresh": nan}, "exclude_iou_thresh", "1"),
    "region outside": (roi(0, 65), "region_of_interest.x_max", "64"),
    "empty region": (roi(5, 5), "region_of_interest.x_max", "5"),
}


@pytest.mark.parametrize("name", OPTIONS)
async def test_invalid_automask_option_is_rejected_with_field_and_limit(
    name: str, service: Service
) -> None:
    options, field, limit = OPTIONS[name]
    request = pb.AutoMaskRequest(
        image=sample_images.image(HEIGHT, WIDTH),
        options=pb.AutoMaskOptions(**options),  # type: ignore[arg-type]  # a table of options
    )

    (failure,) = await rejected(service, service[1].AutoMask(request))

    assert failure.fields == [f"options.{field}"]
    assert limit in failure.descriptions[0]


@pytest.mark.parametrize(
    "body",
    [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", bytes(100), b"\x0b" * 200, None],
    ids=["tag", "length", "zeros", "groups", "nothing"],
)
@pytest.mark.parametrize("method", ["Embed", "Predict", "AutoMask", "DeleteEmbedding"])
async def test_bytes_that_are_not_a_request_are_invalid(
    service: Service, method: str, body: bytes | None
) -> None:
    async with grpc.aio.insecure_channel(service[0].address) as channel:
        call = channel.stream_unary(f"/samserve.v1.SegmentationService/{method}")
        failure = await failure_of(call(iter([] if body is None else [body])))

    assert (failure.code, failure.fields) == (INVALID, ["request"])
