"""Cutting a grid of cells into squares."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Windows:
    """Cutting ``[B,grid,grid,C]`` into ``count * count`` windows per image and back."""

    grid: int
    side: int
    channels: int

    @property
    def count(self) -> int:
        """Windows along one side of the grid; the last ones may stick out."""
        return -(-self.grid // self.side)

    def split(self, cells: Tensor) -> Tensor:
        """Cut into ``[B*count*count,side,side,C]``; zero cells fill what sticks out.

        The filling takes part in attention, as it did in training.
        """
        count, side = self.count, self.side
        missing = count * side - self.grid
        padded = functional.pad(cells, (0, 0, 0, missing, 0, missing))
        blocks = padded.reshape(-1, count, side, count, side, self.channels)
        return blocks.transpose(2, 3).reshape(-1, side, side, self.channels)

    def join(self, windows: Tensor) -> Tensor:
        """Undo :meth:`split`."""
        count, side = self.count, self.side
        blocks = windows.reshape(-1, count, count, side, side, self.channels).transpose(2, 3)
        whole = blocks.reshape(-1, count * side, count * side, self.channels)
        return whole[:, : self.grid, : self.grid]
