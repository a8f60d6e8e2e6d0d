"""Alerts on gateways: whether they are there, ready, watched and asked."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.objectives import OBJECTIVES, THRESHOLDS
from monitoring.rules import Alert, any_of
from monitoring.series import GATEWAY, JOBS, RPC, TRITON, by, on

WHERE = "{{ or $labels.pod $labels.instance }}"
"""Which gateway, in a text: outside Kubernetes there are no pods."""

_OF_RELEASE = "{{ with $labels.release }} of {{ . }}{{ end }}"
_READY = f"max {by()} (samserve_ready{{{GATEWAY}}})"
_METHODS = f'grpc_method=~"{any_of(each.method for each in OBJECTIVES)}"'


def alerts() -> Iterator[Alert]:
    """Yield them, the worst first."""
    yield from _readiness()
    yield from _targets()
    yield from _calls()
    yield Alert(
        name="SamserveFileNotInOrder",
        expr=f"samserve_file_in_order{{{GATEWAY}}} == 0",
        summary="A file was replaced by one that cannot be used",
        description=f"""{WHERE} goes on with the older content of {{{{ $labels.file }}}}. What was
            meant to change has not: a certificate will expire, a key that was revoked may still be
            taken.""",
    )


def _readiness() -> Iterator[Alert]:
    yield Alert(
        name="SamserveNoGatewayReady",
        expr=f"{_READY} == 0",
        lasting="1m",
        severity="critical",
        summary="No gateway is ready",
        description="""Every gateway says NOT_SERVING, so that balancers send calls to none: nobody
            is answered.""",
    )
    yield Alert(
        name="SamserveGatewayNotReady",
        expr=f"""samserve_ready{{{GATEWAY}}} == 0
            unless on (namespace, pod, instance) samserve_engine_ready{{{GATEWAY}}} == 0""",
        summary="A gateway does not become ready",
        description=f"""{WHERE} runs but has said NOT_SERVING for 5 minutes, and it is not for a
            model server that has gone away: it waits for one to start, is warming up, or hangs.
            The other gateways carry its calls.""",
    )
    yield Alert(
        name="SamserveGatewayRestarts",
        expr=f"""changes(process_start_time_seconds{{{GATEWAY}}}[1h])
            >= {THRESHOLDS.restarts}""",
        lasting="0m",
        summary="A gateway starts again and again",
        description=f"""{WHERE} has started {{{{ $value }}}} times in the last hour. Each end breaks
            its running calls and empties its memory of embeddings.""",
    )


def _targets() -> Iterator[Alert]:
    info = f"samserve_build_info{{{GATEWAY}}}"
    yield Alert(
        name="SamserveMetricsAbsent",
        # `absent` sees nothing of one release among several: it was there an hour ago.
        expr=f"""absent({info}) or (group {by()} (last_over_time({info}[1h]))
            unless {on()} {info} and on () {info})""",
        severity="critical",
        summary=f"There are no metrics of any gateway{_OF_RELEASE}",
        description=f"""Prometheus has had no metrics of any gateway{_OF_RELEASE} for 5 minutes.
            Either none runs, or none can be scraped: then no other alert on them can fire.""",
    )
    yield Alert(
        name="SamserveTargetDown",
        expr=f'up{{job=~"{any_of(JOBS)}"}} == 0',
        summary="A target cannot be scraped",
        description="""{{ $labels.instance }} (job {{ $labels.job }}) has not answered Prometheus
            for 5 minutes: it is down, or its port is not reachable. Panels and alerts on it are
            blind.""",
    )
    yield Alert(
        name="SamserveTritonMetricsAbsent",
        # One without a release serves all, as one outside the chart may.
        expr=f"""count {by()} (samserve_build_info{{{GATEWAY},engine="triton"}})
            unless on (release) nv_inference_request_success{{{TRITON}}}
            unless on () nv_inference_request_success{{{TRITON},release=""}}""",
        lasting="10m",
        severity="info",
        summary="Triton's own metrics are not scraped",
        description="""{{ $value }} gateways ask a Triton whose metrics (port 8002) Prometheus does
            not have. Its queue and its GPU cannot be seen.""",
    )


def _calls() -> Iterator[Alert]:
    rate = f"sum {by()} (rate(grpc_server_started_total{{{RPC},{_METHODS}}}"
    yield Alert(
        name="SamserveNoTraffic",
        expr=f"""{rate}[10m])) == 0
            and {rate}[30m] offset 1h)) > {THRESHOLDS.traffic_before_per_s}
            and {_READY} == 1""",
        lasting="10m",
        summary="Nobody calls any more, although gateways are ready",
        description="""There has been no Embed, Predict or AutoMask for 10 minutes; an hour ago
            there were. Calls that do not arrive fail nowhere here: look at what is between clients
            and gateways.""",
    )
    yield Alert(
        name="SamserveInternalErrors",
        expr=f"""sum {by("grpc_method")}
            (increase(samserve_errors_total{{{GATEWAY},reason="INTERNAL"}}[15m]))
            >= {THRESHOLDS.internal_errors}""",
        lasting="0m",
        summary="{{ $labels.grpc_method }} ends in internal errors",
        description="""About {{ $value | humanize }} {{ $labels.grpc_method }} calls ended with
            INTERNAL in 15 minutes. Each is a defect, or a model that fails on a valid input; the
            log has the cause beside the request id.""",
    )
