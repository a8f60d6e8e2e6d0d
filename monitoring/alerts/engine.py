"""Alerts on the engine, mainly on Triton."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.alerts.server import WHERE
from monitoring.objectives import THRESHOLDS
from monitoring.rules import Alert
from monitoring.series import GATEWAY, TRITON_MODELS, by, on

# Only gateways that use Triton.
_WITH_TRITON = f'and on (namespace, pod, instance) samserve_build_info{{{GATEWAY},engine="triton"}}'


def alerts() -> Iterator[Alert]:
    """Yield them, the most severe first."""
    yield Alert(
        name="SamserveTritonNotReady",
        expr=f"samserve_engine_ready{{{GATEWAY}}} == 0 {_WITH_TRITON}",
        for_="1m",
        severity="critical",
        summary="Triton is unavailable to a gateway",
        description=f"""{WHERE} cannot reach its Triton, or Triton serves no model. The gateway
            reports NOT_SERVING, and every call that needs a model ends with UNAVAILABLE,
            ENGINE_UNAVAILABLE.""",
    )
    yield from _inferences()
    yield from _triton_requests()
    yield from _transport()
    yield _queue()


def _inferences() -> Iterator[Alert]:
    by_model = by("network", "model")
    ended = f"sum {by_model} (rate(samserve_engine_runs_total{{{GATEWAY}%s}}[5m]))"
    failed, runs = ended % ',outcome="failed"', ended % ""
    yield Alert(
        name="SamserveEngineErrors",
        expr=f"{failed} / ({runs} > 0) > {THRESHOLDS.failed_runs_ratio}",
        summary="Inferences of the {{ $labels.network }} of {{ $labels.model }} fail",
        description="""{{ $value | humanizePercentage }} of the inferences of the
            {{ $labels.network }} of {{ $labels.model }} fail, as measured by the gateways. The
            calls that need them fail as well.""",
    )


def _triton_requests() -> Iterator[Alert]:
    counted = f'samserve_triton_errors_total{{{GATEWAY},kind!="queue_timeout"}}'
    errors = f"sum {by('kind')} (rate({counted}[5m]))"
    all_runs = f"sum {by()} (rate(samserve_engine_runs_total{{{GATEWAY}}}[5m]))"
    yield Alert(
        name="SamserveTritonErrors",
        expr=f"""{errors} / {on()} group_left () ({all_runs} > 0)
            > {THRESHOLDS.failed_runs_ratio}""",
        summary="Requests to Triton fail ({{ $labels.kind }})",
        description="""{{ $value | humanizePercentage }} of the requests to Triton fail with
            {{ $labels.kind }}. Deadlines exceeded in Triton's queue are not counted here.""",
    )
    failed = f"""sum {by("model", "reason")} (rate(nv_inference_request_failure
        {{{TRITON_MODELS},reason!~"CANCELED|REJECTED"}}[5m]))"""
    total = " + ".join(
        f"sum {by('model')} (rate(nv_inference_request_{each}{{{TRITON_MODELS}}}[5m]))"
        for each in ("success", "failure")
    )
    yield Alert(
        name="SamserveTritonModelErrors",
        expr=f"""{failed} / {on("model")} group_left () ({total} > 0)
            > {THRESHOLDS.failed_runs_ratio}""",
        summary="Triton reports errors of {{ $labels.model }} ({{ $labels.reason }})",
        description="""{{ $value | humanizePercentage }} of the requests to {{ $labels.model }} fail
            in Triton itself with reason {{ $labels.reason }}; BACKEND means that the model
            failed.""",
    )


def _transport() -> Iterator[Alert]:
    transport = f'samserve_engine_transport{{{GATEWAY},transport="%s"}}'
    before = f"max_over_time({transport % 'shared_memory'}[3d])"
    yield Alert(
        name="SamserveSharedMemoryUnavailable",
        expr=f"""{transport % "message"} == 1
            and {on()} max {by()} ({before}) == 1""",
        summary="Tensors are sent in messages instead of shared memory",
        description=f"""{WHERE} sends tensors to Triton in messages, although shared memory was used
            in the last three days. Calls succeed, but each image costs 5 MiB and each prompt 3 MiB
            of network traffic, and CPU time on both sides.""",
    )
    rates = f"sum {by('network')} (rate(%s{{{GATEWAY}}}[10m]))"
    fallbacks = rates % "samserve_triton_shared_memory_fallbacks_total"
    runs = rates % "samserve_engine_runs_total"
    yield Alert(
        name="SamserveSharedMemoryPoolExhausted",
        expr=f"{fallbacks} / ({runs} > 0) > {THRESHOLDS.fallbacks_ratio}",
        for_="10m",
        severity="info",
        summary="The shared memory pool for Triton requests is exhausted",
        description="""{{ $value | humanizePercentage }} of the {{ $labels.network }} inferences
            send their tensors in messages, because all of triton.shared_memory_pool_bytes is in use
            or in quarantine.""",
    )


def _queue() -> Alert:
    rates = f"sum {by('model')} (rate(%s{{{TRITON_MODELS}}}[5m]))"
    waited = rates % "nv_inference_queue_duration_us"
    return Alert(
        name="SamserveTritonQueueTimeHigh",
        expr=f"""{waited} / 1e6 / ({rates % "nv_inference_request_success"} > 0)
            > {THRESHOLDS.triton_queue_s}""",
        for_="10m",
        summary="The queue time of {{ $labels.model }} in Triton is high",
        description="""Requests to {{ $labels.model }} spend {{ $value | humanizeDuration }} in
            Triton's queue on average before they are executed: the load exceeds the capacity of
            its instances.""",
    )
