"""Partitioning a grid of cells into square windows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Windows:
    """Partitions ``[B,grid,grid,C]`` into ``count * count`` windows per image, and back."""

    grid: int
    side: int
    channels: int

    @property
    def count(self) -> int:
        """Windows per side of the grid; the last ones may extend beyond it."""
        return -(-self.grid // self.side)

    def split(self, cells: Tensor) -> Tensor:
        """Partition into ``[B*count*count,side,side,C]``, padded with zero cells.

        The padding takes part in attention, as in training.
        """
        count, side = self.count, self.side
        missing = count * side - self.grid
        padded = functional.pad(cells, (0, 0, 0, missing, 0, missing))
        blocks = padded.reshape(-1, count, side, count, side, self.channels)
        return blocks.transpose(2, 3).reshape(-1, side, side, self.channels)

    def join(self, windows: Tensor) -> Tensor:
        """Revert :meth:`split`."""
        count, side = self.count, self.side
        blocks = windows.reshape(-1, count, count, side, side, self.channels).transpose(2, 3)
        whole = blocks.reshape(-1, count * side, count * side, self.channels)
        return whole[:, : self.grid, : self.grid]
