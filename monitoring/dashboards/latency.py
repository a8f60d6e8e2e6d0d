"""Latency by stage and by model, in Triton, in transport, and at clients."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.dashboards.spec import ORANGE, RED, Dashboard, Kind, Panel, Query, Row
from monitoring.dashboards.stages import SECONDS, STAGE_COLORS, calls
from monitoring.dashboards.variables import (
    GATEWAY,
    GATEWAY_CALL,
    GATEWAY_MODEL,
    METHOD_VARIABLE,
    MODEL_VARIABLE,
    POD,
    RPC,
    SCOPE_VARIABLES,
    TRITON_MODEL,
    mean,
    quantile,
    rate,
    ratio,
)
from monitoring.objectives import OBJECTIVES, THRESHOLDS

_OBJECTIVES = ", ".join(f"{each.method} {each.threshold_s:g} s" for each in OBJECTIVES)


def page() -> Dashboard:
    """Return the dashboard."""
    return Dashboard(
        name="latency",
        title="samserve / Latency",
        description="""Latency of calls by stage, for the RPC and the model chosen above. Choose one
            RPC: stages of several RPCs together are hard to interpret.""",
        variables=(*SCOPE_VARIABLES, MODEL_VARIABLE, METHOD_VARIABLE),
        rows=(
            Row("Latency by stage", list(_stages()), width=12, height=10),
            Row("Call latency", [*_calls(), *_models()]),
            Row("Stage latency percentiles", list(_quantiles())),
            Row("Queue, engine and transport", [*_engine(), *_triton()], width=6),
            Row(
                "Clients, event loop and workload",
                [*_clients(), *_event_loop(), *_workload()],
                width=6,
            ),
        ),
        traces=True,
    )


def _stages() -> Iterator[Panel]:
    spent = rate(f"{SECONDS}_sum", GATEWAY_CALL, "stage")
    yield Panel(
        "Mean latency by stage",
        """Which stage takes the time of a call? Mean seconds on the critical path of a call; the
        height is the whole call. receive and send are the client's; queue and join are waiting
        times; encode and decode include the transport to Triton and back. Next: docs/runbook.md,
        section Slow stages.""",
        "s",
        Query(f"{spent} / on () group_left () ({calls(GATEWAY_CALL)} > 0)", "{{stage}}"),
        Kind.STACK,
        colors=STAGE_COLORS,
    )
    by = "grpc_method, model, stage"
    largest = f"topk(12, {rate(f'{SECONDS}_sum', GATEWAY_CALL, by)})".replace(
        "$__rate_interval", "$__range"
    )
    yield Panel(
        "Total time by method, model and stage",
        """Which stage is worth optimizing or scaling? Seconds of calls per second over the whole
        time range, the twelve largest: 2 means that on average two calls are in this stage.""",
        "short",
        Query(largest, "{{grpc_method}} {{model}} {{stage}}"),
        Kind.BARS,
    )


def _calls() -> Iterator[Panel]:
    yield Panel(
        "Latency percentiles",
        f"""Successful calls, without the time that clients take to send and to receive. Objectives:
        {_OBJECTIVES}. If p50 grows, all calls are slower. If only p99 grows, some calls wait: check
        queue and the latency distribution.""",
        "s",
        [
            Query(
                quantile(q, "samserve_call_seconds", GATEWAY_CALL, "grpc_method"),
                f"{{{{grpc_method}}}} p{q * 100:g}",
                exemplars=True,
            )
            for q in (0.5, 0.95, 0.99)
        ],
        traces=True,
    )
    yield Panel(
        "Latency distribution",
        """Are all calls slow, or only some? Number of calls by latency. Two bands are two kinds of
        calls, for example with a cache hit and with an encode. Dots are calls with a trace; click
        one to open it.""",
        "s",
        Query(
            f"sum by (le) (increase(samserve_call_seconds_bucket{{{GATEWAY_CALL}}}"
            "[$__rate_interval]))",
            "{{le}}",
            exemplars=True,
        ),
        Kind.HEATMAP,
        traces=True,
    )


def _models() -> Iterator[Panel]:
    yield Panel(
        "Latency p99 by model",
        """99th percentile by RPC and model. One model only: its network, its instances in Triton,
        or its images. All models: a shared resource.""",
        "s",
        quantile(0.99, "samserve_call_seconds", GATEWAY_CALL, "grpc_method, model"),
    )


def _quantiles() -> Iterator[Panel]:
    help_texts = {
        0.5: "The typical call. A stage that is slow here is slow for every client.",
        0.95: "One call in twenty takes longer. If it follows p99, the slowdown is no outlier.",
        0.99: "One call in a hundred takes longer. Waiting (queue, join) appears here first.",
    }
    for q, text in help_texts.items():
        yield Panel(
            f"Stage latency p{q * 100:g}",
            f"""{text} Over the calls that enter the stage: few Predict calls enter join and encode,
            because their embedding is usually cached. Percentiles of stages do not add up.""",
            "s",
            Query(quantile(q, SECONDS, GATEWAY_CALL, "stage"), exemplars=q == 0.99),
            colors=STAGE_COLORS,
        )


def _engine() -> Iterator[Panel]:
    yield Panel(
        "Queue depth",
        """Queued work in the gateways. encoder, decoder: more requests than
        triton.max_concurrent_encoder_requests or triton.max_concurrent_decoder_requests (without
        Triton: more than one inference). workers: more images and masks than threads.""",
        "short",
        f"sum by (queue) (samserve_queue_depth{{{GATEWAY}}})",
    )
    runs = "samserve_engine_run_seconds"
    yield Panel(
        "Inference time",
        """Time of one inference as measured by the gateway. With Triton it includes transport,
        Triton's queue and the computation. Compare with the next two panels.""",
        "s",
        [
            Query(
                quantile(q, runs, GATEWAY_MODEL, "network, model"),
                f"{{{{model}}}} {{{{network}}}} p{q * 100:g}",
            )
            for q in (0.5, 0.99)
        ],
    )


