"""`samserve label-studio`: predictions for the tasks of a project."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samserve.cli import terminal
from samserve.cli.automask_options import AutoMaskFlags
from samserve.cli.bridge import bridge_extra
from samserve.cli.command import Commands
from samserve.cli.endpoint import Endpoint
from samserve.cli.errors import CommandError, UsageError
from samserve.cli.options import ModelName, existing_file

if TYPE_CHECKING:
    from samserve.bridge.tools.label_studio.images import TaskImages
    from samserve.bridge.tools.label_studio.preannotation import Target
    from samserve.bridge.tools.label_studio.server import LabelStudio
    from samserve.cli.annotating import Annotation, Outcome
    from samserve.client import AutoMaskResult, Client

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

    async def work() -> tuple[Outcome, int]:
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(session.connected(endpoint, model))
            fetcher = stack.enter_context(closing(Fetcher(fetch)))
            server = LabelStudio(project.url, project.access_token_file, fetch.ca_file)
            await stack.enter_async_context(server)
            images = TaskImages(fetcher, server)
            return await _annotate(client, server, images, project, {**options, "model": model})

    _report(*session.run(work()))


async def _annotate(
    client: Client,
    server: LabelStudio,
    images: TaskImages,
    project: ProjectOptions,
    options: Mapping[str, Any],
) -> tuple[Outcome, int]:
    """Return what was done, and the number of tasks that were skipped."""
    from samserve.bridge.tools.label_studio.label_config import LabelConfig
    from samserve.bridge.tools.label_studio.preannotation import Target
    from samserve.bridge.tools.label_studio.results import model_version
    from samserve.cli import annotating

    found = await server.project(project.project)
    target = Target.of(LabelConfig.parse(found["label_config"]), project.label)
    chosen = options["model"] or target.control.model
    version = model_version(await client.models(), chosen)
    tasks = [task async for task in server.tasks(project.project)]
    pending = [task for task in tasks if version not in task["model_versions"]]
    job = _job(server, images, project, target, version, {**options, "model": chosen})
    outcome = await annotating.annotate(client, pending, job)
    return outcome, len(tasks) - len(pending)


def _job(
    server: LabelStudio,
    images: TaskImages,
    project: ProjectOptions,
    target: Target,
    version: str,
    options: Mapping[str, Any],
) -> Annotation[dict[str, Any]]:
    import asyncio

    from samserve.bridge.tools.label_studio.results import prediction
    from samserve.cli import annotating

    async def deliver(task: dict[str, Any], result: AutoMaskResult) -> int:
        regions = await asyncio.to_thread(target.regions, result, project.max_area)
        made = {"task": task["id"], **prediction(regions, version)}
        await server.import_predictions(project.project, [made])
        return len(regions)

    return annotating.Annotation(
        name=lambda task: f"task {task['id']}",
        load=lambda task: images.source(task, target.key).load(),
        deliver=deliver,
        options={**options, **target.options()},
        concurrency=project.concurrency,
    )


def _report(outcome: Outcome, skipped: int) -> None:
    """Print the numbers.  Raises `CommandError` if a task has failed."""
    from samserve.cli import bulk

    counts = {
        "annotated": outcome.annotated,
        "regions": outcome.regions,
        "skipped": skipped,
        "failed": len(outcome.failures),
    }
    terminal.write_line("\n".join(f"{name}: {number}" for name, number in counts.items()))
    failures = [*bulk.truncated(outcome.failures, "run again to retry"), *outcome.aborted]
    if failures:
        raise CommandError(*failures)
