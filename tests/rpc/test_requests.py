"""Small requests are read on the event loop, others in a thread."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from samserve.rpc import requests
from samserve.v1 import samserve_pb2 as pb

from tests import sample_images

MASK = pb.Prompt(mask=pb.MaskInput(low_res_logits=bytes(16)))
MANY_POINTS = pb.Prompt(points=[pb.Point(x=1, y=1, label=1)] * 100)


@pytest.mark.parametrize(
    ("prompts", "quick"),
    [
        ([sample_images.point_prompt()], True),
        ([sample_images.point_prompt()] * 4, True),
        ([sample_images.point_prompt()] * 5, False),
        ([MANY_POINTS], False),
        ([sample_images.point_prompt(), MASK], False),
        ([], True),
    ],
)
def test_only_a_few_small_prompts_are_read_on_the_event_loop(
    prompts: list[pb.Prompt], quick: bool
) -> None:
    assert requests.prompts_are_quick(pb.PredictRequest(prompts=prompts)) is quick


def test_millions_of_prompts_are_counted_without_iteration() -> None:
    class Millions:
        def __len__(self) -> int:
            return 3_000_000

        def __iter__(self) -> Iterator[pb.Prompt]:
            raise AssertionError("the prompts are iterated")

    request = SimpleNamespace(prompts=Millions())

    assert not requests.prompts_are_quick(request)  # type: ignore[arg-type]  # has the fields that are used