def _triton() -> Iterator[Panel]:
    requests = rate("nv_inference_request_success", TRITON_MODEL, "model")
    yield Panel(
        "Triton queue and compute time",
        """Mean seconds of a request inside Triton, by Triton model. Queue grows: more requests than
        its instances can serve. Compute grows: larger batches, a busy GPU, or another model
        version. No data: Triton is not used, or not scraped.""",
        "s",
        [
            Query(
                f"{ratio(rate(counter, TRITON_MODEL, 'model'), requests)} / 1e6",
                f"{{{{model}}}} {name}",
            )
            for counter, name in (
                ("nv_inference_queue_duration_us", "queue"),
                ("nv_inference_compute_infer_duration_us", "compute"),
            )
        ],
    )
    yield Panel(
        "Transport overhead",
        """Mean inference time as measured by the gateway, minus the mean request time as measured
        by Triton. Milliseconds with shared memory, tens of milliseconds with messages. If it grows,
        check "Tensor transport" on the dashboard Triton, then the network and the event loop.""",
        "s",
        Query(_overhead(), "{{model}} {{network}}"),
    )


def _overhead() -> str:
    """Return the mean inference time minus Triton's mean request time, by model and network."""
    parts = '"model", "(.*)_(encoder|decoder)"'
    inside = ratio(
        rate("nv_inference_request_duration_us", TRITON_MODEL, "model"),
        rate("nv_inference_request_success", TRITON_MODEL, "model"),
    )
    with_network = f'label_replace({inside} / 1e6, "network", "$2", {parts})'
    by_network = f'label_replace({with_network}, "model", "$1", {parts})'
    run = mean("samserve_engine_run_seconds", GATEWAY_MODEL, "model, network")
    return f"clamp_min({run} - on (model, network) {by_network}, 0)"


def _clients() -> Iterator[Panel]:
    client = f'{GATEWAY_CALL},stage=~"receive|send"'
    yield Panel(
        "Client send and receive time",
        """Mean seconds of a call in which the client sends its request or receives its response. It
        does not count for objectives. Causes: a slow network, a busy client, or very large images
        and responses; see "Message size".""",
        "s",
        Query(
            f"{rate(f'{SECONDS}_sum', client, 'grpc_method, stage')} "
            f"/ on (grpc_method) group_left () ({calls(GATEWAY_CALL, 'grpc_method')} > 0)",
            "{{grpc_method}} {{stage}}",
        ),
    )
    of_method = ',grpc_method=~"$method"'
    yield Panel(
        "Message size",
        """Mean bytes of a call, requests received and responses sent. Responses grow with bitmaps
        and logits; run-length encoding is small. Larger images make receive, decode_image and
        resize slower.""",
        "bytes",
        Query(
            ratio(
                rate(
                    "samserve_message_bytes_total",
                    f"{GATEWAY}{of_method}",
                    "grpc_method, direction",
                ),
                rate("grpc_server_handled_total", f"{RPC}{of_method}", "grpc_method"),
                "grpc_method",
            ),
            "{{grpc_method}} {{direction}}",
        ),
    )


def _event_loop() -> Iterator[Panel]:
    threshold = THRESHOLDS.loop_lag_s
    yield Panel(
        "Event loop lag",
        """Delay of scheduled work on the event loop, which delays every call of this gateway. Over
        100 ms the gateway has too little CPU, or something blocks its loop. It affects all stages,
        'other' first.""",
        "s",
        Query(
            quantile(0.99, "samserve_event_loop_lag_seconds", GATEWAY, "namespace, pod, instance"),
            f"p99 {POD}",
        ),
        thresholds=[(threshold / 2, ORANGE), (threshold, RED)],
    )


def _workload() -> Iterator[Panel]:
    of_method = f'{GATEWAY},grpc_method=~"$method"'
    yield Panel(
        "Prompts and masks per call",
        """Mean prompts of a request and mean masks of a response. decode, postprocess and
        encode_masks grow with them: higher latency may be caused by more work per call.""",
        "short",
        [
            Query(
                mean("samserve_prompts_per_call", of_method, "grpc_method"),
                "{{grpc_method}} prompts",
            ),
            Query(
                mean("samserve_masks_per_call", of_method, "grpc_method"), "{{grpc_method}} masks"
            ),
        ],
    )
