"""Alerts on the model runtime, Triton above all."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.alerts.server import WHERE
from monitoring.objectives import THRESHOLDS
from monitoring.rules import Alert
from monitoring.series import GATEWAY, TRITON_MODELS, by, on

# Only gateways that ask a Triton.
_WITH_TRITON = f'and on (namespace, pod, instance) samserve_build_info{{{GATEWAY},engine="triton"}}'


def alerts() -> Iterator[Alert]:
    """Yield them, the worst first."""
    yield Alert(
        name="SamserveTritonNotReady",
        expr=f"samserve_engine_ready{{{GATEWAY}}} == 0 {_WITH_TRITON}",
        lasting="1m",
        severity="critical",
        summary="A gateway has no Triton",
        description=f"""{WHERE} cannot reach its Triton, or Triton serves no model. It says
            NOT_SERVING, and every call that needs a model ends with UNAVAILABLE,
            ENGINE_UNAVAILABLE.""",
    )
    yield from _failures()
    yield from _failures_of_triton()
    yield from _transport()
    yield _queue()


def _failures() -> Iterator[Alert]:
    by_model = by("network", "model")
    ended = f"sum {by_model} (rate(samserve_engine_runs_total{{{GATEWAY}%s}}[5m]))"
    failed, runs = ended % ',outcome="failed"', ended % ""
    yield Alert(
        name="SamserveEngineRunsFail",
        expr=f"{failed} / ({runs} > 0) > {THRESHOLDS.failed_runs_ratio}",
        summary="Runs of the {{ $labels.network }} of {{ $labels.model }} fail",
        description="""{{ $value | humanizePercentage }} of the runs of the {{ $labels.network }} of
            {{ $labels.model }} fail, as the gateways see it, and the calls with them.""",
    )


def _failures_of_triton() -> Iterator[Alert]:
    counted = f'samserve_triton_errors_total{{{GATEWAY},kind!="queue_timeout"}}'
    errors = f"sum {by('kind')} (rate({counted}[5m]))"
    all_runs = f"sum {by()} (rate(samserve_engine_runs_total{{{GATEWAY}}}[5m]))"
    yield Alert(
        name="SamserveTritonFailures",
        expr=f"""{errors} / {on()} group_left () ({all_runs} > 0)
            > {THRESHOLDS.failed_runs_ratio}""",
        summary="Triton does not answer requests ({{ $labels.kind }})",
        description="""{{ $value | humanizePercentage }} of the requests to Triton end with
            {{ $labels.kind }}. Deadlines that pass in its queue are not counted here.""",
    )
    refused = f"""sum {by("model", "reason")} (rate(nv_inference_request_failure
        {{{TRITON_MODELS},reason!~"CANCELED|REJECTED"}}[5m]))"""
    both = " + ".join(
        f"sum {by('model')} (rate(nv_inference_request_{each}{{{TRITON_MODELS}}}[5m]))"
        for each in ("success", "failure")
    )
    yield Alert(
        name="SamserveTritonModelFails",
        expr=f"""{refused} / {on("model")} group_left () ({both} > 0)
            > {THRESHOLDS.failed_runs_ratio}""",
        summary="Triton fails requests to {{ $labels.model }} ({{ $labels.reason }})",
        description="""{{ $value | humanizePercentage }} of the requests to {{ $labels.model }} fail
            in Triton itself, reason {{ $labels.reason }}; BACKEND is the model.""",
    )


def _transport() -> Iterator[Alert]:
    transport = f'samserve_engine_transport{{{GATEWAY},transport="%s"}}'
    before = f"max_over_time({transport % 'shared_memory'}[3d])"
    yield Alert(
        name="SamserveSharedMemoryLost",
        expr=f"""{transport % "message"} == 1
            and {on()} max {by()} ({before}) == 1""",
        summary="Tensors travel in messages instead of shared memory",
        description=f"""{WHERE} sends tensors to Triton in messages, while in the last three days
            memory was shared. Calls are answered, but each picture costs 5 MiB and each click 3 MiB
            on the wire, and CPU on both sides.""",
    )
    rates = f"sum {by('network')} (rate(%s{{{GATEWAY}}}[10m]))"
    fallbacks = rates % "samserve_triton_message_fallbacks_total"
    runs = rates % "samserve_engine_runs_total"
    yield Alert(
        name="SamserveMessageFallbacks",
        expr=f"{fallbacks} / ({runs} > 0) > {THRESHOLDS.fallbacks_ratio}",
        lasting="10m",
        severity="info",
        summary="Scratch memory for Triton runs out",
        description="""{{ $value | humanizePercentage }} of the {{ $labels.network }} runs send
            their tensors in messages, because all of triton.scratch_bytes is in use or in
            quarantine.""",
    )


def _queue() -> Alert:
    rates = f"sum {by('model')} (rate(%s{{{TRITON_MODELS}}}[5m]))"
    waited = rates % "nv_inference_queue_duration_us"
    return Alert(
        name="SamserveTritonQueueLong",
        expr=f"""{waited} / 1e6 / ({rates % "nv_inference_request_success"} > 0)
            > {THRESHOLDS.triton_queue_s}""",
        lasting="10m",
        summary="Requests to {{ $labels.model }} wait long in Triton",
        description="""A request to {{ $labels.model }} waits {{ $value | humanizeDuration }} in
            Triton's queue on average, before anything is computed: it gets more work than its
            instances do.""",
    )
