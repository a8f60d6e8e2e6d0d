"""`samserve annotate`: a data set from a folder of images."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from samserve.cli.annotate_options import Endpoints, RunOptions, SourceArgument
from samserve.cli.annotate_ray_options import RayOptions
from samserve.cli.annotate_ways import Way, Ways
from samserve.cli.automask_options import AutoMaskFlags
from samserve.cli.errors import UsageError
from samserve.cli.exclude_options import ExcludeFlags
from samserve.cli.given_prompts_options import GivenPromptsFlags
from samserve.cli.options import ModelName
from samserve.cli.terminal import write_note
from samserve.cli.tile_options import GeoJsonFlags, TileFlags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from samserve.annotate.gateways import Gateways
    from samserve.annotate.pipeline import ImageJob, Summary
    from samserve.annotate.run import Plan
    from samserve.cli.endpoint import Endpoint
    from samserve.client import Catalog, Model

CONCURRENCY = 4
"""Images under way for each server."""
_MAX_THREADS = 64
LARGE_IMAGES = 2
"""Images under way that are read in tiles, of which each image has several under way."""


def annotate(  # noqa: PLR0913 - each is an option of the command line, or a group of them
    source: SourceArgument,
    *,
    options: RunOptions,
    flags: AutoMaskFlags,
    model: ModelName = "",
    endpoints: Endpoints,
    ray: RayOptions,
    tiles: TileFlags,
    geojson: GeoJsonFlags,
    exclude: ExcludeFlags,
    prompts: GivenPromptsFlags,
) -> None:
    """Make a data set of a folder of images: AutoMask for each, as SA-1B records and a COCO file.

    --exclude proposes what is missing in a data set, --boxes and --points take the prompts of a
    detector.

    Images that have a record of the same file, model and options are left out, so the same command
    continues an interrupted run. Exit code 0: all images are annotated, 1: the run ended early,
    2: usage, 3: some images have failed, 130: interrupted.
    """
    ways = Ways.of(flags, tiles, geojson, exclude, prompts, options.out)
    servers = endpoints.each()
    ray.check(options.shard)
    chosen = _plan(source, options)
    way = ways.read([image.name for image in chosen.images])
    concurrency = LARGE_IMAGES if ways.tiling else CONCURRENCY * len(servers)
    run = _Run(chosen, servers, model, way, concurrency)
    run(options, ray)


def _plan(source: str, options: RunOptions) -> Plan:
    """Find the images.  Raises `UsageError`."""
    from samserve.annotate import run
    from samserve.annotate.shards import Shard
    from samserve.errors import InvalidRequest

    try:
        shard = Shard.parse(options.shard) if options.shard else None
        return run.plan(source, options.out, shard)
    except InvalidRequest as error:
        field, text = error.violations[0]
        names = {"source": "SOURCE", "out": "--out", "shard": "--shard"}
        raise UsageError(f"{names.get(field, field)} {text}") from error


class _Run:
    """A run on this machine."""

    def __init__(
        self,
        chosen: Plan,
        servers: Sequence[Endpoint],
        model: str,
        way: Way,
        concurrency: int,
    ) -> None:
        self._plan = chosen
        self._servers = servers
        self._model = model
        self._way = way
        self._concurrency = concurrency

    def __call__(self, options: RunOptions, ray: RayOptions) -> None:
        """Annotate the images and report.  Raises `CommandError`."""
        from samserve.annotate import run
        from samserve.cli import annotate_report, session

        concurrency = options.concurrency or self._concurrency
        annotate_report.write_found(self._plan)
        try:
            if ray.address:
                summary = self._annotate_on_cluster(ray, options.concurrency)
            else:
                summary = session.run(self._annotate(concurrency))
            files = run.finish(
                self._plan,
                summary,
                coco=not options.no_coco,
                categories=self._way.categories,
            )
        except KeyboardInterrupt:
            write_note("the images that are done are kept: the same command continues")
            raise
        annotate_report.write(self._plan, summary, files, thresholds=self._way.thresholds)

    async def _annotate(self, concurrency: int) -> Summary:
        from samserve.annotate import pipeline
        from samserve.annotate.source import ImageFile
        from samserve.cli import session
        from samserve.cli.progress import image_progress

        # Each image is read, and its record written, in a thread.
        threads = ThreadPoolExecutor(min(concurrency, _MAX_THREADS) + 4)
        asyncio.get_running_loop().set_default_executor(threads)
        async with session.connected_to_all(self._servers, self._model) as gateways:
            images = await self._job(gateways)

            async def process(image: ImageFile) -> pipeline.Outcome:
                return await images.process(gateways, image)

            job = pipeline.Job(process, lambda image: image.name, concurrency)
            with image_progress("annotating", len(self._plan.images)) as advance:
                return await pipeline.run(
                    self._plan.images,
                    job,
                    lambda outcome: advance(outcome.state is not pipeline.State.UNCHANGED),
                )

    async def _job(self, gateways: Gateways) -> ImageJob:
        """Choose the model, and describe the run in the output."""
        from samserve.annotate import pipeline, run
        from samserve.cli import annotate_report

        catalog = await gateways.models()
        model = chosen_model(catalog, self._model)
        segmenter = self._way.segmenter(model, catalog.limits)
        changed = await asyncio.to_thread(
            run.describe, self._plan, model, segmenter, self._way.categories
        )
        annotate_report.write_changes(self._plan, changed)
        return pipeline.ImageJob(
            self._plan.source, self._plan.records, segmenter, model.name, model.digest
        )

    def _annotate_on_cluster(self, ray: RayOptions, concurrency: int | None) -> Summary:
        from samserve.annotate.pipeline import State
        from samserve.cli import session
        from samserve.cli.annotate_ray import RayRun
        from samserve.cli.progress import image_progress

        async def prepare() -> ImageJob:
            async with session.connected_to_all(self._servers, self._model) as gateways:
                return await self._job(gateways)

        on_cluster = RayRun(
            ray, self._plan, self._servers, self._model, lambda: session.run(prepare())
        )
        with image_progress("annotating", len(self._plan.images)) as advance:
            return on_cluster(
                concurrency, lambda outcome: advance(outcome.state is not State.UNCHANGED)
            )


def chosen_model(catalog: Catalog, name: str) -> Model:
    """Return the served model of that name, the default one without.  Raises `UsageError`."""
    for model in catalog.models:
        if model.name == name or (not name and model.default):
            return model
    names = ", ".join(model.name for model in catalog.models)
    raise UsageError(f"--model {name!r} is not served; there are: {names}")
