"""The stages of a call, grouped by the cause of their latency."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from monitoring.dashboards.spec import GREY, Query
from monitoring.dashboards.variables import GATEWAY_MODEL, rate, ratio


@dataclass(frozen=True, slots=True)
class Cause:
    """Stages that are slow for the same reason."""

    name: str
    color: str
    stages: tuple[str, ...]


CAUSES = (
    Cause("client", "#b877d9", ("receive", "send")),
    Cause("queue", "#e02f44", ("admit", "join", "queue")),
    Cause(
        "cache",
        "#5794f2",
        ("cache_get_local", "cache_get_shared", "cache_get_miss", "cache_put", "cache_delete"),
    ),
    Cause("image", "#fade2a", ("hash", "decode_image", "resize")),
    Cause("encode", "#ff9830", ("encode",)),
    Cause("decode", "#73bf69", ("decode",)),
    Cause("masks", "#8ab8ff", ("prepare", "postprocess", "filter", "encode_masks", "serialize")),
    Cause("event loop", GREY, ("other",)),
)
"""All stages, each once, in the order in which a call enters them."""

CAUSE_COLORS = {cause.name: cause.color for cause in CAUSES}
STAGE_COLORS = {stage: cause.color for cause in CAUSES for stage in cause.stages}

SECONDS = "samserve_stage_seconds"
CAUSES_HELP = """client: slow to send or to receive. queue: waiting for a slot, or for another call
    that encodes the same image. cache: either tier. image: decoding and resizing. encode and
    decode: the two networks, including the transport to Triton and back. masks: CPU work on prompts
    and masks. event loop: unattributed time; it grows when the gateway has too little CPU."""
"""How to read a panel by cause."""


def calls(labels: str, by: str = "") -> str:
    """Return the rate of calls by the labels of their stages: every call passes admission."""
    return rate(f"{SECONDS}_count", f'{labels},stage="admit"', by)


def by_cause(method: str) -> Iterator[Query]:
    """Yield the mean seconds that a call of *method* spends on each cause."""
    labels = f'{GATEWAY_MODEL},grpc_method="{method}"'
    for cause in CAUSES:
        of_cause = f'{labels},stage=~"{"|".join(cause.stages)}"'
        yield Query(ratio(rate(f"{SECONDS}_sum", of_cause), calls(labels)), cause.name)
