"""Which requests are read on the event loop."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from samserve.rpc import requests
from samserve.v1 import samserve_pb2 as pb

from tests import pictures

MASK = pb.Prompt(mask=pb.MaskInput(low_res_logits=bytes(16)))
MANY_POINTS = pb.Prompt(points=[pb.Point(x=1, y=1, label=1)] * 100)


@pytest.mark.parametrize(
    ("prompts", "quick"),
    [
        ([pictures.click()], True),
        ([pictures.click()] * 4, True),
        ([pictures.click()] * 5, False),
        ([MANY_POINTS], False),
        ([pictures.click(), MASK], False),
        ([], True),
    ],
)
def test_only_a_few_small_prompts_are(prompts: list[pb.Prompt], quick: bool) -> None:
    assert requests.prompts_are_quick(pb.PredictRequest(prompts=prompts)) is quick


def test_millions_of_prompts_are_counted_and_not_looked_at() -> None:
    class Millions:
        def __len__(self) -> int:
            return 3_000_000

        def __iter__(self) -> Iterator[pb.Prompt]:
            raise AssertionError("each of them is looked at")

    request = SimpleNamespace(prompts=Millions())

    assert not requests.prompts_are_quick(request)  # type: ignore[arg-type]  # what is used of it
