"""A family that differs from SAM 1 in everything, registered here, through the real service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import cv2
import numpy as np
import pytest
from samserve.context import RequestContext
from samserve.core import geometry, rle
from samserve.core.upsampling import Upsampling
from samserve.engines.base import DecoderOutput, EncoderInput, PromptBatch
from samserve.engines.fake import FakeEngine
from samserve.errors import EngineUnavailable
from samserve.memory.slot import Slot
from samserve.models import families
from samserve.models.families.base import (
    AutoMaskDefaults,
    Capabilities,
    Family,
    ImageTransform,
    MaskChoice,
    Sides,
)
from samserve.types import (
    Array,
    BoolArray,
    CocoRle,
    DynamicMultimask,
    Embedding,
    FloatArray,
    Label,
    MaskSelection,
    Multimask,
    Size,
    UInt8Array,
)
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests.conftest import serving
from tests.rpc.errors import failure_of
from tests.support.engines import SMALL_MODEL

MODEL = replace(SMALL_MODEL, family="stretched")
WIDE = Size(64, 128)
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
IMAGE = pb.Image(
    raw=pb.RawImage(
        size=pb.ImageSize(height=64, width=128),
        layout=pb.RAW_LAYOUT_RGB,
        data=PIXELS.tobytes(),
    )
)
MIDDLE = pb.Point(x=64, y=32, label=pb.Point.LABEL_FOREGROUND)


class Stretched(Family):
    """Three mask tokens; the image fills the model frame, in BGR; two padding points come first."""

    name = "stretched"
    preprocessing = "stretched-1"
    capabilities = Capabilities(points=True, boxes=True, masks=False, automask=True)
    fills_frame = True
    mask_tokens = 3
    multimask_tokens = (0, 2)
    mask_threshold = 3.0
    automask = AutoMaskDefaults(
        points_per_side=2,
        points_per_batch=3,
        pred_iou_thresh=float(np.float32(0.92)),
        stability_score_thresh=0.25,
        stability_score_offset=2.0,
        box_nms_thresh=1.0,
        crop_nms_thresh=1.0,
        crop_overlap_ratio=0.5,
        crop_n_points_downscale_factor=2,
    )
    iou_passes = np.greater_equal
    stability_passes = np.greater

    def transform(self, image: Size, sides: Sides) -> ImageTransform:
        side = sides.image_size
        return ImageTransform(image, Size(side, side), side, sides.mask_size)

    def place(self, pixels: UInt8Array, transform: ImageTransform) -> UInt8Array:
        return geometry.resize_image(pixels, transform.resized)[..., ::-1]

    def prompt(
        self, points: Array, labels: Sequence[Label], box: Array | None
    ) -> tuple[FloatArray, FloatArray]:
        corners = np.empty((0, 2)) if box is None else box.reshape(2, 2)
        coords = np.concatenate([np.zeros((2, 2)), corners, points])
        values = [-1, -1, *([] if box is None else [2, 3]), *(label.value for label in labels)]
        return coords.astype(np.float32), np.array(values, dtype=np.float32)

    def grid_prompts(self, points: Array) -> tuple[FloatArray, FloatArray]:
        coords = points[:, None].astype(np.float32)
        return coords, np.ones(coords.shape[:2], dtype=np.float32)

    def mask_prompt(self, mask: BoolArray, transform: ImageTransform) -> FloatArray:
        raise NotImplementedError

    def choose(
        self,
        selection: MaskSelection,
        labels: FloatArray,
        predicted_iou: FloatArray,
        low_res_logits: FloatArray,
        dynamic: DynamicMultimask | None,
    ) -> Sequence[MaskChoice]:
        if selection.multimask is Multimask.ALL:
            return [MaskChoice.of(token) for token in self.multimask_tokens]
        if selection.multimask is Multimask.SINGLE:
            return [MaskChoice.of(1)]
        smallest = (low_res_logits > self.mask_threshold).sum((1, 2)).argmin()
        return [MaskChoice.of(int(smallest))]

    def upsampling(self, transform: ImageTransform) -> Upsampling:
        side = transform.mask_side
        whole = Size(side, side)
        return Upsampling.between(whole, transform.image, model_side=side, low_res_side=side)


class RecordingEngine(FakeEngine):
    """Records all runs, the warm-up's first; its logits are noisy, so that every pixel matters."""

    def __init__(self) -> None:
        super().__init__(model=MODEL)
        self.images: list[EncoderInput] = []
        self.prompts: list[PromptBatch] = []
        self.logits: list[FloatArray] = []

    async def encode(
        self, model: str, image: EncoderInput, into: Slot, context: RequestContext
    ) -> None:
        self.images.append(image)
        await super().encode(model, image, into, context)

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        output = await super().decode(model, embedding, prompts, context)
        output.low_res_logits[...] += np.random.default_rng(0).normal(0, 2, (64, 64))
        self.prompts.append(prompts)
        self.logits.append(output.low_res_logits)
        return output


Served = tuple[RecordingEngine, SegmentationServiceStub]


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    monkeypatch.setitem(families.FAMILIES, "stretched", Stretched())
    engine = RecordingEngine()
    async with serving(engine=engine) as (_, stub):
        yield engine, stub


