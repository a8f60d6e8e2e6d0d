"""AutoMask of samserve and of the original, with the default settings, on a SAM."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from prometheus_client import CollectorRegistry
from samserve.engines.onnx import OnnxEngine
from samserve.export.pipeline import ExportOptions, export
from samserve.export.triton_repository import Description, write_bundle
from samserve.telemetry.metrics import Metrics

from tests.oracle import photos
from tests.oracle.generator import reference_auto_mask
from tests.oracle.plain_decoder import plain_decoder
from tests.oracle.sam import SMALL, build_sam, original
from tests.segmentation.automask.comparison import counts_out, differences
from tests.segmentation.automask.replay import mask_of, samserve_auto_mask

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Small masks with sharp edges: many pass the default thresholds and suppression.
FEW_PIXELS = (0.04, 0.05, 0.04, 0.03)
SHARPER = 5.0

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "crops": {
        "points_per_side": 8,
        "crop_n_layers": 1,
        "crop_n_points_downscale_factor": 2,
        "min_mask_region_area": 100,
    },
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SAM with random weights; some of its masks pass, and some fail, every filter."""
    folder = tmp_path_factory.mktemp("compact")
    sam = build_sam(SMALL, photos.calibration(), foreground=FEW_PIXELS)
    with torch.no_grad():
        for hypernetwork in sam.mask_decoder.output_hypernetworks_mlps:
            hypernetwork.layers[-1].weight *= SHARPER
            hypernetwork.layers[-1].bias *= SHARPER
    torch.save(sam.state_dict(), folder / "sam.pth")
    export(folder / "sam.pth", ExportOptions(folder / "repository", "compact", check_parity=False))
    return folder / "repository"


@pytest.fixture(scope="module")
def plain(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnnxEngine]:
    """The same model with a decoder of the original modules, as earlier versions exported it."""
    folder = tmp_path_factory.mktemp("plain")
    sam = original(SMALL)
    sam.load_state_dict(torch.load(repository.parent / "sam.pth"))
    encoder = onnx.load(repository / "compact_encoder" / "1" / "model.onnx")
    models = {"encoder": encoder, "decoder": plain_decoder(sam)}
    write_bundle(folder, "compact", models, Description("plain"))
    engine = OnnxEngine(folder, 1, Metrics(CollectorRegistry()))
    yield engine
    asyncio.run(engine.aclose())


@pytest.fixture(scope="module")
def engine(repository: Path) -> Iterator[OnnxEngine]:
    engine = OnnxEngine(repository, 1, Metrics(CollectorRegistry()))
    yield engine
    asyncio.run(engine.aclose())


@pytest.mark.parametrize("name", SETTINGS)
def test_auto_mask_returns_the_masks_of_the_original(
    name: str, repository: Path, engine: OnnxEngine
) -> None:
    photo = photos.coffee_427x640()
    encoder, decoder = (
        repository / f"compact_{role}" / "1" / "model.onnx" for role in ("encoder", "decoder")
    )
    expected, counts = reference_auto_mask(
        photo, encoder, decoder, output_mode="binary_mask", **SETTINGS[name]
    )

    records, filters = asyncio.run(samserve_auto_mask(engine, photo, SETTINGS[name]))

    assert len(expected) >= 20
    assert differences(records, expected) == []
    kept = counts_out(counts)
    assert {each.name: each.count_out for each in filters.values()} == {
        each: kept[each] for each in filters
    }
    rejecting = {each.name for each in filters.values() if each.count_out < each.count_in}
    assert {"pred_iou", "stability_score", "box_nms"} <= rejecting


@pytest.mark.parametrize("name", SETTINGS)
def test_auto_mask_returns_the_records_of_an_earlier_export(
    name: str, engine: OnnxEngine, plain: OnnxEngine
) -> None:
    photo = photos.coffee_427x640()
    assert engine.models["compact"].skips_masks
    assert not plain.models["compact"].skips_masks

    records, filters = asyncio.run(samserve_auto_mask(engine, photo, SETTINGS[name]))
    before, filters_before = asyncio.run(samserve_auto_mask(plain, photo, SETTINGS[name]))

    assert len(records) == len(before) >= 20
    assert filters == filters_before
    for record, earlier in zip(records, before, strict=True):
        assert (record.point, record.crop_box) == (earlier.point, earlier.crop_box)
        # Operations in another order may flip a pixel whose logit is 0.
        assert np.count_nonzero(mask_of(record) != mask_of(earlier)) <= 2
