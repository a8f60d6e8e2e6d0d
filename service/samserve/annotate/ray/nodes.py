"""Checks before a run that every node can do the work: the same package, source and output."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from samserve import __version__
from samserve.annotate.locations import reason_of
from samserve.annotate.outputs import Output
from samserve.annotate.source import ImageFile, Source
from samserve.errors import InvalidRequest, Misconfigured, SamserveError

_TIMEOUT_S = 120.0
_MAX_LISTED = 5


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster that has the CPUs of a worker."""

    id: str
    name: str
    workers: int
    """How many workers it can have at a time."""


@dataclass(frozen=True, slots=True)
class _Check:
    version: str
    source: Source
    image: ImageFile
    output: Output
    marker: str
    content: bytes


def usable_nodes(cpus: float) -> list[Node]:
    """Return the nodes that can have workers of so many CPUs.

    Raises `samserve.errors.InvalidRequest` if there are none.
    """
    alive = [each for each in ray.nodes() if each["Alive"]]  # type: ignore[no-untyped-call]
    sizes = {each["NodeID"]: float(each["Resources"].get("CPU", 0)) for each in alive}
    nodes = [
        Node(each["NodeID"], _name(each), int(sizes[each["NodeID"]] // cpus))
        for each in alive
        if sizes[each["NodeID"]] >= cpus
    ]
    if not nodes:
        raise InvalidRequest(
            "ray_cpus",
            f"{cpus:g} is more than the {max(sizes.values(), default=0):g} CPUs of the largest "
            "node of the Ray cluster",
        )
    return nodes


def check(nodes: Sequence[Node], source: Source, image: ImageFile, output: Output) -> None:
    """Let every node read *image* and a file of the output.

    Raises `samserve.errors.Misconfigured` with a line for each node that cannot.
    """
    name = f".samserve-{secrets.token_hex(8)}"
    request = _Check(__version__, source, image, output, name, secrets.token_hex(16).encode())
    output.write(name, request.content)
    try:
        answers = [
            _remote.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
            ).remote(request)
            for node in nodes
        ]
        problems = [_answer(answer) for answer in answers]
    finally:
        output.remove(name)
    found = zip(nodes, problems, strict=True)
    lines = [f"node {node.name}: {problem}" for node, problem in found if problem]
    if lines:
        more = len(lines) - _MAX_LISTED
        rest = [f"{more} more nodes"] if more > 0 else []
        raise Misconfigured("; ".join([*lines[:_MAX_LISTED], *rest]))


def _answer(answer: Any) -> str:
    """Return what a node cannot do; empty if it can do the work."""
    try:
        return str(ray.get(answer, timeout=_TIMEOUT_S))
    except ray.exceptions.GetTimeoutError:
        return f"has not responded within {_TIMEOUT_S:g} s"
    except ray.exceptions.RuntimeEnvSetupError as error:
        return f"cannot start workers: {_last_line(error)}"
    except ray.exceptions.RayError as error:
        # Also if the function cannot be imported there.
        return (
            f"cannot run samserve {__version__}: {_last_line(error)}. "
            "It needs the same samserve[ray] as this machine"
        )


@ray.remote(num_cpus=0, max_retries=1)
def _remote(request: _Check) -> str:
    """Return what a node cannot do; empty if it can do the work."""
    if request.version != __version__:
        return f"has samserve {__version__}, this machine has {request.version}"
    try:
        with request.source.open(request.image) as opened:
            opened.read(1)
    except (OSError, SamserveError) as error:
        return f"cannot read {request.image.name} of {request.source}: {_reason(error)}"
    try:
        content = request.output.read(request.marker)
    except (OSError, SamserveError) as error:
        return f"does not see what is written to {request.output}: {_reason(error)}"
    return "" if content == request.content else f"{request.output} is another folder there"


def _reason(error: BaseException) -> str:
    return error.message if isinstance(error, SamserveError) else reason_of(error)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _name(node: dict[str, Any]) -> str:
    host, address = str(node.get("NodeManagerHostname", "")), str(node["NodeManagerAddress"])
    return f"{host} ({address})" if host else address
