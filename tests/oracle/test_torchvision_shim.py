"""Semantics of torchvision that the reference implementations rely on, by hand-made cases."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from tests.oracle import edgetam, mobile
from tests.oracle import torchvision_shim as shim

SQUARE, HALF_OF_IT, ELSEWHERE = [0, 0, 10, 10], [0, 0, 10, 5], [50, 50, 60, 60]


def kept(
    boxes: list[list[int]], scores: list[float], classes: list[int], threshold: float
) -> list[int]:
    result = shim.batched_nms(
        torch.tensor(boxes).float(), torch.tensor(scores), torch.tensor(classes), threshold
    )
    return list(result.tolist())


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        pytest.param(0.4, [1, 2], id="above the threshold"),
        pytest.param(0.5, [1, 0, 2], id="at the threshold"),
    ],
)
def test_nms_suppresses_only_strictly_above_the_threshold(
    threshold: float, expected: list[int]
) -> None:
    result = kept([HALF_OF_IT, SQUARE, ELSEWHERE], [0.8, 0.9, 0.1], [0, 0, 0], threshold)

    assert result == expected


def test_nms_keeps_the_first_of_equal_scores() -> None:
    result = kept([SQUARE, SQUARE, SQUARE], [0.5, 0.5, 0.5], [0, 0, 0], 0.7)

    assert result == [0]


def test_nms_treats_classes_independently() -> None:
    result = kept([SQUARE, SQUARE], [0.5, 0.6], [0, 1], 0.7)

    assert result == [1, 0]


def test_nms_keeps_empty_boxes() -> None:
    result = kept([[0, 0, 0, 0], [0, 0, 0, 0]], [0.5, 0.6], [0, 0], 0.7)

    assert result == [1, 0]


def test_nms_of_no_boxes_is_empty() -> None:
    result = shim.batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0), 0.7)

    assert result.tolist() == []


def test_resize_has_height_first_and_antialiases() -> None:
    stripes = np.zeros((40, 60, 3), np.uint8)
    stripes[:, ::2] = 200

    resized = np.asarray(shim.resize(shim.to_pil_image(stripes), (20, 6)))

    assert resized.shape == (20, 6, 3)
    assert np.abs(resized[:, 1:-1].astype(int) - 100).max() <= 10


def test_images_become_floats_with_the_channels_first() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    image[1, 2] = [255, 51, 0]

    planes = shim.ToTensor()(image)

    assert planes.dtype == torch.float32
    assert planes.shape == (3, 2, 3)
    assert planes[:, 1, 2].tolist() == pytest.approx([1, 0.2, 0])
    assert planes.sum() == pytest.approx(1.2)


def test_tensors_are_resized_without_rounding_and_antialiased() -> None:
    stripes = torch.zeros(1, 40, 60)
    stripes[:, :, ::2] = 0.8

    resized = shim.Resize((20, 6))(stripes)

    assert resized.shape == (1, 20, 6)
    assert (resized[:, :, 1:-1] - 0.4).abs().max() < 0.05
    assert torch.equal(shim.Resize((40, 60))(stripes), stripes)


def test_normalising_is_per_channel() -> None:
    planes = torch.ones(3, 1, 2)

    normalised = shim.Normalize([0.5, 1, 2], [0.5, 1, 4])(planes)

    assert normalised[:, 0, 1].tolist() == [1, 0, -0.25]


def test_timm_remains_itself_beside_the_encoder_of_mobilesam() -> None:
    edgetam.install()
    before = {name: each for name, each in sys.modules.items() if name.startswith("timm")}

    with mobile.old_timm():
        assert sys.modules["timm"] is not before["timm"]

    assert before["timm"].create_model("repvit_m1", features_only=True) is not None
    assert {name: sys.modules[name] for name in before} == before
