"""Where the time of calls goes: by stage, by model, in Triton, on the way and at clients."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.dashboards.spec import ORANGE, RED, Dashboard, Kind, Panel, Query, Row
from monitoring.dashboards.stages import SECONDS, STAGE_COLORS, calls
from monitoring.dashboards.variables import (
    METHOD,
    MODEL,
    OF_CALL,
    OF_MODEL,
    OF_RPC,
    OF_TRITON,
    OURS,
    OWNER,
    POD,
    mean,
    quantile,
    rate,
    ratio,
)
from monitoring.objectives import OBJECTIVES, THRESHOLDS

_OBJECTIVES = ", ".join(f"{each.method} {each.within_s:g} s" for each in OBJECTIVES)


def page() -> Dashboard:
    """Make the page."""
    return Dashboard(
        name="latency",
        title="samserve / Latency",
        description="""Which stage takes the time of calls, for the RPC and the model chosen above.
            Choose one RPC: the stages of several together say little.""",
        variables=(*OWNER, MODEL, METHOD),
        rows=(
            Row("Which stage takes the time?", list(_stages()), width=12, height=10),
            Row("Are all calls slow, or which?", [*_calls(), *_models()]),
            Row("How long does each stage take, where a call comes to it?", list(_quantiles())),
            Row("Queue, engine or transport?", [*_engine(), *_triton()], width=6),
            Row("Client or event loop?", [*_clients(), *_event_loop(), *_size_of_work()], width=6),
        ),
        traces=True,
    )


def _stages() -> Iterator[Panel]:
    spent = rate(f"{SECONDS}_sum", OF_CALL, "stage")
    yield Panel(
        "Which stage takes the time of a call?",
        """Mean seconds of a call on its critical path, by stage; the height is the whole call. The
        colour that grows is the stage to look at. receive and send are the client's; queue and join
        wait for others; encode and decode contain the way to Triton and back. docs/runbook.md,
        "Which stage is slow", goes on from here.""",
        "s",
        Query(f"{spent} / on () group_left () ({calls(OF_CALL)} > 0)", "{{stage}}"),
        Kind.STACK,
        colors=STAGE_COLORS,
    )
    by = "grpc_method, model, stage"
    longest = f"topk(12, {rate(f'{SECONDS}_sum', OF_CALL, by)})".replace(
        "$__rate_interval", "$__range"
    )
    yield Panel(
        "Which stage of which model takes most of all the time?",
        """Seconds of calls a second, over the whole time shown, the twelve largest: 2 means that
        two calls are in that stage at any time. What is worth making faster, or getting more
        of.""",
        "short",
        Query(longest, "{{grpc_method}} {{model}} {{stage}}"),
        Kind.BARS,
    )


def _calls() -> Iterator[Panel]:
    yield Panel(
        "How long do calls take?",
        f"""Calls that ended well, without the time that clients took to send and to receive.
        Objectives: {_OBJECTIVES}. p50 up: all are slower. Only p99 up: some wait; look at queue and
        at the heatmap.""",
        "s",
        [
            Query(
                quantile(part, "samserve_call_seconds", OF_CALL, "grpc_method"),
                f"{{{{grpc_method}}}} p{part * 100:g}",
                exemplars=True,
            )
            for part in (0.5, 0.95, 0.99)
        ],
        traces=True,
    )
    yield Panel(
        "Are all calls slow, or some?",
        """How many calls took how long. Two bands: two kinds of calls, such as found and encoded.
        The dots are calls with a trace; click one to see it.""",
        "s",
        Query(
            f"sum by (le) (increase(samserve_call_seconds_bucket{{{OF_CALL}}}[$__rate_interval]))",
            "{{le}}",
            exemplars=True,
        ),
        Kind.HEATMAP,
        traces=True,
    )


def _models() -> Iterator[Panel]:
    yield Panel(
        "Which model is slow?",
        """99th percentile by model. One only: its network, its instances in Triton, or its
        pictures. All: what they share.""",
        "s",
        quantile(0.99, "samserve_call_seconds", OF_CALL, "grpc_method, model"),
    )


def _quantiles() -> Iterator[Panel]:
    meaning = {
        0.5: "The usual call. A stage that is slow here is slow for everybody.",
        0.95: "One call in twenty takes longer. Beside p99 it tells a trend from bad luck.",
        0.99: "One call in a hundred takes longer. Stages that wait (queue, join) show here first.",
    }
    for part, words in meaning.items():
        yield Panel(
            f"How long does each stage take (p{part * 100:g})?",
            f"""{words} Of the calls that come to a stage: join and encode are few among Predicts,
            whose embedding is mostly there. Stages of p99 do not add up.""",
            "s",
            Query(quantile(part, SECONDS, OF_CALL, "stage"), exemplars=part == 0.99),
            colors=STAGE_COLORS,
        )


def _engine() -> Iterator[Panel]:
    yield Panel(
        "How much work waits in the gateways?",
        """encoder, decoder: more than triton.encoder_in_flight or .decoder_in_flight are asked for
        (without Triton: more than one run). workers: more pictures and masks than threads.""",
        "short",
        f"sum by (queue) (samserve_queue_waiting{{{OURS}}})",
    )
    runs = "samserve_engine_run_seconds"
    yield Panel(
        "How long does a run of a network take?",
        """As the gateway sees it: with Triton, the way there, its queue, the computing, and the way
        back. Compare with the two panels beside.""",
        "s",
        [
            Query(
                quantile(part, runs, OF_MODEL, "network, model"),
                f"{{{{model}}}} {{{{network}}}} p{part * 100:g}",
            )
            for part in (0.5, 0.99)
        ],
    )


def _triton() -> Iterator[Panel]:
    asked = rate("nv_inference_request_success", OF_TRITON, "model")
    yield Panel(
        "Does Triton wait or compute?",
        """Mean seconds of a request inside Triton, by model. Queue grows: more requests than its
        instances serve. Compute grows: larger batches, a busy GPU, or another model version. No
        data: there is no Triton, or it is not scraped.""",
        "s",
        [
            Query(
                f"{ratio(rate(counter, OF_TRITON, 'model'), asked)} / 1e6", f"{{{{model}}}} {name}"
            )
            for counter, name in (
                ("nv_inference_queue_duration_us", "queue"),
                ("nv_inference_compute_infer_duration_us", "compute"),
            )
        ],
    )
    yield Panel(
        "How long are tensors on their way to Triton and back?",
        """Mean run as the gateway sees it, less what Triton says the request took. Milliseconds
        with shared memory; tens of them with messages. If it grows: the page Triton, 'How do
        tensors travel?', then the network and the event loop.""",
        "s",
        Query(_transport(), "{{model}} {{network}}"),
    )


