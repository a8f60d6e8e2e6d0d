"""Work on many bytes is moved from the event loop to a thread."""

from __future__ import annotations

import threading

import pytest
from samserve.scheduling.offload import (
    MAX_COPIED_BYTES,
    MAX_SHORT_MASK_PIXELS,
    Work,
    copying,
    mask_work,
)


async def test_few_bytes_are_copied_on_the_event_loop() -> None:
    here = threading.get_ident()

    assert await copying(MAX_COPIED_BYTES, threading.get_ident) == here
    assert await copying(MAX_COPIED_BYTES + 1, threading.get_ident) != here


@pytest.mark.parametrize("nbytes", [1, MAX_COPIED_BYTES + 1])
async def test_errors_are_raised(nbytes: int) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        await copying(nbytes, int, "x")


@pytest.mark.parametrize(
    ("pixels", "work"),
    [
        (640 * 480, Work.QUICK),
        (640 * 480 + 1, Work.SHORT),
        (MAX_SHORT_MASK_PIXELS, Work.SHORT),
        (MAX_SHORT_MASK_PIXELS + 1, Work.LONG),
    ],
)
def test_where_masks_are_computed_depends_on_their_pixels(pixels: int, work: Work) -> None:
    assert mask_work(pixels) is work
