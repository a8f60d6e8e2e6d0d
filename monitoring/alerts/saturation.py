"""Alerts on what runs out: places, turns, memory, files."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.alerts.server import WHERE
from monitoring.objectives import THRESHOLDS
from monitoring.rules import Alert, bound
from monitoring.series import GATEWAY, RPC, by

_BY = by("grpc_method")
_CLICKS = 'grpc_method=~"Embed|Predict"'


def alerts() -> Iterator[Alert]:
    """Yield them."""
    yield from _places()
    yield from _turns()
    yield from _memory()
    yield Alert(
        name="SamserveOpenFilesNearLimit",
        expr=f"""process_open_fds{{{GATEWAY}}} / process_max_fds{{{GATEWAY}}}
            > {THRESHOLDS.open_files_ratio}""",
        lasting="10m",
        summary="A gateway is running out of file descriptors",
        description=f"""{WHERE} has {{{{ $value | humanizePercentage }}}} of the files open that the
            system lets it open. Each connection is one: soon new clients, or the connections to
            Triton and the cache, are refused.""",
    )


def _places() -> Iterator[Alert]:
    yield Alert(
        name="SamserveInFlightNearLimit",
        expr=f"""samserve_inflight_requests{{{GATEWAY}}} / samserve_inflight_limit{{{GATEWAY}}}
            > {THRESHOLDS.in_flight_ratio}""",
        summary="{{ $labels.grpc_method }} is about to be refused",
        description=f"""{WHERE} has {{{{ $value | humanizePercentage }}}} of the
            {{{{ $labels.grpc_method }}}} calls in flight that it lets in at once. One more than all
            of them is refused with OVERLOADED.""",
    )
    refused = f'sum {_BY} (rate(samserve_errors_total{{{GATEWAY},reason="OVERLOADED"}}[5m]))'
    started = f"sum {_BY} (rate(grpc_server_started_total{{{RPC}}}[5m]))"
    yield Alert(
        name="SamserveOverloaded",
        expr=f"{refused} / ({started} > 0) > {THRESHOLDS.refused_ratio}",
        summary="{{ $labels.grpc_method }} calls are refused for overload",
        description="""{{ $value | humanizePercentage }} of the {{ $labels.grpc_method }} calls are
            refused with OVERLOADED. Clients try again after RetryInfo, and wait that much
            longer.""",
    )


def _turns() -> Iterator[Alert]:
    stage = f'{GATEWAY},{_CLICKS},stage="queue"'
    waited = f"sum {_BY} (rate(samserve_stage_seconds_count{{{stage}}}[10m]))"
    within = f"{stage},{bound(THRESHOLDS.queue_s)}"
    short = f"sum {_BY} (rate(samserve_stage_seconds_bucket{{{within}}}[10m]))"
    handled = f"sum {_BY} (rate(grpc_server_handled_total{{{RPC},{_CLICKS}}}[10m]))"
    yield Alert(
        name="SamserveQueueLong",
        expr=f"({waited} - {short}) / ({handled} > 0) > {THRESHOLDS.queued_ratio}",
        lasting="10m",
        summary="{{ $labels.grpc_method }} calls wait long for their turn",
        description=f"""{{{{ $value | humanizePercentage }}}} of the {{{{ $labels.grpc_method }}}}
            calls wait longer than {{{{ {THRESHOLDS.queue_s:g} | humanizeDuration }}}} in the
            gateway for a thread or for the model runtime.""",
    )
    due = f"{GATEWAY},{bound(THRESHOLDS.loop_lag_s)}"
    late = f"rate(samserve_event_loop_lag_seconds_bucket{{{due}}}[5m])"
    turns = f"rate(samserve_event_loop_lag_seconds_count{{{GATEWAY}}}[5m])"
    yield Alert(
        name="SamserveEventLoopLag",
        expr=f"""({turns} - ignoring (le) {late}) / ({turns} > 0)
            > {THRESHOLDS.late_turns_ratio}""",
        lasting="10m",
        summary="The event loop of a gateway is late",
        description=f"""{{{{ $value | humanizePercentage }}}} of the turns of the event loop of
            {WHERE} come more than {{{{ {THRESHOLDS.loop_lag_s:g} | humanizeDuration }}}} late.
            Every call on that gateway waits for it, whatever its stage; it wants more CPU, or
            something blocks it.""",
    )


def _memory() -> Iterator[Alert]:
    yield Alert(
        name="SamserveNoRoom",
        expr=f"""sum {_BY}
            (increase(samserve_refusals_total{{{GATEWAY},kind="memory"}}[10m])) > 0""",
        summary="Calls are refused because there is no memory for their embeddings",
        description="""About {{ $value | humanize }} {{ $labels.grpc_method }} calls in 10 minutes
            found no room: all embeddings in memory are in use or in quarantine, or the system has
            no more shared memory.""",
    )
    yield Alert(
        name="SamserveMemoryQuarantined",
        expr=f"""samserve_store_quarantined_bytes{{{GATEWAY}}}
            / (samserve_store_capacity_bytes{{{GATEWAY}}} > 0)
            > {THRESHOLDS.quarantined_ratio}""",
        lasting="10m",
        summary="Memory for embeddings waits for runs that Triton does not end",
        description=f"""{{{{ $value | humanizePercentage }}}} of the memory for embeddings of
            {WHERE} may still be written into by requests that were given up. It comes back when
            Triton has ended them; a Triton that hangs never does.""",
    )
