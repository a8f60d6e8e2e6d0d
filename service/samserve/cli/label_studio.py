"""`samserve label-studio`: predictions for the tasks of a project."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from samserve.cli import terminal
from samserve.cli.automask_options import AutoMaskFlags
from samserve.cli.bridge import bridge_extra
from samserve.cli.command import Commands
from samserve.cli.endpoint import Endpoint
from samserve.cli.errors import CommandError, UsageError
from samserve.cli.options import ModelName, existing_file

if TYPE_CHECKING:
    from samserve.annotate.gateways import Gateways
    from samserve.annotate.pipeline import Outcome, Summary
    from samserve.bridge.tools.label_studio.images import TaskImages
    from samserve.bridge.tools.label_studio.server import LabelStudio

Task: TypeAlias = dict[str, Any]

label_studio = Commands()


@label_studio.callback(invoke_without_command=True)
def show_help(context: typer.Context) -> None:
    """Annotate projects of Label Studio."""
    if context.invoked_subcommand is None:
        terminal.write_line(context.get_help())


@dataclass(frozen=True, slots=True)
class ProjectOptions:
    """The project, and where its predictions belong."""

    url: Annotated[str, typer.Option("--url", metavar="URL", help="URL of Label Studio.")]
    project: Annotated[
        int, typer.Option("--project", metavar="N", min=1, help="Number of the project.")
    ]
    access_token_file: Annotated[
        Path,
        existing_file(
            "File with an access token of Label Studio, personal or legacy.", "--access-token-file"
        ),
    ]
    label: Annotated[
        str,
        typer.Option(
            "--label", help="Label of the regions. Default: the first one of the label config."
        ),
    ] = ""
    max_area: Annotated[
        float,
        typer.Option(
            "--max-area",
            metavar="X",
            min=0,
            max=1,
            help="Leave out masks of more than this part of the image, such as the background.",
        ),
    ] = 1.0
    concurrency: Annotated[
        int, typer.Option("--concurrency", metavar="N", min=1, help="Images under way.")
    ] = 4


@label_studio.command()
def annotate(
    project: ProjectOptions,
    flags: AutoMaskFlags,
    *,
    model: ModelName = "",
    endpoint: Endpoint,
) -> None:
    """Segment everything in the images of a project, as predictions for annotators to correct.

    Tasks that have predictions of the same model are skipped, so an interrupted run continues.
    Images of other servers are fetched within the rules of `samserve bridge`, which
    `SAMSERVE_BRIDGE_FETCH__...` sets. Needs the extra `samserve[bridge]`.
    """
    with bridge_extra():
        from samserve.bridge.fetching import Fetcher
        from samserve.bridge.settings import BridgeSettings
        from samserve.bridge.tools.label_studio.images import TaskImages
        from samserve.bridge.tools.label_studio.server import LabelStudio
        from samserve.bridge.tools.label_studio.settings import is_server_url
    from samserve.cli import session
    from samserve.cli.configuration import load_settings_of

    if not is_server_url(project.url):
        raise UsageError(f"--url {project.url!r} is not a URL such as https://example.com")
    options = flags.to_options()
    fetch = load_settings_of(BridgeSettings, None, None, {}).fetch

    async def work() -> tuple[Summary, int]:
        async with AsyncExitStack() as stack:
            connected = session.connected_to_all([endpoint], model)
            gateways = await stack.enter_async_context(connected)
            fetcher = stack.enter_context(closing(Fetcher(fetch)))
            server = LabelStudio(project.url, project.access_token_file, fetch.ca_file)
            await stack.enter_async_context(server)
            images = TaskImages(fetcher, server)
            run = _Run(gateways, server, images, project)
            return await run({**options, "model": model})

    _report(*session.run(work()))


@dataclass(frozen=True, slots=True)
class _Run:
    """Predictions for the tasks of a project, several under way."""

    gateways: Gateways
    server: LabelStudio
    images: TaskImages
    project: ProjectOptions

    async def __call__(self, options: Mapping[str, Any]) -> tuple[Summary, int]:
        """Return what was done, and the number of tasks that were skipped."""
        from samserve.annotate import pipeline
        from samserve.bridge.tools.label_studio.preannotation import Target
        from samserve.bridge.tools.label_studio.results import model_version
        from samserve.cli.progress import image_progress
        from samserve.datasets.label_studio.label_config import LabelConfig

        found = await self.server.project(self.project.project)
        target = Target.of(LabelConfig.parse(found["label_config"]), self.project.label)
        chosen = options["model"] or target.control.model
        version = model_version(await self.gateways.models(), chosen)
        tasks = [task async for task in self.server.tasks(self.project.project)]
        pending = [task for task in tasks if version not in task["model_versions"]]
        own = {**options, "model": chosen, **target.options()}

        async def process(task: Task) -> Outcome:
            image = await self.images.source(task, target.key).load()
            result = await self.gateways.call(lambda client: client.automask_all(image, **own))
            regions = await asyncio.to_thread(target.regions, result, self.project.max_area)
            await self._deliver(task, regions, version)
            return pipeline.Outcome(_name(task), pipeline.State.ANNOTATED, len(regions))

        job = pipeline.Job(process, _name, self.project.concurrency)
        with image_progress("annotating", len(pending)) as advance:
            summary = await pipeline.run(pending, job, lambda _: advance(True))
        return summary, len(tasks) - len(pending)

    async def _deliver(self, task: Task, regions: list[Task], version: str) -> None:
        from samserve.bridge.tools.label_studio.server import LabelStudioUnavailable
        from samserve.datasets.label_studio.regions import prediction
        from samserve.errors import Misconfigured

        made = {"task": task["id"], **prediction(regions, version)}
        try:
            await self.server.import_predictions(self.project.project, [made])
        except LabelStudioUnavailable as error:
            # The masks of the next tasks could not be delivered either, so none is computed.
            raise Misconfigured(error.message) from error


def _name(task: Task) -> str:
    return f"task {task['id']}"


def _report(summary: Summary, skipped: int) -> None:
    """Print the numbers.  Raises `CommandError` if a task has failed."""
    from samserve.cli import bulk

    counts = {
        "annotated": summary.annotated,
        "regions": summary.masks,
        "skipped": skipped,
        "failed": len(summary.failures),
    }
    terminal.write_line("\n".join(f"{name}: {number}" for name, number in counts.items()))
    failed = [f"{each.name}: {each.reason}" for each in summary.failures]
    failures = [*bulk.truncated(failed, "run again to retry")]
    failures += [summary.aborted] if summary.aborted else []
    if failures:
        raise CommandError(*failures)
