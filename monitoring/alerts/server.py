"""Alerts on gateways: readiness, scraping, traffic, errors, configuration."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.objectives import OBJECTIVES, THRESHOLDS
from monitoring.rules import Alert, any_of
from monitoring.series import GATEWAY, JOBS, RPC, TRITON, by, on

WHERE = "{{ or $labels.pod $labels.instance }}"
"""The gateway, in an annotation: outside Kubernetes there are no pods."""

_OF_RELEASE = "{{ with $labels.release }} of {{ . }}{{ end }}"
_READY = f"max {by()} (samserve_ready{{{GATEWAY}}})"
_METHODS = f'grpc_method=~"{any_of(each.method for each in OBJECTIVES)}"'


def alerts() -> Iterator[Alert]:
    """Yield them, the most severe first."""
    yield from _readiness()
    yield from _targets()
    yield from _calls()
    yield Alert(
        name="SamserveConfigReloadFailed",
        expr=f"samserve_config_last_reload_successful{{{GATEWAY}}} == 0",
        summary="A changed file is invalid and was not loaded",
        description=f"""The reload of {{{{ $labels.file }}}} on {WHERE} failed; the previous content
            stays in use. The change is not in effect: a certificate may expire, a revoked key may
            still be accepted.""",
    )


def _readiness() -> Iterator[Alert]:
    yield Alert(
        name="SamserveNoGatewayReady",
        expr=f"{_READY} == 0",
        for_="1m",
        severity="critical",
        summary="No gateway is ready",
        description="""Every gateway reports NOT_SERVING, so load balancers have no backend: no call
            succeeds.""",
    )
    yield Alert(
        name="SamserveGatewayNotReady",
        expr=f"""samserve_ready{{{GATEWAY}}} == 0
            unless on (namespace, pod, instance) samserve_engine_ready{{{GATEWAY}}} == 0""",
        summary="A gateway does not become ready",
        description=f"""{WHERE} is running but has reported NOT_SERVING for 5 minutes, and the cause
            is not that Triton became unavailable: it waits for Triton at startup, is warming up, or
            hangs. The other gateways serve its calls.""",
    )
    yield Alert(
        name="SamserveGatewayRestarts",
        expr=f"""changes(process_start_time_seconds{{{GATEWAY}}}[1h])
            >= {THRESHOLDS.restarts}""",
        for_="0m",
        summary="A gateway restarts repeatedly",
        description=f"""{WHERE} has started {{{{ $value }}}} times in the last hour. Each restart
            aborts the calls in flight and empties the local cache.""",
    )


def _targets() -> Iterator[Alert]:
    info = f"samserve_build_info{{{GATEWAY}}}"
    yield Alert(
        name="SamserveMetricsAbsent",
        # `absent` does not detect that one of several releases is missing; a comparison with the
        # last hour does.
        expr=f"""absent({info}) or (group {by()} (last_over_time({info}[1h]))
            unless {on()} {info} and on () {info})""",
        severity="critical",
        summary=f"There are no metrics of any gateway{_OF_RELEASE}",
        description=f"""Prometheus has had no metrics of any gateway{_OF_RELEASE} for 5 minutes.
            Either no gateway is running, or none can be scraped: then no other alert on gateways
            can fire.""",
    )
    yield Alert(
        name="SamserveTargetDown",
        expr=f'up{{job=~"{any_of(JOBS)}"}} == 0',
        summary="A target cannot be scraped",
        description="""{{ $labels.instance }} (job {{ $labels.job }}) has not responded to
            Prometheus for 5 minutes: it is down, or its port is unreachable. Panels and alerts that
            need its metrics do not work.""",
    )
    yield Alert(
        name="SamserveTritonMetricsAbsent",
        # A Triton without a release serves all of them, such as one outside the chart.
        expr=f"""count {by()} (samserve_build_info{{{GATEWAY},engine="triton"}})
            unless on (release) nv_inference_request_success{{{TRITON}}}
            unless on () nv_inference_request_success{{{TRITON},release=""}}""",
        for_="10m",
        severity="info",
        summary="Triton's own metrics are not scraped",
        description="""{{ $value }} gateways use a Triton whose metrics (port 8002) Prometheus does
            not scrape. Its queue and its GPU are not monitored.""",
    )


def _calls() -> Iterator[Alert]:
    rate = f"sum {by()} (rate(grpc_server_started_total{{{RPC},{_METHODS}}}"
    yield Alert(
        name="SamserveNoTraffic",
        expr=f"""{rate}[10m])) == 0
            and {rate}[30m] offset 1h)) > {THRESHOLDS.min_traffic_per_s}
            and {_READY} == 1""",
        for_="10m",
        summary="There is no traffic, although gateways are ready",
        description="""There has been no Embed, Predict or AutoMask call for 10 minutes; an hour ago
            there were calls. Calls that do not reach a gateway appear in no metric: check the
            network, proxies and load balancers between clients and gateways.""",
    )
    yield Alert(
        name="SamserveInternalErrors",
        expr=f"""sum {by("grpc_method")}
            (increase(samserve_errors_total{{{GATEWAY},reason="INTERNAL"}}[15m]))
            >= {THRESHOLDS.internal_errors}""",
        for_="0m",
        summary="{{ $labels.grpc_method }} calls end with internal errors",
        description="""About {{ $value | humanize }} {{ $labels.grpc_method }} calls ended with
            INTERNAL in 15 minutes. Each is a defect, or a model that fails on valid input; the log
            has the cause with the request id.""",
    )
