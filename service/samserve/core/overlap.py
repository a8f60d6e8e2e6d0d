"""Common pixels of one mask with many others, by run lengths alone.

An `IndexedMask` finds how many of its pixels are in the intervals of another mask (see `intervals`)
by binary search: the time depends on the runs of the other mask, hardly on its own, so that masks
of noise cost no more than others.  `pycocotools.mask.iou` has the same results; it parses all
strings each time, walks all runs of both masks, and holds the interpreter's lock meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samserve.core import intervals, run_lengths
from samserve.core.run_lengths import IntArray
from samserve.types import CocoRle

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class IndexedMask:
    """A mask for many comparisons: 8 bytes for each of its intervals.

    ``starts`` int32 ``[m]`` are those of the intervals, ``before`` int32 ``[m + 1]`` the pixels
    before each and in all; ``extent`` is the smallest window with all pixels.
    """

    starts: Int32Array
    before: Int32Array
    extent: intervals.Window

    @classmethod
    def of(cls, rle: CocoRle) -> IndexedMask:
        """Index a mask.  Raises ``ValueError`` as `run_lengths.decode` does."""
        every = run_lengths.intervals(rle)
        before = np.zeros(len(every) + 1, dtype=np.int32)
        np.cumsum(every[:, 1] - every[:, 0], out=before[1:])
        extent = intervals.extent(every, rle.size.height)
        return cls(every[:, 0].astype(np.int32), before, extent)

    @property
    def area(self) -> int:
        """The number of pixels."""
        return int(self.before[-1])

    def common_pixels(self, other: IntArray) -> int:
        """Return how many pixels are in the intervals of a mask of the same size."""
        if not len(self.starts):
            return 0
        inside = self._before(other)
        return int((inside[:, 1] - inside[:, 0]).sum(dtype=np.int64))

    def _before(self, positions: IntArray) -> Int32Array:
        """Return the number of pixels before each position, in the shape of *positions*."""
        # In the type of the starts: another one would copy them for each search.
        sought = positions.astype(np.int32)
        index = np.maximum(np.searchsorted(self.starts, sought, side="right") - 1, 0)
        before = self.before[index] + (sought - self.starts[index])
        return np.clip(before, self.before[index], self.before[index + 1])
