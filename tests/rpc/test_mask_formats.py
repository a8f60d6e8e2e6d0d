"""Mask formats, and changes of masks, in the responses of a real server."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import shapely
from PIL import Image
from pycocotools import mask as coco
from samserve.types import BoolArray
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import sample_images
from tests.conftest import serving, settings_with
from tests.rpc.errors import Failure, failure_of

# Of pycocotools, with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

HEIGHT, WIDTH = 96, 128
EXACT = pb.PolygonOptions(tolerance=0)
MODES = [
    value
    for name, value in pb.OutputMode.items()
    if name not in ("OUTPUT_MODE_UNSPECIFIED", "OUTPUT_MODE_LOW_RES_LOGITS")
]


def pixels_of(mask: pb.Mask) -> BoolArray | None:
    """Decode a mask with other libraries; None if it has no pixels."""
    match mask.WhichOneof("segmentation"):
        case "coco_rle":
            return decoded(mask.coco_rle.size, mask.coco_rle.counts)
        case "uncompressed_rle":
            size, runs = mask.uncompressed_rle.size, mask.uncompressed_rle.counts
            shape = (size.height, size.width)
            return decoded(size, coco.frPyObjects({"size": shape, "counts": list(runs)}, *shape))
        case "binary_mask":
            size = mask.binary_mask.size
            bits = np.unpackbits(np.frombuffer(mask.binary_mask.bits, np.uint8))
            return bits[: size.height * size.width].reshape(size.height, size.width) == 1
        case "png":
            with Image.open(BytesIO(mask.png)) as image:
                assert (image.format, image.mode) == ("PNG", "1")
                return np.asarray(image)
        case "polygons":
            size = mask.polygons.size
            y, x = np.mgrid[: size.height, : size.width] + 0.5
            return np.asarray(shapely.contains_xy(shape_of(mask.polygons), x, y))
        case _:
            return None


def decoded(size: pb.ImageSize, counts: Any) -> BoolArray:
    encoded = counts if isinstance(counts, dict) else None
    encoded = encoded or {"size": [size.height, size.width], "counts": counts}
    return np.asarray(coco.decode(encoded), dtype=np.bool_)


def shape_of(message: pb.Polygons) -> shapely.MultiPolygon:
    def ring(each: pb.Ring) -> np.ndarray:
        return np.array(each.coordinates).reshape(-1, 2)

    return shapely.MultiPolygon(
        [(ring(each.exterior), [ring(hole) for hole in each.holes]) for each in message.polygons]
    )


def facts(mask: pb.Mask) -> pb.Mask:
    """Return a mask without its pixels."""
    copy = pb.Mask()
    copy.CopyFrom(mask)
    kind = copy.WhichOneof("segmentation")
    if kind is not None:
        copy.ClearField(kind)
    return copy


def check_same_masks(by_mode: dict[int, Sequence[pb.Mask]]) -> None:
    first = by_mode[pb.OUTPUT_MODE_COCO_RLE]
    expected = [pixels_of(mask) for mask in first]
    assert all(mask is not None and mask.any() for mask in expected)
    for mode, masks in by_mode.items():
        assert [facts(mask) for mask in masks] == [facts(mask) for mask in first]
        for mask, pixels in zip(masks, expected, strict=True):
            found = pixels_of(mask)
            assert (found is None) == (mode == pb.OUTPUT_MODE_BOX)
            assert found is None or np.array_equal(found, pixels), pb.OutputMode.Name(mode)  # type: ignore[arg-type]


def predict_request(*prompts: pb.Prompt, **fields: Any) -> pb.PredictRequest:
    return pb.PredictRequest(
        image=sample_images.image(HEIGHT, WIDTH),
        prompts=prompts or [sample_images.point_prompt(20, 30)],
        **fields,
    )


async def predict(
    stub: SegmentationServiceStub, *prompts: pb.Prompt, **fields: Any
) -> list[pb.Mask]:
    response = await stub.Predict(predict_request(*prompts, **fields))
    return [mask for result in response.results for mask in result.masks]


async def automask(stub: SegmentationServiceStub, **fields: Any) -> list[pb.Mask]:
    request = pb.AutoMaskRequest(image=sample_images.image(HEIGHT, WIDTH), **fields)
    return [record.mask async for event in stub.AutoMask(request) for record in event.masks.records]


def of(mode: int) -> dict[str, Any]:
    """Return the fields of a request for exact masks in a mode."""
    options = {"polygon_options": EXACT} if mode == pb.OUTPUT_MODE_POLYGONS else {}
    return {"output_mode": mode, **options}


@pytest.mark.parametrize("changes", [{}, {"min_hole_area": 9}], ids=["as they are", "changed"])
async def test_every_mode_of_predict_returns_the_same_masks(
    changes: dict[str, Any], stub: SegmentationServiceStub
) -> None:
    fields = {"multimask": pb.MULTIMASK_ALL, **changes}

    check_same_masks({mode: await predict(stub, **fields, **of(mode)) for mode in MODES})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
        {"min_mask_region_area": 4000},
    ],
    ids=["image", "crops", "small regions"],
)
async def test_every_mode_of_automask_returns_the_same_masks(
    options: dict[str, Any], stub: SegmentationServiceStub
) -> None:
    every = pb.AutoMaskOptions(points_per_side=3, stability_score_thresh=0, **options)

    check_same_masks({mode: await automask(stub, options=every, **of(mode)) for mode in MODES})


async def test_polygons_have_their_iou_and_the_default_tolerance(
    stub: SegmentationServiceStub,
) -> None:
    mode = pb.OUTPUT_MODE_POLYGONS
    (exact,) = await predict(stub, output_mode=mode, polygon_options=EXACT)
    (default,) = await predict(stub, output_mode=mode)
    (one,) = await predict(stub, output_mode=mode, polygon_options=pb.PolygonOptions(tolerance=1))
    none = pb.PolygonOptions(min_area=HEIGHT * WIDTH)
    (without,) = await predict(stub, output_mode=mode, polygon_options=none)

    assert exact.polygons.iou == 1
    assert 0.9 < default.polygons.iou < 1
    assert default == one
    pixels, simplified = pixels_of(exact), pixels_of(default)
    assert pixels is not None
    assert simplified is not None
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    on_lines = np.sum(shapely.intersects_xy(shape_of(default.polygons), x, y) & ~simplified)
    common, either = np.sum(pixels & simplified), np.sum(pixels | simplified)
    assert abs(default.polygons.iou - common / either) <= on_lines / either
    assert (len(without.polygons.polygons), without.polygons.iou) == (0, 0)
    assert facts(without) == facts(exact)


def logits(*boxes: tuple[int, int, int, int]) -> bytes:
    """Low-res logits that are positive inside an odd number of boxes; one pixel of them is half."""
    positive = np.zeros((256, 256), dtype=np.bool_)
    for top, left, bottom, right in boxes:
        positive[top:bottom, left:right] ^= True
    return np.where(positive, np.float32(8), np.float32(-8)).astype("<f4").tobytes()


async def test_holes_are_filled_and_islands_removed_below_their_areas(
    stub: SegmentationServiceStub,
) -> None:
    mask = logits((20, 20, 150, 150), (60, 60, 100, 100), (20, 200, 40, 220))
    prompt = pb.Prompt(mask=pb.MaskInput(low_res_logits=mask))

    (plain,) = await predict(stub, prompt, include_low_res_logits=True)
    (island,) = await predict(stub, prompt, min_island_area=2000)
    (hole,) = await predict(stub, prompt, min_hole_area=2000)
    (both,) = await predict(
        stub, prompt, min_hole_area=2000, min_island_area=2000, include_low_res_logits=True
    )

    before, after = pixels_of(plain), pixels_of(both)
    assert before is not None
    assert after is not None
    rows, columns = np.nonzero(after)
    assert after.sum() == len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert both.area == after.sum()
    assert (both.bbox.x, both.bbox.width) == (columns.min(), np.ptp(columns))
    assert island.area < plain.area < hole.area
    assert (island.bbox, hole.bbox) == (both.bbox, plain.bbox)
    assert both.bbox.width < plain.bbox.width
    for name in ("predicted_iou", "stability_score", "low_res_logits", "token_index"):
        assert getattr(both, name) == getattr(plain, name)


async def test_masks_are_clipped_to_the_boxes_of_their_prompts(
    stub: SegmentationServiceStub,
) -> None:
    # A batch of two prompts of one kind, and one of another kind, in this order.
    points = [pb.Point(x=x, y=40, label=pb.Point.LABEL_FOREGROUND) for x in (30, 60)]
    prompts = [
        pb.Prompt(points=points[:1], box=pb.Box(x_min=20, y_min=30.4, x_max=33.6, y_max=90)),
        pb.Prompt(box=pb.Box(x_min=1, y_min=1, x_max=50, y_max=50)),
        pb.Prompt(points=points[1:], box=pb.Box(x_min=55, y_min=10, x_max=63, y_max=45)),
    ]
    plain = await predict(stub, *prompts)
    clipped = await predict(stub, *prompts, clip_to_box=True)

    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for before, after, prompt in zip(plain, clipped, prompts, strict=True):
        box = prompt.box
        inside = (box.x_min <= x) & (x < box.x_max) & (box.y_min <= y) & (y < box.y_max)
        pixels = pixels_of(before)
        assert pixels is not None
        assert np.array_equal(pixels_of(after), pixels & inside)
        assert after.area == np.count_nonzero(pixels & inside)
    assert clipped[0].area < plain[0].area
    assert clipped[2].area < plain[2].area


BOXED = pb.Prompt(box=pb.Box(x_min=1, y_min=1, x_max=50, y_max=50))
POINT = sample_images.point_prompt(20, 30)
POLYGONS = {"output_mode": pb.OUTPUT_MODE_POLYGONS}
LOGITS = {"output_mode": pb.OUTPUT_MODE_LOW_RES_LOGITS}
INVALID: dict[str, tuple[list[pb.Prompt], dict[str, Any], list[str]]] = {
    "options of another mode": ([POINT], {"polygon_options": EXACT}, ["polygon_options"]),
    "empty options of another mode": (
        [POINT],
        {**LOGITS, "polygon_options": pb.PolygonOptions()},
        ["polygon_options"],
    ),
    "options out of range": (
        [POINT],
        {**POLYGONS, "polygon_options": pb.PolygonOptions(tolerance=1000.5, min_area=-1)},
        ["polygon_options.tolerance", "polygon_options.min_area"],
    ),
    "negative tolerance": (
        [POINT],
        {**POLYGONS, "polygon_options": pb.PolygonOptions(tolerance=-0.1)},
        ["polygon_options.tolerance"],
    ),
    "tolerance that is no number": (
        [POINT],
        {**POLYGONS, "polygon_options": pb.PolygonOptions(tolerance=float("nan"))},
        ["polygon_options.tolerance"],
    ),
    "negative areas": (
        [POINT],
        {"min_island_area": -1, "min_hole_area": -5},
        ["min_island_area", "min_hole_area"],
    ),
    "changes without pixels": (
        [BOXED],
        {**LOGITS, "min_island_area": 1, "min_hole_area": 1, "clip_to_box": True},
        ["min_island_area", "min_hole_area", "clip_to_box"],
    ),
    "prompts without a box": (
        [BOXED, POINT, BOXED, POINT],
        {"clip_to_box": True},
        ["prompts[1].box", "prompts[3].box"],
    ),
}


@pytest.mark.parametrize("name", INVALID)
async def test_invalid_options_of_masks_are_reported(
    name: str, stub: SegmentationServiceStub
) -> None:
    prompts, fields, names = INVALID[name]

    failure = await failure_of(stub.Predict(predict_request(*prompts, **fields)))

    assert failure.fields == names


async def test_polygon_options_of_automask_are_checked(stub: SegmentationServiceStub) -> None:
    image = sample_images.image(HEIGHT, WIDTH)
    requests = [
        pb.AutoMaskRequest(image=image, polygon_options=EXACT),
        pb.AutoMaskRequest(
            image=image,
            output_mode=pb.OUTPUT_MODE_POLYGONS,
            polygon_options=pb.PolygonOptions(min_area=-1),
        ),
    ]

    failures = [await failure_of(stub.AutoMask(request)) for request in requests]

    assert [each.fields for each in failures] == [["polygon_options"], ["polygon_options.min_area"]]


async def too_large(call: str, max_bytes: int, **fields: Any) -> Failure:
    async with serving(settings_with(limits={"max_response_bytes": max_bytes})) as (_, stub):
        if call == "Predict":
            return await failure_of(stub.Predict(predict_request(*[POINT] * 8, **fields)))
        few = pb.AutoMaskOptions(points_per_side=1, stability_score_thresh=0)
        image = sample_images.image(HEIGHT, WIDTH)
        return await failure_of(
            stub.AutoMask(pb.AutoMaskRequest(image=image, options=few, **fields))
        )


TOO_LARGE = {
    pb.OUTPUT_MODE_BINARY_MASK: "OUTPUT_MODE_COCO_RLE",
    pb.OUTPUT_MODE_UNCOMPRESSED_RLE: "OUTPUT_MODE_COCO_RLE",
    pb.OUTPUT_MODE_PNG: "OUTPUT_MODE_COCO_RLE",
    pb.OUTPUT_MODE_COCO_RLE: "OUTPUT_MODE_POLYGONS",
    pb.OUTPUT_MODE_POLYGONS: "OUTPUT_MODE_BOX",
}


@pytest.mark.parametrize("mode", TOO_LARGE, ids=pb.OutputMode.Name)
@pytest.mark.parametrize("call", ["Predict", "AutoMask"])
async def test_response_that_is_too_large_names_the_mode_to_request_instead(
    call: str, mode: int
) -> None:
    failure = await too_large(call, 100, output_mode=mode)

    assert (failure.reason, failure.fields) == ("RESPONSE_TOO_LARGE", ["output_mode"])
    assert f"request {TOO_LARGE[mode]}, or" in failure.text
    assert failure.metadata["suggested_output_mode"] == TOO_LARGE[mode]


async def test_boxes_that_are_too_large_have_no_smaller_mode() -> None:
    failure = await too_large("Predict", 100, output_mode=pb.OUTPUT_MODE_BOX)

    assert failure.text.endswith("send fewer prompts")
    assert "suggested_output_mode" not in failure.metadata


async def test_logits_that_are_too_large_with_their_masks_are_named() -> None:
    # The logits alone fit.
    failure = await too_large("Predict", 8 * 256 * 256 * 4 + 100, include_low_res_logits=True)

    assert failure.fields == ["include_low_res_logits"]
    assert "request no logits" in failure.text


async def test_logits_that_are_too_large_alone_have_masks_suggested() -> None:
    failure = await too_large("Predict", 100_000, output_mode=pb.OUTPUT_MODE_LOW_RES_LOGITS)

    assert failure.fields == ["include_low_res_logits"]
    assert failure.metadata["suggested_output_mode"] == "OUTPUT_MODE_COCO_RLE"
