"""An error reports all violations of a request, with the names of the protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from samserve.errors import InvalidRequest, Violations
from samserve.rpc import requests
from samserve.settings import LimitSettings
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import sample_images
from tests.rpc.errors import failure_of

NAN = float("nan")


async def test_all_invalid_fields_of_predict_are_reported(stub: SegmentationServiceStub) -> None:
    points = [pb.Point(x=NAN, y=1, label=7), pb.Point(x=1, y=1)]
    prompts = [
        pb.Prompt(points=points, box=pb.Box(x_min=5, x_max=5, y_min=9, y_max=1)),
        pb.Prompt(),
    ]

    failure = await failure_of(
        stub.Predict(pb.PredictRequest(prompts=prompts, multimask=9, output_mode=9, hq_mode=9))  # type: ignore[arg-type]
    )

    assert failure.fields == [
        *("source", "output_mode", "multimask", "hq_mode"),
        *("prompts[0].points[0].x", "prompts[0].points[0].label", "prompts[0].points[1].label"),
        *("prompts[0].box.x_max", "prompts[0].box.y_max", "prompts[1]"),
    ]
    assert failure.text.startswith("source: set one of: embedding_id, image; output_mode: must be")
    assert failure.text.endswith("; and 6 more")


async def test_all_coordinates_outside_the_image_are_reported(
    stub: SegmentationServiceStub,
) -> None:
    box = pb.Box(x_min=0, y_min=0, x_max=65, y_max=49)
    prompts = [sample_images.point_prompt(99, 99), pb.Prompt(box=box)]

    failure = await failure_of(
        stub.Predict(pb.PredictRequest(image=sample_images.image(48, 64), prompts=prompts))
    )

    assert failure.fields == [
        *("prompts[0].points[0].x", "prompts[0].points[0].y"),
        *("prompts[1].box.x_max", "prompts[1].box.y_max"),
    ]
    assert (failure.metadata["limit"], failure.metadata["value"]) == ("64", "99")


async def test_all_invalid_options_of_automask_are_reported(stub: SegmentationServiceStub) -> None:
    options = pb.AutoMaskOptions(
        points_per_side=0,
        pred_iou_thresh=2,
        crop_n_layers=1,
        hq_mode=9,  # type: ignore[arg-type]
        region_of_interest=pb.Box(x_min=1, x_max=1, y_max=1),
    )
    request = pb.AutoMaskRequest(
        embedding_id="x", options=options, output_mode=pb.OUTPUT_MODE_LOW_RES_LOGITS
    )

    failure = await failure_of(stub.AutoMask(request))

    assert failure.fields == [
        *("output_mode", "options.points_per_side", "options.pred_iou_thresh"),
        *("options.hq_mode", "options.crop_n_layers", "options.region_of_interest.x_max"),
    ]
    assert "got OUTPUT_MODE_LOW_RES_LOGITS" in failure.descriptions[0]


async def test_all_invalid_fields_of_embed_are_reported(stub: SegmentationServiceStub) -> None:
    failure = await failure_of(stub.Embed(pb.EmbedRequest(durability=9)))  # type: ignore[arg-type]

    assert failure.fields == ["image.content", "durability"]


async def test_number_of_reported_violations_is_limited(stub: SegmentationServiceStub) -> None:
    prompts = [pb.Prompt(points=[pb.Point(x=NAN, y=NAN)] * 64)] * 256

    failure = await failure_of(stub.Predict(pb.PredictRequest(embedding_id="x", prompts=prompts)))

    assert len(failure.fields) == Violations.MAX_VIOLATIONS
    assert failure.text.endswith(f"and {Violations.MAX_VIOLATIONS - 4} more")


CHOICES: dict[str, tuple[Callable[[int], Any], str]] = {
    "multimask": (lambda value: predict(multimask=value), "MULTIMASK_ALL"),
    "hq_mode": (lambda value: predict(hq_mode=value), "HQ_MODE_ONLY"),
    "hq_mode of automask": (lambda value: automask(hq_mode=value), "HQ_MODE_ONLY"),
    "output_mode": (lambda value: predict(output_mode=value), "OUTPUT_MODE_COCO_RLE"),
    "orientation": (lambda value: embed(encoded=b"x", orientation=value), "ORIENTATION_IGNORE"),
    "layout": (lambda value: embed(raw=pb.RawImage(layout=value)), "RAW_LAYOUT_BGR"),  # type: ignore[arg-type]
    "durability": (lambda value: requests.embed(durably(value)), "DURABILITY_DURABLE"),
}


def predict(**fields: Any) -> requests.PredictCall:
    request = pb.PredictRequest(embedding_id="x", prompts=[sample_images.point_prompt()], **fields)
    return requests.predict(request, LimitSettings())


def automask(**options: Any) -> requests.AutoMaskCall:
    message = pb.AutoMaskRequest(embedding_id="x", options=pb.AutoMaskOptions(**options))
    return requests.automask(message, LimitSettings())


def durably(value: Any) -> pb.EmbedRequest:
    return pb.EmbedRequest(image=sample_images.image(), durability=value)


def embed(**fields: Any) -> requests.EmbedCall:
    return requests.embed(pb.EmbedRequest(image=pb.Image(**fields)))


@pytest.mark.parametrize("name", CHOICES)
def test_valid_enum_values_are_reported_by_name(name: str) -> None:
    read, allowed = CHOICES[name]

    with pytest.raises(InvalidRequest) as rejected:
        read(77)

    assert allowed in rejected.value.message
    assert allowed in rejected.value.metadata["limit"]
    assert rejected.value.message.endswith("got the unknown value 77")
