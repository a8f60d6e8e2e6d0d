from __future__ import annotations

import numpy as np
from samserve.engines.fake import MODEL
from samserve.models.families import SAM1
from samserve.segmentation.prompts import PromptGroup, batch_prompts
from samserve.types import Box, Label, LogitsMask, Point, Prompt, Size

TRANSFORM = SAM1.transform(Size(480, 640), MODEL)
BOX = Box(10, 20, 110, 220)
LOGITS = LogitsMask(np.ones((256, 256), dtype=np.float32))


def point_prompts(count: int) -> tuple[Point, ...]:
    return tuple(Point(10.5 * i, 5.25 * i, Label.FOREGROUND) for i in range(count))


def groups(prompts: tuple[Prompt, ...], max_prompts: int = 16) -> list[PromptGroup]:
    return list(batch_prompts(prompts, SAM1, TRANSFORM, max_prompts))


MIXED = (
    Prompt(points=point_prompts(1)),
    Prompt(points=point_prompts(3)),
    Prompt(box=BOX),
    Prompt(points=point_prompts(1), box=BOX),
    Prompt(points=point_prompts(1), mask=LOGITS),
    Prompt(mask=LOGITS),
    Prompt(points=point_prompts(1)),
)


def test_prompts_are_grouped_by_point_count_without_padding() -> None:
    tokens = {group.indices: group.batch.point_labels.shape[1] for group in groups(MIXED)}

    assert tokens == {(0, 2, 6): 2, (1,): 4, (3,): 3, (4,): 2, (5,): 0}


def test_all_prompts_of_a_batch_have_masks_or_none() -> None:
    for group in groups(MIXED):
        count = len(group.batch.mask_input)
        assert count in (0, len(group.indices))
        assert {MIXED[index].mask is not None for index in group.indices} == {count > 0}


def test_group_is_split_into_batches_of_limited_size() -> None:
    prompts = tuple(Prompt(points=point_prompts(1)) for _ in range(10))

    sizes = [len(group.indices) for group in groups(prompts, max_prompts=4)]

    assert sizes == [4, 4, 2]


def test_box_is_two_corners_in_the_model_frame() -> None:
    (group,) = groups((Prompt(box=BOX),))

    assert group.batch.point_labels.tolist() == [[2.0, 3.0]]
    assert np.allclose(group.batch.point_coords[0] * 640 / 1024, [[10, 20], [110, 220]])


def test_fractions_of_pixels_are_preserved() -> None:
    prompt = Prompt(points=(Point(100.75, 50.25, Label.BACKGROUND),))
    (group,) = groups((prompt,))

    assert np.allclose(group.batch.point_coords[0, 0] * 640 / 1024, [100.75, 50.25])
    assert group.batch.point_labels[0].tolist() == [0.0, -1.0]