async def test_image_and_prompts_are_transformed_to_the_frame_of_the_family(
    served: Served,
) -> None:
    engine, stub = served
    box = pb.Box(x_min=32, y_min=16, x_max=96, y_max=48)
    prompts = [pb.Prompt(points=[MIDDLE]), pb.Prompt(points=[MIDDLE], box=box)]

    await stub.Predict(pb.PredictRequest(image=IMAGE, prompts=prompts))

    assert engine.images[-1].valid is None
    bgr = geometry.resize_image(PIXELS, Size(256, 256))[..., ::-1]
    assert np.array_equal(engine.images[-1].pixels, bgr)
    warm_up, point, both = engine.prompts
    assert warm_up.point_labels.tolist() == [[1]]
    assert point.point_labels.tolist() == [[-1, -1, 1]]
    assert point.point_coords.tolist() == [[[0, 0], [0, 0], [128, 128]]]
    assert both.point_labels.tolist() == [[-1, -1, 2, 3, 1]]
    assert both.point_coords.tolist() == [[[0, 0], [0, 0], [64, 64], [192, 192], [128, 128]]]


@pytest.mark.parametrize(
    ("mode", "tokens"),
    [(pb.MULTIMASK_ALL, [0, 2]), (pb.MULTIMASK_SINGLE, [1]), (pb.MULTIMASK_AUTO, [1])],
)
async def test_family_selects_the_returned_tokens(
    mode: pb.Multimask, tokens: list[int], served: Served
) -> None:
    prompt = pb.Prompt(points=[MIDDLE])
    request = pb.PredictRequest(image=IMAGE, prompts=[prompt], multimask=mode)

    response = await served[1].Predict(request)

    assert [mask.token_index for mask in response.results[0].masks] == tokens


async def test_logits_are_upsampled_as_the_family_defines(served: Served) -> None:
    request = pb.PredictRequest(
        image=IMAGE, prompts=[pb.Prompt(points=[MIDDLE])], include_low_res_logits=True
    )

    (mask,) = (await served[1].Predict(request)).results[0].masks

    logits = np.frombuffer(mask.low_res_logits, "<f4").reshape(64, 64)
    expected_logits = upsampled(logits)
    decoded = rle.decode(CocoRle(WIDE, mask.coco_rle.counts))
    assert np.array_equal(decoded, expected_logits > 3)
    stable = np.count_nonzero(expected_logits > 5) / np.count_nonzero(expected_logits > 1)
    assert mask.stability_score == pytest.approx(stable)


def upsampled(logits: FloatArray) -> FloatArray:
    return np.asarray(cv2.resize(logits, (128, 64), interpolation=cv2.INTER_LINEAR))


async def test_automask_uses_tokens_defaults_and_comparisons_of_the_family(
    served: Served,
) -> None:
    engine, stub = served

    records, counts_out = await run_automask(stub, pb.AutoMaskOptions())

    batches = engine.prompts[1:]
    assert [batch.point_labels.tolist() for batch in batches] == [[[1]] * 3, [[1]]]
    assert batches[1].point_coords.tolist() == [[[192, 192]]]
    # The predicted IoUs of tokens 0 and 2 are 0.9 and 0.92, which equals the threshold and passes.
    assert (counts_out["pred_iou"], len(records)) == (4, 4)
    expected = [upsampled(logits[2]) > 3 for batch in engine.logits[1:] for logits in batch]
    decoded = [rle.decode(CocoRle(WIDE, record.mask.coco_rle.counts)) for record in records]
    assert sorted(mask.tobytes() for mask in decoded) == sorted(mask.tobytes() for mask in expected)
    assert sorted(entry.mask.area for entry in records) == sorted(map(np.count_nonzero, expected))
    # A stability equal to its threshold does not pass.
    smallest = min(record.mask.stability_score for record in records)
    _, counts_out = await run_automask(stub, pb.AutoMaskOptions(stability_score_thresh=smallest))
    assert counts_out["stability_score"] < 4


async def run_automask(
    stub: SegmentationServiceStub, options: pb.AutoMaskOptions
) -> tuple[list[pb.AutoMaskRecord], dict[str, int]]:
    """Return all records of the image, and how many masks each filter kept."""
    request = pb.AutoMaskRequest(image=IMAGE, options=options)
    events = [event async for event in stub.AutoMask(request)]
    records = [record for event in events for record in event.masks.records]
    return records, {entry.filter: entry.out_count for entry in events[-1].summary.filters}


async def test_models_list_capabilities_and_defaults_of_their_family(
    served: Served,
) -> None:
    response = await served[1].ListModels(pb.ListModelsRequest())

    (model,) = response.models
    assert model.family == "stretched"
    assert (model.capabilities.points, model.capabilities.masks) == (True, False)
    assert model.mask_tokens == 3
    assert model.automask_defaults.points_per_side == 2
    assert response.automask_defaults == model.automask_defaults
    assert response.automask_defaults.crop_n_layers == 0


async def test_error_of_an_unsupported_capability_names_the_field(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_capabilities = Capabilities(points=False, boxes=False, masks=False, automask=False)
    monkeypatch.setattr(Stretched, "capabilities", no_capabilities)
    counts = rle.encode(np.ones((64, 128), dtype=bool)).counts
    mask = pb.MaskInput(binary=pb.CocoRle(size=pb.ImageSize(height=64, width=128), counts=counts))
    box = pb.Box(x_min=32, y_min=16, x_max=96, y_max=48)
    prompts = [pb.Prompt(points=[MIDDLE], box=box), pb.Prompt(mask=mask)]

    predict = await failure_of(served[1].Predict(pb.PredictRequest(image=IMAGE, prompts=prompts)))
    automask = await failure_of(served[1].AutoMask(pb.AutoMaskRequest(image=IMAGE)))

    assert predict.fields == ["prompts[0].points", "prompts[0].box", "prompts[1].mask"]
    assert automask.fields == ["model"]
    assert len(served[0].images) == 1  # from the warm-up


def test_model_of_an_unknown_family_is_invalid() -> None:
    with pytest.raises(EngineUnavailable, match="model 'fake' has the unknown family 'stretched'"):
        families.of(MODEL)
