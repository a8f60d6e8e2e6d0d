import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samserve.core import tokens
from samserve.types import Label, Multimask

CLICK = np.array([[10.0, 20.0]])
BOX = np.array([1.0, 2.0, 3.0, 4.0])
ious = st.lists(st.floats(-10, 10, width=32), min_size=4, max_size=4)


def test_trap_points_alone_get_exactly_one_pad() -> None:
    points = np.array([[10.0, 20.0], [30.0, 40.0]])

    coords, labels = tokens.sparse_prompt(points, [Label.FOREGROUND, Label.BACKGROUND], None)

    assert coords.tolist() == [[10, 20], [30, 40], [0, 0]]
    assert labels.tolist() == [1, 0, -1]
    assert coords.dtype == labels.dtype == np.float32


def test_trap_box_alone_gets_no_pad() -> None:
    coords, labels = tokens.sparse_prompt(np.empty((0, 2)), [], BOX)

    assert coords.tolist() == [[1, 2], [3, 4]]
    assert labels.tolist() == [2, 3]


def test_trap_box_comes_after_points_and_replaces_the_pad() -> None:
    coords, labels = tokens.sparse_prompt(CLICK, [Label.BACKGROUND], BOX)

    assert coords.tolist() == [[10, 20], [1, 2], [3, 4]]
    assert labels.tolist() == [0, 2, 3]


def test_trap_background_label_is_zero_not_minus_one() -> None:
    _, labels = tokens.sparse_prompt(CLICK, [Label.BACKGROUND], None)

    assert labels[0] == 0


def test_mask_alone_has_no_sparse_tokens() -> None:
    coords, labels = tokens.sparse_prompt(np.empty((0, 2)), [], None)

    assert coords.shape == (0, 2)
    assert labels.shape == (0,)


def test_points_and_labels_must_match() -> None:
    with pytest.raises(ValueError, match="1 points have 2 labels"):
        tokens.sparse_prompt(CLICK, [Label.FOREGROUND] * 2, None)


def test_half_pixel_is_left_to_the_decoder() -> None:
    coords, _ = tokens.sparse_prompt(CLICK, [Label.FOREGROUND], None)

    assert coords[0].tolist() == CLICK[0].tolist()


def test_grid_point_is_one_foreground_click_and_a_pad() -> None:
    coords, labels = tokens.grid_prompts(np.array([[16.0, 48.0], [32.0, 48.0]]))

    assert coords.tolist() == [[[16, 48], [0, 0]], [[32, 48], [0, 0]]]
    assert labels.tolist() == [[1, -1], [1, -1]]


@settings(deadline=None)
@given(st.lists(st.floats(0, 1024), min_size=2, max_size=2))
def test_grid_points_reach_the_encoding_as_if_they_were_float64(point: list[float]) -> None:
    coords, _ = tokens.grid_prompts(np.array([point]))

    in_float64 = (np.array(point) + 0.5).astype(np.float32)
    assert (coords[0, 0] + np.float32(0.5)).tolist() == in_float64.tolist()


@settings(deadline=None)
@given(ious, st.integers(0, 40))
def test_auto_is_the_formula_of_the_onnx_export(iou: list[float], sparse_count: int) -> None:
    predicted = np.array(iou, dtype=np.float32)
    score = predicted + (sparse_count - 2.5) * np.array([1000, 0, 0, 0])

    answered = tokens.answered_tokens(Multimask.AUTO, sparse_count, predicted)

    assert answered == [int(np.argmax(score))]


@pytest.mark.parametrize(
    ("mode", "expected"), [(Multimask.ALL, [1, 2, 3]), (Multimask.SINGLE, [0])]
)
@pytest.mark.parametrize("sparse_count", [0, 2, 3])
def test_all_and_single_do_not_depend_on_the_prompt(
    mode: Multimask, expected: list[int], sparse_count: int
) -> None:
    predicted = np.array([0.9, 0.1, 0.2, 0.3], dtype=np.float32)

    assert tokens.answered_tokens(mode, sparse_count, predicted) == expected


def test_auto_of_a_mask_alone_is_the_best_of_three() -> None:
    predicted = np.array([0.9, 0.1, 0.8, 0.3], dtype=np.float32)

    assert tokens.answered_tokens(Multimask.AUTO, 0, predicted) == [2]
