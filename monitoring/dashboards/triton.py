"""Triton: what it does with each model, and how the gateways see it."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.dashboards.spec import GREEN, RED, Dashboard, Kind, Panel, Query, Row
from monitoring.dashboards.variables import (
    MODEL,
    OF_MODEL,
    OF_TRITON,
    OURS,
    OWNER,
    POD,
    TRITON,
    mean,
    rate,
    ratio,
)
from monitoring.objectives import THRESHOLDS

# Parts of the time of a request inside Triton, as its counters name them.
_INSIDE = {
    "queue": (
        "How long does a request wait in its queue?",
        """Mean seconds. More work than instances serve: more instances, another GPU, or fewer
        requests at once (triton.encoder_in_flight, .decoder_in_flight). AutoMask waits behind
        clicks by design.""",
    ),
    "compute_input": (
        "How long does it take to fetch inputs?",
        """Mean seconds. Copies into the model's memory: grows with messages instead of shared
        memory, and with batches.""",
    ),
    "compute_infer": (
        "How long does a run compute?",
        """Mean seconds of the network itself. It grows with the batch; if it grows at the same
        batch, the GPU or CPU is busy or slow: see the last row.""",
    ),
}


def page() -> Dashboard:
    """Make the page."""
    return Dashboard(
        name="triton",
        title="samserve / Triton",
        description="""The model runtime, as Triton says of itself and as gateways see it. The
            second row and the last ones hold without Triton too: there the models run in the
            gateway.""",
        variables=(*OWNER, MODEL),
        rows=(
            Row("Does it answer?", list(_answers())),
            Row("How do gateways see it?", [*_runs(), *_transport()], width=6),
            Row("Does it wait or compute?", list(_time()), width=6),
            Row("Does it batch, and how much waits?", list(_batches())),
            Row("What do its machine and its GPUs do?", [*_gpus(), *_cpus()], width=6),
        ),
    )


def _answers() -> Iterator[Panel]:
    yield Panel(
        "Is it ready, as each gateway sees it?",
        """Away: the gateway is not ready either, and its calls end with UNAVAILABLE until Triton is
        back; embeddings stay. One gateway only: the network between the two.""",
        "none",
        Query(f"samserve_engine_ready{{{OURS}}}", POD),
        Kind.STATES,
        words={"0": ("away", RED), "1": ("ready", GREEN)},
    )
    yield Panel(
        "How many requests does it answer?",
        """A second, by its model. Decoders follow the clicks, encoders the new pictures.""",
        "reqps",
        rate("nv_inference_request_success", OF_TRITON, "model"),
    )
    yield Panel(
        "Which requests does it fail?",
        """A second, by reason. CANCELED: a caller has left, as it may. REJECTED: its queue is full.
        BACKEND: the model fails; its log says why.""",
        "reqps",
        rate("nv_inference_request_failure", OF_TRITON, "model, reason"),
    )


def _runs() -> Iterator[Panel]:
    yield Panel(
        "How do runs of the networks end?",
        """A second, by outcome. cancelled: the caller has left. failed: the calls failed too; the
        next panel says of what.""",
        "ops",
        Query(
            rate("samserve_engine_runs_total", OF_MODEL, "network, model, outcome"),
            "{{model}} {{network}} {{outcome}}",
        ),
    )
    yield Panel(
        "Why does Triton not answer?",
        """A second. unreachable: it is down, or the network or TLS. not_served: the model is not
        loaded. no_answer: it hangs. queue_full, queue_timeout: too much work. region_unknown: it
        has restarted. other_weights: a model was replaced under its name. refused, failed: see its
        log.""",
        "ops",
        rate("samserve_triton_errors_total", OURS, "kind"),
    )


def _transport() -> Iterator[Panel]:
    yield Panel(
        "How do tensors travel?",
        """By gateway. message where it was shared_memory before: each click costs 3 MiB on the wire
        and CPU on both sides; docs/triton.md, "Shared memory", says what it needs. in_process: no
        Triton.""",
        "none",
        f"max by (transport) (samserve_engine_transport{{{OURS}}})",
        Kind.STATES,
        words={"0": ("no", "#8e8e8e"), "1": ("in force", GREEN)},
    )
    yield Panel(
        "Is there enough scratch memory?",
        """all: shared memory of requests under way, up to triton.scratch_bytes; quarantined: of
        requests that were given up and not ended by Triton. Where it runs out, single requests go
        in messages.""",
        "bytes",
        [
            f"sum by (state) (samserve_triton_scratch_bytes{{{OURS}}})",
            Query(
                rate("samserve_triton_message_fallbacks_total", OURS, "network"),
                "{{network}} in messages, a second",
            ),
        ],
        units={f"{name} in messages, a second": "ops" for name in ("encoder", "decoder")},
    )


def _time() -> Iterator[Panel]:
    asked = rate("nv_inference_request_success", OF_TRITON, "model")
    for part, (title, description) in _INSIDE.items():
        spent = rate(f"nv_inference_{part}_duration_us", OF_TRITON, "model")
        yield Panel(
            title,
            description,
            "s",
            Query(f"{ratio(spent, asked)} / 1e6", "{{model}}"),
            width=6,
            steps=[(THRESHOLDS.triton_queue_s, RED)] if part == "queue" else (),
        )
    yield Panel(
        "How long does a run take as gateways see it?",
        """Mean seconds. What is more than queue and compute beside is the way there and back.""",
        "s",
        mean("samserve_engine_run_seconds", OF_MODEL, "model, network"),
    )


def _batches() -> Iterator[Panel]:
    yield Panel(
        "How many pictures does one run take?",
        """Mean batch. 1 although requests wait: they differ in points or prompts, or the model does
        not batch. The decoder takes 8 at most.""",
        "short",
        Query(
            ratio(
                rate("nv_inference_count", OF_TRITON, "model"),
                rate("nv_inference_exec_count", OF_TRITON, "model"),
            ),
            "{{model}}",
        ),
    )
    yield Panel(
        "How many requests wait in Triton?",
        """Now, by its model. Near 256 the decoder's queue is full and more are refused.""",
        "short",
        f"sum by (model) (nv_inference_pending_request_count{{{OF_TRITON}}})",
    )
    yield Panel(
        "How many runs are under way or wait in gateways?",
        """running near triton.encoder_in_flight or .decoder_in_flight times the gateways, while
        others wait: the gateways hold back what Triton could not do anyway.""",
        "short",
        [
            Query(f"sum by (network) (samserve_engine_running{{{OURS}}})", "{{network}} running"),
            Query(
                f'sum by (queue) (samserve_queue_waiting{{{OURS},queue=~"encoder|decoder"}})',
                "{{queue}} waiting",
            ),
        ],
    )


