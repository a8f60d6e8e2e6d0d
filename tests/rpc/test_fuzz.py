"""Property: no request returns INTERNAL, UNKNOWN or UNAVAILABLE."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from samserve.v1 import samserve_pb2 as pb

from tests import sample_images
from tests.conftest import serving, settings_with
from tests.rpc.errors import finish
from tests.support.examples import examples

BROKEN = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}
PNG = sample_images.png(16, 24)
JPEG = sample_images.encode(sample_images.noise(16, 24), "JPEG")
WEBP = sample_images.encode(sample_images.noise(16, 24), "WEBP")

numbers = st.floats(width=64) | st.floats(-5, 30)
small = st.integers(-3, 40) | st.integers(-(2**31), 2**31 - 1)
sizes = st.builds(pb.ImageSize, height=small, width=small) | st.just(
    pb.ImageSize(height=16, width=24)
)
points = st.builds(pb.Point, x=numbers, y=numbers, label=st.integers(0, 3))
boxes = st.builds(pb.Box, x_min=numbers, y_min=numbers, x_max=numbers, y_max=numbers)
texts = st.text(max_size=40) | st.text("0123PQRSTUV`abcdefghijklmno", max_size=60)
rles = st.builds(pb.CocoRle, size=sizes, counts=texts)
floats_of_map = st.sampled_from([0.0, 1.0, -1e38, float("nan")])
logits = st.binary(max_size=300) | st.builds(
    lambda value: struct.pack("<f", value) * 65536, floats_of_map
)
masks = st.builds(pb.MaskInput, binary=rles) | st.builds(pb.MaskInput, low_res_logits=logits)
prompts = st.builds(
    pb.Prompt,
    points=st.lists(points, max_size=4),
    box=st.none() | boxes,
    mask=st.none() | masks,
)


@st.composite
def corrupt_files(draw: st.DrawFn) -> bytes:
    """Return a real file with a few changed bytes, or truncated."""
    data = bytearray(draw(st.sampled_from([PNG, JPEG, WEBP])))
    for position, value in draw(
        st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=6)
    ):
        data[position] = value
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


raws = st.builds(
    pb.RawImage, size=sizes, layout=st.integers(0, 4), data=st.binary(max_size=16 * 24 * 3)
)
images = st.one_of(
    st.builds(
        pb.Image, encoded=corrupt_files() | st.binary(max_size=200), orientation=st.integers(0, 3)
    ),
    st.builds(pb.Image, raw=raws),
    st.builds(pb.Image, encoded_sha256=st.binary(max_size=40)),
    st.just(pb.Image(encoded=PNG)),
)
# Mostly unset: the served model has no other mode.
hq_modes = st.sampled_from([0, 0, 0, 0, 2, 9])
predicts = st.builds(
    pb.PredictRequest,
    image=images,
    model=st.just("") | st.text(max_size=5),
    prompts=st.lists(prompts, max_size=3),
    multimask=st.integers(0, 4),
    output_mode=st.integers(0, 4),
    include_low_res_logits=st.booleans(),
    hq_mode=hq_modes,
)
grid_points = st.lists(st.builds(pb.NormalizedPoint, x=numbers, y=numbers), max_size=3)
grids = st.lists(st.builds(pb.PointGrid, points=grid_points), min_size=1, max_size=2)
options_of_a_grid: dict[str, st.SearchStrategy[Any]] = {
    "points_per_batch": st.none() | st.integers(-1, 9),
    "pred_iou_thresh": st.none() | numbers,
    "stability_score_thresh": st.none() | numbers,
    "stability_score_offset": st.none() | numbers,
    "box_nms_thresh": st.none() | numbers,
    "crop_n_layers": st.none() | st.integers(-1, 2),
    "crop_overlap_ratio": st.none() | numbers,
    "crop_n_points_downscale_factor": st.none() | st.integers(-1, 4),
    "min_mask_region_area": st.none() | small,
    "region_of_interest": st.none() | boxes,
    "max_masks": st.none() | small,
    "multimask_output": st.none() | st.booleans(),
    "use_m2m": st.none() | st.booleans(),
    "hq_mode": hq_modes,
    "exclude": st.lists(rles, max_size=3),
    "exclude_iou_thresh": st.none() | numbers,
    "exclude_parts": st.none() | st.booleans(),
}
side = st.integers(-1, 3)
# Always a grid of a few points: the default grid has a thousand.
options = st.one_of(
    st.builds(pb.AutoMaskOptions, points_per_side=side, **options_of_a_grid),
    st.builds(pb.AutoMaskOptions, point_grids=grids, **options_of_a_grid),
    st.builds(pb.AutoMaskOptions, point_grids=grids, points_per_side=side, **options_of_a_grid),
)
automasks = st.builds(
    pb.AutoMaskRequest, image=images, options=options, output_mode=st.integers(0, 4)
)


class Session:
    """One server for all examples of a property, on its own event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        limits = {"max_image_pixels": 10_000, "max_points_per_side": 3, "max_crop_n_layers": 1}
        self._stack = serving(settings_with(limits=limits, log={"level": "error"}))
        _, self.stub = self.loop.run_until_complete(self._stack.__aenter__())

    def code(self, method: str, request: Any) -> grpc.StatusCode:
        """Make a call and return its code."""
        return self.loop.run_until_complete(self._code(method, request))

    async def _code(self, method: str, request: Any) -> grpc.StatusCode:
        try:
            await finish(getattr(self.stub, method)(request))
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    def close(self) -> None:
        """Stop the server and the loop."""
        self.loop.run_until_complete(self._stack.__aexit__(None, None, None))
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


@pytest.fixture(scope="module")
def session(_engine: None) -> Iterator[Session]:
    session = Session()
    yield session
    session.close()


CHECKS: list[HealthCheck] = list(HealthCheck)
FUZZ = examples(300, suppress_health_check=CHECKS)


@FUZZ
@given(request=st.builds(pb.EmbedRequest, image=images, model=st.just("") | st.text(max_size=5)))
def test_embed_never_fails_internally(session: Session, request: pb.EmbedRequest) -> None:
    assert session.code("Embed", request) not in BROKEN


@FUZZ
@given(request=predicts)
def test_predict_never_fails_internally(session: Session, request: pb.PredictRequest) -> None:
    assert session.code("Predict", request) not in BROKEN


@examples(200, suppress_health_check=CHECKS)  # a search needs many runs
@given(request=automasks)
def test_automask_never_fails_internally(session: Session, request: pb.AutoMaskRequest) -> None:
    assert session.code("AutoMask", request) not in BROKEN


@FUZZ
@given(embedding_id=st.text(max_size=200))
def test_delete_never_fails_internally(session: Session, embedding_id: str) -> None:
    request = pb.DeleteEmbeddingRequest(embedding_id=embedding_id)

    assert session.code("DeleteEmbedding", request) not in BROKEN


def test_server_still_serves_calls(session: Session) -> None:
    request = pb.PredictRequest(
        image=pb.Image(encoded=PNG), prompts=[sample_images.point_prompt(5, 5)]
    )

    assert session.code("Predict", request) is grpc.StatusCode.OK
