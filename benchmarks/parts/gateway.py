"""CPU time of the gateway for one call, with an engine that computes nothing.

Baselines: a bare gRPC server that answers as many bytes, and the previous version of samserve.
"""

from __future__ import annotations

from benchmarks import gateway_cpu
from benchmarks.gateways import previous
from benchmarks.parts import Plan
from benchmarks.results import Comparison, Cost, Result

BLOCKS, CALLS = 9, 100
BASELINES = {gateway_cpu.ECHO: "bare grpc.aio", gateway_cpu.OTHER: "previous version"}


def run(plan: Plan) -> Result:
    """Convert the series of `benchmarks.gateway_cpu` to comparisons."""
    calls = 8 if plan.toy else CALLS
    tree = None if plan.toy else previous(plan.folder)
    series = gateway_cpu.results(plan.blocks(BLOCKS), calls, tree)
    ours = {each.request: _costs(each) for each in series if each.server == gateway_cpu.GATEWAY}
    return Result(
        "gateway",
        comparisons=[
            Comparison(each.request, BASELINES[each.server], ours[each.request], _costs(each))
            for each in series
            if _shown(each)
        ],
        notes=["CPU time is that of the server alone, with all of its threads."],
    )


def _shown(series: gateway_cpu.Series) -> bool:
    """Return whether a row compares with this series; that with an echo has few sizes."""
    if series.server == gateway_cpu.ECHO:
        return series.request.startswith("ListModels") or "640x480" in series.request
    return series.server == gateway_cpu.OTHER


def _costs(series: gateway_cpu.Series) -> list[Cost]:
    """Return the wall time of a call and its CPU time, in seconds, by block."""
    pairs = zip(series.wall_ms, series.cpu_ms, strict=True)
    return [Cost(wall / 1e3, cpu / 1e3) for wall, cpu in pairs]