def _gpus() -> Iterator[Panel]:
    yield Panel(
        "How busy are the GPUs?",
        """Part of the time in which a kernel runs. High with a queue: it is the bound. Low with a
        queue: too few instances, or batches are small. No data: Triton runs on CPUs.""",
        "percentunit",
        Query(f"nv_gpu_utilization{{{TRITON}}}", "{{gpu_uuid}}"),
        most=1,
    )
    yield Panel(
        "Is there GPU memory left?",
        "Part in use. Near 1, loading a model or a large batch fails.",
        "percentunit",
        Query(
            f"nv_gpu_memory_used_bytes{{{TRITON}}} / (nv_gpu_memory_total_bytes{{{TRITON}}} > 0)",
            "{{gpu_uuid}}",
        ),
        steps=[(0.95, RED)],
        most=1,
    )
    yield Panel(
        "What do the GPUs draw?",
        """Watts. Falling while the GPU is as busy as before: it is being slowed down for heat or
        power.""",
        "watt",
        Query(f"nv_gpu_power_usage{{{TRITON}}}", "{{gpu_uuid}}"),
    )


def _cpus() -> Iterator[Panel]:
    yield Panel(
        "How busy is the machine of Triton?",
        """CPU and memory, parts in use. Without a GPU the CPU is what computes; with one, decoding
        stalls when it is full.""",
        "percentunit",
        [
            Query(f"nv_cpu_utilization{{{TRITON}}}", "CPU {{instance}}"),
            Query(
                f"nv_cpu_memory_used_bytes{{{TRITON}}} "
                f"/ (nv_cpu_memory_total_bytes{{{TRITON}}} > 0)",
                "memory {{instance}}",
            ),
        ],
        most=1,
    )