def _transport() -> str:
    """Write the mean run less the mean request, whose model is ours with the network's name."""
    parts = '"model", "(.*)_(encoder|decoder)"'
    inside = ratio(
        rate("nv_inference_request_duration_us", OF_TRITON, "model"),
        rate("nv_inference_request_success", OF_TRITON, "model"),
    )
    named = f'label_replace({inside} / 1e6, "network", "$2", {parts})'
    ours = f'label_replace({named}, "model", "$1", {parts})'
    run = mean("samserve_engine_run_seconds", OF_MODEL, "model, network")
    return f"clamp_min({run} - on (model, network) {ours}, 0)"


def _clients() -> Iterator[Panel]:
    client = f'{OF_CALL},stage=~"receive|send"'
    yield Panel(
        "How long do clients take to send and to receive?",
        """Mean seconds of a call. It counts for no objective: a slow network, a busy client, or
        very large pictures and answers; the panel beside tells the last apart.""",
        "s",
        Query(
            f"{rate(f'{SECONDS}_sum', client, 'grpc_method, stage')} "
            f"/ on (grpc_method) group_left () ({calls(OF_CALL, 'grpc_method')} > 0)",
            "{{grpc_method}} {{stage}}",
        ),
    )
    of_method = ',grpc_method=~"$method"'
    yield Panel(
        "How large are requests and answers?",
        """Mean bytes of a call. Answers grow with bitmaps and logits; run lengths are small.
        Pictures that grow make receive, decode_image and resize slower.""",
        "bytes",
        Query(
            ratio(
                rate(
                    "samserve_message_bytes_total", f"{OURS}{of_method}", "grpc_method, direction"
                ),
                rate("grpc_server_handled_total", f"{OF_RPC}{of_method}", "grpc_method"),
                "grpc_method",
            ),
            "{{grpc_method}} {{direction}}",
        ),
    )


def _event_loop() -> Iterator[Panel]:
    bound = THRESHOLDS.loop_lag_s
    yield Panel(
        "Is the event loop late?",
        """How late the loop comes to what is due; every call of that gateway waits for it. Over 100
        ms the gateway has too little CPU, or something blocks its loop. Shows in all stages,
        'other' first.""",
        "s",
        Query(
            quantile(0.99, "samserve_event_loop_lag_seconds", OURS, "namespace, pod, instance"),
            f"p99 {POD}",
        ),
        steps=[(bound / 2, ORANGE), (bound, RED)],
    )


def _size_of_work() -> Iterator[Panel]:
    of_rpc = f'{OURS},grpc_method=~"$method"'
    yield Panel(
        "How much is asked in one call?",
        """Mean prompts of a call and mean masks of an answer. decode, postprocess and encode_masks
        grow with them: slower may be more work.""",
        "short",
        [
            Query(
                mean("samserve_prompts_per_call", of_rpc, "grpc_method"), "{{grpc_method}} prompts"
            ),
            Query(mean("samserve_masks_per_call", of_rpc, "grpc_method"), "{{grpc_method}} masks"),
        ],
    )
