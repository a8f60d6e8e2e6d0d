import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samserve.core import geometry
from samserve.types import Size

sides = st.integers(1, 20000)


@settings(deadline=None)
@given(sides, sides)
def test_longest_side_fills_the_model_frame(height: int, width: int) -> None:
    resized = geometry.resize_longest_side(Size(height, width), 1024)

    assert max(resized.height, resized.width) == 1024
    assert min(resized.height, resized.width) >= 1


def test_trap_resized_size_is_computed_in_float64() -> None:
    scale = np.float32(1024) / np.float32(7163)
    in_float32 = int(np.floor(scale * np.float32(6446) + np.float32(0.5)))

    resized = geometry.resize_longest_side(Size(6446, 7163), 1024)  # 921.49993

    assert resized == Size(921, 1024)
    assert in_float32 == 922


def test_trap_x_and_y_are_scaled_separately() -> None:
    image, resized = Size(2031, 2048), Size(1016, 1024)

    moved = geometry.points_to_model_frame(np.array([2000.0, 2000.0]), image, resized)

    assert moved.tolist() == [2000 * (1024 / 2048), 2000 * (1016 / 2031)]
    assert moved[1] - 2000 * (1024 / 2048) == pytest.approx(0.49, abs=0.01)


def test_trap_clicks_keep_their_fraction() -> None:
    moved = geometry.points_to_model_frame(
        np.array([[10.25, 20.75]]), Size(512, 512), Size(1024, 1024)
    )

    assert moved.tolist() == [[20.5, 41.5]]


def test_box_corners_move_like_points() -> None:
    image, resized = Size(300, 451), Size(681, 1024)
    boxes = np.array([[1.5, 2.5, 400.25, 299.0], [0, 0, 451, 300]])

    moved = geometry.boxes_to_model_frame(boxes, image, resized)

    corners = geometry.points_to_model_frame(boxes.reshape(2, 2, 2), image, resized)
    assert moved.tolist() == corners.reshape(2, 4).tolist()
    assert moved[1].tolist() == [0, 0, 1024, 681]


def test_one_box_without_batch_axis_keeps_its_shape() -> None:
    moved = geometry.boxes_to_model_frame(np.array([0, 0, 2, 4]), Size(8, 8), Size(16, 16))

    assert moved.tolist() == [0, 0, 4, 8]


def test_picture_lies_top_left_on_zeros() -> None:
    rgb = np.full((2, 3, 3), 9, dtype=np.uint8)

    placed = geometry.place_top_left(rgb, 4)

    assert placed.shape == (4, 4, 3)
    assert placed[:2, :3].min() == 9
    assert placed.sum() == 9 * 18


@settings(deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 3), st.floats(0, 0.9))
def test_crops_of_every_layer_cover_the_image(
    height: int, width: int, n_layers: int, overlap: float
) -> None:
    boxes = geometry.crop_boxes(Size(height, width), n_layers, overlap)

    for layer in range(n_layers + 1):
        covered = np.zeros((height, width), dtype=bool)
        for x0, y0, x1, y1 in (box for of_layer, box in boxes if of_layer == layer):
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
            covered[y0:y1, x0:x1] = True
        assert covered.all()


def test_crops_without_a_pixel_are_left_out() -> None:
    boxes = geometry.crop_boxes(Size(1, 1), 1, 0.3)

    assert boxes == [(0, (0, 0, 1, 1)), (1, (0, 0, 1, 1))]


def test_box_at_an_image_edge_is_not_cut_by_the_crop() -> None:
    crop = (0, 100, 300, 400)
    boxes = np.array(
        [[0, 50, 50, 150], [0, 19, 50, 150], [0, 20, 50, 150], [0, 21, 50, 150], [9, 50, 280, 99]]
    )

    near = geometry.near_crop_edge(boxes, crop, Size(400, 900))

    assert near.tolist() == [False, True, True, False, True]


def test_uncrop_adds_the_crop_origin() -> None:
    crop = (7, 9, 100, 100)

    boxes = geometry.uncrop_boxes_xyxy(np.array([[1.0, 2.0, 3.0, 4.0]]), crop)
    points = geometry.uncrop_points(np.array([[0.5, 0.5]]), crop)

    assert boxes.tolist() == [[8, 11, 10, 13]]
    assert points.tolist() == [[7.5, 9.5]]
