import numpy as np
from samserve.core import nms


def test_overlap_at_the_threshold_is_kept() -> None:
    boxes = np.array([[0, 0, 2, 1], [0, 0, 1, 1]])  # IoU exactly one half

    assert nms.nms(boxes, np.array([1, 0]), 0.5).tolist() == [0, 1]
    assert nms.nms(boxes, np.array([1, 0]), 0.49).tolist() == [0]


def test_float32_overlap_is_compared_in_double() -> None:
    boxes = np.array([[0, 0, 10, 1], [0, 0, 7, 1]])  # float32(0.7) is below 0.7, not equal to it
    beyond = np.array([[0, 0, 10, 1], [0, 0, 6, 1]])  # float32(0.6) is above 0.6

    assert nms.nms(boxes, np.array([1, 0]), 0.7).tolist() == [0, 1]
    assert nms.nms(beyond, np.array([1, 0]), 0.6).tolist() == [0]


def test_boxes_without_area_suppress_nothing() -> None:
    boxes = np.array([[5, 5, 5, 5], [5, 5, 5, 5], [5, 5, 5, 9]])

    assert nms.nms(boxes, np.array([1, 2, 3]), 0.5).tolist() == [2, 1, 0]


def test_no_boxes_return_no_indices() -> None:
    assert nms.nms(np.empty((0, 4)), np.empty(0), 0.5).shape == (0,)
