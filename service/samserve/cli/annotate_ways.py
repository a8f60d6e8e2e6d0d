"""How the images of `samserve annotate` get their masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from samserve.cli.automask_options import AutoMaskFlags
from samserve.cli.errors import UsageError
from samserve.cli.exclude_options import ExcludeFlags
from samserve.cli.given_prompts_options import GivenPromptsFlags
from samserve.cli.tile_options import GeoJsonFlags, TileFlags
from samserve.cli.tile_options import segmenter as tile_segmenter

if TYPE_CHECKING:
    from samserve.annotate.exclusions import Exclusions
    from samserve.annotate.tiles.plan import Tiling
    from samserve.annotate.types import Segmenter
    from samserve.client import AutoMaskOptions, Model
    from samserve.datasets.types import Category


@dataclass(frozen=True, slots=True)
class Way:
    """A segmenter for the model and the limits that are served; categories of its annotations.

    ``thresholds`` is whether thresholds of AutoMask decide what is found.
    """

    segmenter: Callable[[Model, Mapping[str, int]], Segmenter]
    categories: Sequence[Category] = ()
    thresholds: bool = True


@dataclass(frozen=True, slots=True)
class Ways:
    """The options that choose the way, which have been checked."""

    automask: AutoMaskOptions
    tiling: Tiling | None
    geojson: GeoJsonFlags
    exclude: ExcludeFlags
    prompts: GivenPromptsFlags
    out: str

    @classmethod
    def of(
        cls,
        flags: AutoMaskFlags,
        tiles: TileFlags,
        geojson: GeoJsonFlags,
        exclude: ExcludeFlags,
        prompts: GivenPromptsFlags,
        out: str,
    ) -> Ways:
        """Check the options.  Raises `UsageError` for those that exclude each other."""
        automask, tiling = flags.to_options(), tiles.tiling()
        compared = exclude.to_options()
        if tiling is None and geojson.geojson is not None:
            raise UsageError("--geojson and --no-geojson require --tile")
        if tiling is not None and exclude.exclude is not None:
            raise UsageError("--exclude is not available with --tile")
        if exclude.exclude is not None and exclude.exclude.resolve().is_relative_to(
            Path(out).resolve()
        ):
            # Its records would be replaced by those of the new masks.
            raise UsageError("--exclude is the output of this run: name another folder with --out")
        if prompts.check():
            name = "--boxes" if prompts.boxes else "--points"
            if tiling is not None or exclude.exclude is not None:
                other = "--exclude" if tiling is None else "--tile"
                raise UsageError(f"{other} is not available with {name}")
            unset = {"hq_mode": None, **AutoMaskFlags().to_options()}
            others = [key for key, value in automask.items() if value is not False]
            others = [key for key in others if key not in unset or unset[key] is False]
            if others:
                option = others[0].replace("_", "-")
                raise UsageError(f"--{option} is an option of AutoMask, which {name} replaces")
        return cls({**automask, **compared}, tiling, geojson, exclude, prompts, out)

    def read(self, names: Iterable[str]) -> Way:
        """Read what the way needs of the images *names*.  Blocks.  Raises `CommandError`."""
        from samserve.annotate.prompts import PromptSegmenter

        given = self.prompts.read(names)
        if given is None:
            known = self.exclude.of_images(names)
            return Way(lambda model, limits: self._everything(model, limits, known))

        def segmenter(model: Model, limits: Mapping[str, int]) -> Segmenter:
            most = (limits["max_prompts"], limits["max_points"])
            return PromptSegmenter(model.name, given, *most, self.automask.get("hq_mode"))

        return Way(segmenter, given.categories, thresholds=False)

    def _everything(
        self, model: Model, limits: Mapping[str, int], known: Exclusions | None
    ) -> Segmenter:
        from samserve.annotate.automask import AutoMaskSegmenter
        from samserve.annotate.exclusions import MissingSegmenter

        if self.tiling is not None:
            return tile_segmenter(model, limits, self.automask, self.tiling, self.out, self.geojson)
        automask = AutoMaskSegmenter.of(model, self.automask)
        if known is None:
            return automask
        return MissingSegmenter(automask, known, limits["max_exclude_masks"])
