import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from samserve.core import geometry
from samserve.types import Size


def test_resized_size_is_computed_in_float64() -> None:
    scale = np.float32(1024) / np.float32(7163)
    in_float32 = int(np.floor(scale * np.float32(6446) + np.float32(0.5)))

    resized = geometry.resize_longest_side(Size(6446, 7163), 1024)  # 921.49993

    assert resized == Size(921, 1024)
    assert in_float32 == 922


@settings(deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 3), st.floats(0, 0.9))
def test_crops_of_every_layer_cover_the_image(
    height: int, width: int, n_layers: int, overlap: float
) -> None:
    boxes = geometry.crop_boxes(Size(height, width), n_layers, overlap)

    for layer in range(n_layers + 1):
        covered = np.zeros((height, width), dtype=bool)
        for x0, y0, x1, y1 in (box for box_layer, box in boxes if box_layer == layer):
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
            covered[y0:y1, x0:x1] = True
        assert covered.all()


def test_crops_without_a_pixel_are_omitted() -> None:
    boxes = geometry.crop_boxes(Size(1, 1), 1, 0.3)

    assert boxes == [(0, (0, 0, 1, 1)), (1, (0, 0, 1, 1))]


def test_box_at_an_image_edge_is_not_near_a_crop_edge() -> None:
    crop = (0, 100, 300, 400)
    boxes = np.array(
        [[0, 50, 50, 150], [0, 19, 50, 150], [0, 20, 50, 150], [0, 21, 50, 150], [9, 50, 280, 99]]
    )

    near = geometry.near_crop_edge(boxes, crop, Size(400, 900))

    assert near.tolist() == [False, True, True, False, True]
