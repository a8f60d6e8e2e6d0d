"""AutoMask through the real server with the fake engine: options, streaming, sources."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco
from samserve.app import Running
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import engine_choice, sample_images
from tests.conftest import serving, settings_with

Service = tuple[Running, SegmentationServiceStub]
KEEP_ALL = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}


async def run(
    stub: SegmentationServiceStub, request: pb.AutoMaskRequest
) -> tuple[list[pb.AutoMaskProgress], list[pb.AutoMaskRecord], pb.AutoMaskSummary]:
    events = [event async for event in stub.AutoMask(request)]
    progress = [event.progress for event in events if event.WhichOneof("event") == "progress"]
    records = [record for event in events for record in event.masks.records]
    assert events[-1].WhichOneof("event") == "summary"
    return progress, records, events[-1].summary


def request(image: pb.Image | None = None, **options: object) -> pb.AutoMaskRequest:
    return pb.AutoMaskRequest(
        image=image or sample_images.image(480, 640),
        options=pb.AutoMaskOptions(**options),  # type: ignore[arg-type]  # passed by name
    )


def points(records: list[pb.AutoMaskRecord]) -> set[tuple[float, float]]:
    return {(record.point.x, record.point.y) for record in records}


async def test_progress_counts_points_and_crops_to_their_totals(
    stub: SegmentationServiceStub,
) -> None:
    progress, _, _ = await run(stub, request(points_per_side=4, crop_n_layers=1))

    assert progress[0].evaluated_point_count == 0
    assert progress[-1].evaluated_point_count == progress[-1].total_point_count == 16 * 5
    assert progress[-1].finished_crop_count == progress[-1].total_crop_count == 5


async def test_summary_has_the_counts_of_each_filter(stub: SegmentationServiceStub) -> None:
    _, records, summary = await run(
        stub,
        request(
            points_per_side=4,
            crop_n_layers=1,
            pred_iou_thresh=0.91,
            stability_score_thresh=0.9,
            min_mask_region_area=5,
            max_masks=7,
        ),
    )
    counts = {count.filter: (count.in_count, count.out_count) for count in summary.filters}

    assert list(counts) == [
        "pred_iou",
        "stability_score",
        "crop_edge",
        "box_nms",
        "crop_nms",
        "small_regions",
        "max_masks",
    ]
    assert counts["pred_iou"] == (16 * 5 * 3, 16 * 5 * 2)
    assert counts["max_masks"][1] == summary.mask_count == len(records) == 7
    assert summary.embedding.id
    assert {"decode", "postprocess"} <= {timing.stage for timing in summary.timings}


async def test_embedding_id_returns_the_masks_of_its_image(service: Service) -> None:
    running, stub = service
    image = sample_images.image(480, 640)
    _, from_image, summary = await run(stub, request(image, points_per_side=5))
    by_id = pb.AutoMaskRequest(
        embedding_id=summary.embedding.id, options=pb.AutoMaskOptions(points_per_side=5)
    )
    _, from_id, second = await run(stub, by_id)

    assert from_id == from_image != []
    assert second.embedding.cached
    assert engine_choice.run_count(running, "encoder") == 2


async def test_region_of_interest_filters_points_without_another_encode(
    service: Service,
) -> None:
    running, stub = service
    image = sample_images.image(480, 640)
    region = pb.Box(x_min=100, y_min=50, x_max=400, y_max=300)
    _, everything, _ = await run(stub, request(image, points_per_side=8, **KEEP_ALL))
    progress, inside, _ = await run(
        stub, request(image, points_per_side=8, region_of_interest=region, **KEEP_ALL)
    )
    expected = {(x, y) for x, y in points(everything) if 100 <= x <= 400 and 50 <= y <= 300}

    assert points(inside) == expected != set()
    assert progress[-1].total_point_count < 64
    assert engine_choice.run_count(running, "encoder") == 2


async def test_custom_grid_is_used_as_points(stub: SegmentationServiceStub) -> None:
    grid = pb.PointGrid(
        points=[pb.NormalizedPoint(x=0.25, y=0.5), pb.NormalizedPoint(x=0.9, y=0.1)]
    )
    _, records, _ = await run(stub, request(point_grids=[grid], **KEEP_ALL))

    assert points(records) == {(160.0, 240.0), (576.0, 48.0)}


async def test_max_masks_keeps_the_best_in_order(stub: SegmentationServiceStub) -> None:
    _, everything, _ = await run(stub, request(points_per_side=4, **KEEP_ALL))
    _, best, _ = await run(stub, request(points_per_side=4, max_masks=5, **KEEP_ALL))
    floor = sorted((r.mask.predicted_iou for r in everything), reverse=True)[4]

    assert len(best) == 5
    assert all(record.mask.predicted_iou >= floor for record in best)
    assert [record for record in everything if record in best] == best


async def test_records_do_not_depend_on_points_per_batch(stub: SegmentationServiceStub) -> None:
    image = sample_images.image(480, 640)
    _, one, _ = await run(stub, request(image, points_per_side=5, points_per_batch=1))
    _, many, _ = await run(stub, request(image, points_per_side=5, points_per_batch=1024))

    assert one == many


async def test_crops_are_encoded_and_their_slots_released(service: Service) -> None:
    running, stub = service
    _, records, _ = await run(stub, request(points_per_side=4, crop_n_layers=1, **KEEP_ALL))
    crops = {(r.crop_box.x, r.crop_box.y, r.crop_box.width, r.crop_box.height) for r in records}

    assert len(crops) == 5
    assert (0.0, 0.0, 640.0, 480.0) in crops
    assert engine_choice.run_count(running, "encoder") == 1 + 5
    assert running.cache.stats().entries == 1
    assert running.cache.stats().bytes == 2 << 20


async def test_masks_of_crops_are_in_the_frame_of_the_whole_image(
    stub: SegmentationServiceStub,
) -> None:
    _, records, _ = await run(stub, request(points_per_side=4, crop_n_layers=1, **KEEP_ALL))

    for record in records:
        size = record.mask.coco_rle.size
        assert (size.height, size.width) == (480, 640)
        assert record.mask.bbox.x >= record.crop_box.x - 1
        assert 0 <= record.point.x <= 640
        assert 0 <= record.point.y <= 480


@pytest.mark.parametrize("layers", [0, 1])
async def test_what_is_excluded_does_not_return(layers: int, stub: SegmentationServiceStub) -> None:
    options = {"points_per_side": 4, "crop_n_layers": layers, **KEEP_ALL}
    _, first, before = await run(stub, request(**options, max_masks=6))
    excluded = [record.mask.coco_rle for record in first]
    _, second, summary = await run(stub, request(**options, max_masks=6, exclude=excluded))
    names = [count.filter for count in summary.filters]
    counts = {count.filter: (count.in_count, count.out_count) for count in summary.filters}

    assert "exclude" not in [count.filter for count in before.filters]
    assert names[:5] == ["pred_iou", "stability_score", "crop_edge", "exclude", "box_nms"]
    assert counts["exclude"][0] == counts["crop_edge"][1]
    assert counts["exclude"][0] - counts["exclude"][1] >= len(first)
    assert len(second) == 6
    assert highest_iou(second, first) <= 0.7


async def test_records_are_the_same_with_nothing_to_exclude(stub: SegmentationServiceStub) -> None:
    image = sample_images.image(480, 640)
    plain = request(image, points_per_side=5, min_mask_region_area=9, max_masks=20)
    with_options = pb.AutoMaskRequest()
    with_options.CopyFrom(plain)
    with_options.options.exclude_iou_thresh = 0.0
    with_options.options.exclude_parts = True
    (_, one, before), (_, other, after) = await run(stub, plain), await run(stub, with_options)

    assert one == other != []
    assert before.filters == after.filters


async def test_embedding_id_takes_masks_of_its_image_to_exclude(
    stub: SegmentationServiceStub,
) -> None:
    _, records, summary = await run(stub, request(points_per_side=3, **KEEP_ALL))
    options = pb.AutoMaskOptions(
        points_per_side=3,
        exclude=[each.mask.coco_rle for each in records],
        exclude_iou_thresh=0.0,
    )
    by_id = pb.AutoMaskRequest(embedding_id=summary.embedding.id, options=options)
    _, none, _ = await run(stub, by_id)

    # All masks of the fake engine overlap one of these.
    assert none == []


def highest_iou(records: list[pb.AutoMaskRecord], others: list[pb.AutoMaskRecord]) -> float:
    """Return the highest IoU between masks of two lists, by pycocotools."""
    first, second = (
        [{"size": [480, 640], "counts": record.mask.coco_rle.counts.encode()} for record in each]
        for each in (records, others)
    )
    return float(coco.iou(first, second, [0] * len(second)).max())


async def test_large_masks_are_streamed_in_several_messages(stub: SegmentationServiceStub) -> None:
    message = request(sample_images.image(1500, 1500), points_per_side=3, **KEEP_ALL)
    message.output_mode = pb.OUTPUT_MODE_BINARY_MASK
    batches = [
        event.masks
        async for event in stub.AutoMask(message)
        if event.WhichOneof("event") == "masks"
    ]

    assert len(batches) > 1
    assert all(batch.ByteSize() < (1 << 20) + 300_000 for batch in batches)
    bits = np.frombuffer(batches[0].records[0].mask.binary_mask.bits, dtype=np.uint8)
    assert np.unpackbits(bits).sum() == batches[0].records[0].mask.area


async def test_region_without_grid_points_returns_no_masks(stub: SegmentationServiceStub) -> None:
    region = pb.Box(x_min=1, y_min=1, x_max=2, y_max=2)
    progress, records, summary = await run(
        stub, request(points_per_side=2, region_of_interest=region)
    )

    assert (len(progress) > 0, records, summary.mask_count) == (True, [], 0)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 40), (700, 3)])
async def test_images_of_a_few_pixels_are_segmented(width: int, height: int) -> None:
    async with serving(settings_with()) as (_, stub):
        _, records, _ = await run(
            stub, request(sample_images.image(height, width), points_per_side=2, crop_n_layers=1)
        )
        response = await stub.Predict(
            pb.PredictRequest(
                image=sample_images.image(height, width),
                prompts=[sample_images.point_prompt(width / 2, height / 2)],
            )
        )

    assert records is not None
    assert response.results[0].masks[0].area >= 0
