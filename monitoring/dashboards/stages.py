"""The stages of a call, and what each is an answer to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from monitoring.dashboards.spec import GREY, Query
from monitoring.dashboards.variables import OF_MODEL, rate, ratio


@dataclass(frozen=True, slots=True)
class Cause:
    """Stages that have one reason to be slow."""

    name: str
    color: str
    stages: tuple[str, ...]


CAUSES = (
    Cause("client", "#b877d9", ("receive", "send")),
    Cause("queue", "#e02f44", ("admit", "join", "queue")),
    Cause(
        "cache",
        "#5794f2",
        ("cache_get_memory", "cache_get_shared", "cache_get_miss", "cache_put", "cache_delete"),
    ),
    Cause("picture", "#fade2a", ("hash", "decode_image", "resize")),
    Cause("encode", "#ff9830", ("encode",)),
    Cause("decode", "#73bf69", ("decode",)),
    Cause("masks", "#8ab8ff", ("prepare", "postprocess", "filter", "encode_masks", "serialize")),
    Cause("event loop", GREY, ("other",)),
)
"""All stages, once; in the order in which a call comes to them."""

COLORS = {cause.name: cause.color for cause in CAUSES}
STAGE_COLORS = {stage: cause.color for cause in CAUSES for stage in cause.stages}

SECONDS = "samserve_stage_seconds"
READING = """client: it sends or takes slowly. queue: waits for a turn, or for another call with the
    same picture. cache: either tier. picture: reading and resizing it. encode and decode: the two
    networks, with the way to Triton and back. masks: CPU work on prompts and masks. event loop:
    what has no name; grows when the gateway has too little CPU."""
"""How to read a panel by cause."""


def calls(labels: str, by: str = "") -> str:
    """Write the rate of calls, by the labels of their stages: every call has to be let in."""
    return rate(f"{SECONDS}_count", f'{labels},stage="admit"', by)


def by_cause(method: str) -> Iterator[Query]:
    """Yield the seconds that calls of *method* spend on each cause, on average."""
    labels = f'{OF_MODEL},grpc_method="{method}"'
    for cause in CAUSES:
        of_cause = f'{labels},stage=~"{"|".join(cause.stages)}"'
        yield Query(ratio(rate(f"{SECONDS}_sum", of_cause), calls(labels)), cause.name)
