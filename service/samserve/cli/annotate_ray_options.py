"""The options of `samserve annotate --ray`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

from samserve.cli.errors import UsageError


@dataclass(frozen=True, slots=True)
class RayOptions:
    """The cluster of a run; without an address, it runs on this machine."""

    help_panel: ClassVar[str] = "Ray cluster"

    address: Annotated[
        str,
        typer.Option(
            "--ray",
            metavar="ADDRESS",
            help="Annotate on the nodes of this Ray cluster: HOST:PORT of its head, or auto on one "
            "of its nodes. They need the same samserve[ray], SOURCE and --out.",
        ),
    ] = ""
    workers: Annotated[
        int | None,
        typer.Option(
            "--ray-workers",
            metavar="N",
            min=1,
            max=10_000,
            help="Processes on the Ray cluster. Default: one for each node.",
        ),
    ] = None
    cpus: Annotated[
        float,
        typer.Option(
            "--ray-cpus",
            metavar="X",
            min=0.01,
            help="CPUs that each process reserves.",
        ),
    ] = 1.0

    def check(self, shard: str) -> None:
        """Raise `UsageError` for options that exclude or require each other."""
        if self.address and shard:
            raise UsageError("--ray and --shard exclude each other: a cluster has its own parts")
        if not self.address and (self.workers is not None or self.cpus != 1.0):
            raise UsageError("--ray-workers and --ray-cpus require --ray")
