"""Alerts on saturation: call limits, queues, memory, file descriptors."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.alerts.server import WHERE
from monitoring.objectives import THRESHOLDS
from monitoring.rules import Alert, bucket
from monitoring.series import GATEWAY, RPC, by

_BY = by("grpc_method")
_INTERACTIVE = 'grpc_method=~"Embed|Predict"'


def alerts() -> Iterator[Alert]:
    """Yield them."""
    yield from _admission()
    yield from _queues()
    yield from _memory()
    yield Alert(
        name="SamserveOpenFilesNearLimit",
        expr=f"""process_open_fds{{{GATEWAY}}} / process_max_fds{{{GATEWAY}}}
            > {THRESHOLDS.open_files_ratio}""",
        for_="10m",
        summary="A gateway is running out of file descriptors",
        description=f"""{WHERE} has {{{{ $value | humanizePercentage }}}} of its file descriptors
            open. Each connection needs one: soon connections of new clients, or those to Triton and
            the cache, will fail.""",
    )


def _admission() -> Iterator[Alert]:
    yield Alert(
        name="SamserveInFlightNearLimit",
        expr=f"""samserve_inflight_requests{{{GATEWAY}}} / samserve_inflight_limit{{{GATEWAY}}}
            > {THRESHOLDS.in_flight_ratio}""",
        summary="{{ $labels.grpc_method }} is close to its concurrency limit",
        description=f"""{WHERE} has {{{{ $value | humanizePercentage }}}} of the permitted
            concurrent {{{{ $labels.grpc_method }}}} calls in flight. At 100% further calls are
            rejected with OVERLOADED.""",
    )
    rejected = f'sum {_BY} (rate(samserve_errors_total{{{GATEWAY},reason="OVERLOADED"}}[5m]))'
    started = f"sum {_BY} (rate(grpc_server_started_total{{{RPC}}}[5m]))"
    yield Alert(
        name="SamserveOverloaded",
        expr=f"{rejected} / ({started} > 0) > {THRESHOLDS.rejected_ratio}",
        summary="{{ $labels.grpc_method }} calls are rejected for overload",
        description="""{{ $value | humanizePercentage }} of the {{ $labels.grpc_method }} calls are
            rejected with OVERLOADED. Clients retry after the delay in RetryInfo, which adds to
            their latency.""",
    )


def _queues() -> Iterator[Alert]:
    stage = f'{GATEWAY},{_INTERACTIVE},stage="queue"'
    waited = f"sum {_BY} (rate(samserve_stage_seconds_count{{{stage}}}[10m]))"
    within = f"{stage},{bucket(THRESHOLDS.queue_s)}"
    short = f"sum {_BY} (rate(samserve_stage_seconds_bucket{{{within}}}[10m]))"
    handled = f"sum {_BY} (rate(grpc_server_handled_total{{{RPC},{_INTERACTIVE}}}[10m]))"
    yield Alert(
        name="SamserveQueueTimeHigh",
        expr=f"({waited} - {short}) / ({handled} > 0) > {THRESHOLDS.queued_ratio}",
        for_="10m",
        summary="The queue time of {{ $labels.grpc_method }} calls is high",
        description=f"""{{{{ $value | humanizePercentage }}}} of the {{{{ $labels.grpc_method }}}}
            calls wait longer than {{{{ {THRESHOLDS.queue_s:g} | humanizeDuration }}}} in the
            gateway's queues for a thread or for the engine.""",
    )
    in_time = f"{GATEWAY},{bucket(THRESHOLDS.loop_lag_s)}"
    small = f"rate(samserve_event_loop_lag_seconds_bucket{{{in_time}}}[5m])"
    total = f"rate(samserve_event_loop_lag_seconds_count{{{GATEWAY}}}[5m])"
    yield Alert(
        name="SamserveEventLoopLag",
        expr=f"""({total} - ignoring (le) {small}) / ({total} > 0)
            > {THRESHOLDS.loop_lag_ratio}""",
        for_="10m",
        summary="The event loop lag of a gateway is high",
        description=f"""The event loop lag of {WHERE} exceeds {{{{ {THRESHOLDS.loop_lag_s:g} |
            humanizeDuration }}}} in {{{{ $value | humanizePercentage }}}} of the measurements. It
            delays every call of this gateway in all stages; the gateway needs more CPU, or
            something blocks the loop.""",
    )


def _memory() -> Iterator[Alert]:
    yield Alert(
        name="SamserveLocalCacheFull",
        expr=f"""sum {_BY}
            (increase(samserve_rejected_total{{{GATEWAY},kind="memory"}}[10m])) > 0""",
        summary="Calls are rejected because the local cache has no free memory",
        description="""About {{ $value | humanize }} {{ $labels.grpc_method }} calls in 10 minutes
            got no memory for an embedding: all embeddings in the local cache are in use or in
            quarantine, or the system has no shared memory left.""",
    )
    yield Alert(
        name="SamserveMemoryQuarantined",
        expr=f"""samserve_cache_local_quarantined_bytes{{{GATEWAY}}}
            / (samserve_cache_local_capacity_bytes{{{GATEWAY}}} > 0)
            > {THRESHOLDS.quarantined_ratio}""",
        for_="10m",
        summary="Much of the local cache is in quarantine",
        description=f"""{{{{ $value | humanizePercentage }}}} of the local cache of {WHERE} is in
            quarantine: abandoned requests may still write to this memory. It is released when
            Triton has ended them; a Triton that hangs never does.""",
    )
