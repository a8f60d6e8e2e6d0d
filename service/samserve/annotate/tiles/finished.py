"""The finished tiles of an image, kept beside its record until that is written.

So a run that is killed within a large image continues there.  Below the output:
``tiles/<key>/<row>-<column>.json``, where the key is that of the record.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from samserve.annotate.locations import locate, reason_of
from samserve.annotate.outputs import Output
from samserve.annotate.tiles import masks
from samserve.annotate.tiles.masks import TileMask
from samserve.annotate.tiles.plan import Grid, Tile
from samserve.errors import Misconfigured

FOLDER = "tiles"


@dataclass(frozen=True, slots=True)
class FinishedTiles:
    """The finished tiles of the record with a key.  Its methods block.

    They raise `samserve.errors.Misconfigured` for an output that cannot be used.
    """

    output: Output
    key: str
    grid: Grid

    def read(self, tile: Tile) -> list[TileMask] | None:
        """Return the masks of a tile; None if it is not finished."""
        try:
            values = json.loads(self.output.read(self._path(tile)))
            return masks.from_json(self.grid, tile, values)
        except (ValueError, LookupError, TypeError):
            # Cut off when a machine lost power.
            return None
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _misconfigured(self.output, error) from error

    def write(self, tile: Tile, found: Sequence[TileMask]) -> None:
        """Keep the masks of a tile."""
        data = json.dumps(masks.to_json(found), separators=(",", ":")).encode()
        try:
            self.output.write(self._path(tile), data)
        except OSError as error:
            raise _misconfigured(self.output, error) from error

    def remove(self) -> None:
        """Remove all tiles of the image."""
        file_system, root = locate(self.output.url, "out")
        try:
            with suppress(FileNotFoundError):
                file_system.rm(f"{root}/{FOLDER}/{self.key}", recursive=True)
        except OSError as error:
            raise _misconfigured(self.output, error) from error

    def _path(self, tile: Tile) -> str:
        return f"{FOLDER}/{self.key}/{tile.row}-{tile.column}.json"


def _misconfigured(output: Output, error: OSError) -> Misconfigured:
    return Misconfigured(f"{output}: the tiles of an image cannot be kept: {reason_of(error)}")
