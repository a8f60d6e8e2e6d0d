"""The whole export of a SAM-HQ: what is written, its parity, and half precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from samserve.export.images import SAMPLES
from samserve.export.pipeline import Exported, ExportOptions, Precision, export
from samserve.models.families import SAM_HQ
from samserve.models.repository import discover

from tests.export.conftest import LARGE
from tests.oracle import sam_hq

ONE = (SAMPLES / "coffee.jpg",)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a toy whose masks follow its prompts."""
    path = tmp_path_factory.mktemp("checkpoint") / "toy.pth"
    torch.save(sam_hq.build(foreground=LARGE).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The export in float32."""
    return export(checkpoint, ExportOptions(tmp_path_factory.mktemp("full"), images=ONE))


def test_an_export_has_five_masks_and_two_tensors_an_embedding(exported: Exported) -> None:
    (files,) = discover(exported.folders[0].parent)
    info = files.info
    assert exported.digest == info.digest
    assert (info.name, info.family) == ("toy", SAM_HQ.name)
    assert [(each.name, str(each.dtype), each.shape) for each in info.embedding] == [
        ("image_embedding", "float16", (256, 16, 16)),
        ("hq_features", "float16", (32, 64, 64)),
    ]
    decoder = onnx.load(exported.folders[1] / "1" / "model.onnx").graph
    shapes = {
        output.name: [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim]
        for output in decoder.output
    }
    assert shapes["low_res_logits"] == ["B", "P", 5, 64, 64]
    assert shapes["predicted_iou"] == ["B", "P", 5]
    assert info.description.startswith("SAM-HQ (custom)")
    parity = info.card.parity
    assert parity is not None
    assert parity.prompts > 15
    assert parity.mean_iou > 0.999
    # Rounding to float16 must be visible, else nothing was compared.
    assert 1e-5 < parity.embedding_error < 1e-3


def test_fp16_applies_to_the_encoder_and_to_what_makes_the_hq_features(
    checkpoint: Path, exported: Exported, tmp_path: Path
) -> None:
    half = export(checkpoint, ExportOptions(tmp_path, "half", precision=Precision.FP16, images=ONE))

    wide, narrow = (weights(each.folders[0]) for each in (exported, half))
    assert narrow["FLOAT16"] > 0.95 * wide["FLOAT"]
    # Norms and the image's normalisation remain in float32.
    assert 0 < narrow["FLOAT"] < 0.01 * wide["FLOAT"]
    assert "FLOAT16" not in weights(half.folders[1])
    assert half.card.parity is not None
    assert half.card.parity.mean_iou > 0.99
    assert 3e-4 < half.card.parity.embedding_error < 1e-2


def weights(folder: Path) -> dict[str, int]:
    """Return the number of weights of a model, by type."""
    found: dict[str, int] = {}
    for tensor in onnx.load(folder / "1" / "model.onnx").graph.initializer:
        name = TensorProto.DataType.Name(tensor.data_type)
        found[name] = found.get(name, 0) + int(np.prod(tensor.dims))
    return found
