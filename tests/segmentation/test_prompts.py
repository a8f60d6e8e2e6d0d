from __future__ import annotations

import numpy as np
from samserve.engines.fake import MODEL
from samserve.models.families import SAM1
from samserve.segmentation.prompts import PromptGroup, group
from samserve.types import Box, Label, LogitsMask, Point, Prompt, Size

TRANSFORM = SAM1.transform(Size(480, 640), MODEL)
BOX = Box(10, 20, 110, 220)
LOGITS = LogitsMask(np.ones((256, 256), dtype=np.float32))


def clicks(count: int) -> tuple[Point, ...]:
    return tuple(Point(10.5 * i, 5.25 * i, Label.FOREGROUND) for i in range(count))


def groups(prompts: tuple[Prompt, ...], most: int = 16) -> list[PromptGroup]:
    return list(group(prompts, SAM1, TRANSFORM, most))


MIXED = (
    Prompt(points=clicks(1)),
    Prompt(points=clicks(3)),
    Prompt(box=BOX),
    Prompt(points=clicks(1), box=BOX),
    Prompt(points=clicks(1), mask=LOGITS),
    Prompt(mask=LOGITS),
    Prompt(points=clicks(1)),
)


def test_prompts_are_grouped_by_point_count_and_never_padded_to_match() -> None:
    tokens = {each.indices: each.batch.point_labels.shape[1] for each in groups(MIXED)}

    assert tokens == {(0, 2, 6): 2, (1,): 4, (3,): 3, (4,): 2, (5,): 0}


def test_masks_are_given_for_all_prompts_of_a_batch_or_for_none() -> None:
    for members in groups(MIXED):
        count = len(members.batch.mask_input)
        assert count in (0, len(members.indices))
        assert {MIXED[index].mask is not None for index in members.indices} == {count > 0}


def test_a_group_is_cut_into_batches_of_bounded_size() -> None:
    prompts = tuple(Prompt(points=clicks(1)) for _ in range(10))

    sizes = [len(members.indices) for members in groups(prompts, most=4)]

    assert sizes == [4, 4, 2]


def test_a_box_is_two_corners_in_the_model_frame() -> None:
    (members,) = groups((Prompt(box=BOX),))

    assert members.batch.point_labels.tolist() == [[2.0, 3.0]]
    assert np.allclose(members.batch.point_coords[0] * 640 / 1024, [[10, 20], [110, 220]])


def test_fractions_of_pixels_are_kept() -> None:
    prompt = Prompt(points=(Point(100.75, 50.25, Label.BACKGROUND),))
    (members,) = groups((prompt,))

    assert np.allclose(members.batch.point_coords[0, 0] * 640 / 1024, [100.75, 50.25])
    assert members.batch.point_labels[0].tolist() == [0.0, -1.0]
