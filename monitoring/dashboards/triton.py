"""Triton: its own metrics by model, and inferences as measured by the gateways."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.dashboards.spec import GREEN, GREY, RED, Dashboard, Kind, Panel, Query, Row
from monitoring.dashboards.variables import (
    GATEWAY,
    GATEWAY_MODEL,
    MODEL_VARIABLE,
    POD,
    SCOPE_VARIABLES,
    TRITON,
    TRITON_MODEL,
    mean,
    rate,
    ratio,
)
from monitoring.objectives import THRESHOLDS

# Parts of the time of a request inside Triton, by the name in its counters.
_REQUEST_PARTS = {
    "queue": (
        "Queue time",
        """Mean seconds in Triton's queue. The load exceeds the capacity of the instances: add
        instances or a GPU, or lower the concurrency (triton.max_concurrent_encoder_requests,
        triton.max_concurrent_decoder_requests). AutoMask has a lower priority than Predict by
        design.""",
    ),
    "compute_input": (
        "Input copy time",
        """Mean seconds to copy inputs into the model's memory. It grows with messages instead of
        shared memory, and with the batch size.""",
    ),
    "compute_infer": (
        "Compute time",
        """Mean seconds of the network itself. It grows with the batch size; if it grows at the same
        batch size, the GPU or CPU is busy or slow: see the row Hardware.""",
    ),
}


def page() -> Dashboard:
    """Return the dashboard."""
    return Dashboard(
        name="triton",
        title="samserve / Triton",
        description="""Inference, as measured by Triton and by the gateways. The second row and
            parts of the batching row also work without Triton, where models run in the gateway.""",
        variables=(*SCOPE_VARIABLES, MODEL_VARIABLE),
        rows=(
            Row("Availability and throughput", list(_availability())),
            Row("Inferences as measured by gateways", [*_inferences(), *_transport()], width=6),
            Row("Request time in Triton", list(_request_time()), width=6),
            Row("Batching and concurrency", list(_batching())),
            Row("Hardware", [*_gpus(), *_cpus()], width=6),
        ),
    )


def _availability() -> Iterator[Panel]:
    yield Panel(
        "Triton readiness by gateway",
        """unavailable: the gateway is not ready either, and its calls end with UNAVAILABLE until
        Triton is back; cached embeddings stay valid. One gateway only: the network between the
        two.""",
        "none",
        Query(f"samserve_engine_ready{{{GATEWAY}}}", POD),
        Kind.STATES,
        mappings={"0": ("unavailable", RED), "1": ("ready", GREEN)},
    )
    yield Panel(
        "Request rate by model",
        """Successful requests per second, by Triton model. Decoders follow the prompts, encoders
        the new images.""",
        "reqps",
        rate("nv_inference_request_success", TRITON_MODEL, "model"),
    )
    yield Panel(
        "Failed requests by reason",
        """Failed requests per second. CANCELED: the client cancelled its call, which is normal.
        REJECTED: the queue is full. BACKEND: the model failed; Triton's log has the cause.""",
        "reqps",
        rate("nv_inference_request_failure", TRITON_MODEL, "model, reason"),
    )


def _inferences() -> Iterator[Panel]:
    yield Panel(
        "Inferences by outcome",
        """Inferences per second. cancelled: the client cancelled its call. failed: the calls failed
        as well; "Triton errors by kind" has the cause.""",
        "ops",
        Query(
            rate("samserve_engine_runs_total", GATEWAY_MODEL, "network, model, outcome"),
            "{{model}} {{network}} {{outcome}}",
        ),
    )
    yield Panel(
        "Triton errors by kind",
        """Failed requests to Triton per second. unreachable: it is down, or network or TLS errors.
        model_not_served: the model is not loaded. timeout: no response in time. queue_full,
        queue_timeout: overload. region_unregistered: it has restarted. weights_mismatch: a model
        was replaced under the same name. rejected, failed: see its log.""",
        "ops",
        rate("samserve_triton_errors_total", GATEWAY, "kind"),
    )


def _transport() -> Iterator[Panel]:
    yield Panel(
        "Tensor transport",
        """How tensors are transferred. message where it was shared_memory before: each prompt costs
        3 MiB of network traffic and CPU on both sides; docs/triton.md, section Shared memory, has
        the requirements. in_process: no Triton.""",
        "none",
        f"max by (transport) (samserve_engine_transport{{{GATEWAY}}})",
        Kind.STATES,
        mappings={"0": ("inactive", GREY), "1": ("active", GREEN)},
    )
    yield Panel(
        "Shared memory pool",
        """total: shared memory of requests in flight, up to triton.shared_memory_pool_bytes.
        quarantined: that of abandoned requests that Triton has not ended. When the pool is
        exhausted, single requests are sent in messages.""",
        "bytes",
        [
            f"sum by (state) (samserve_triton_shared_memory_pool_bytes{{{GATEWAY}}})",
            Query(
                rate("samserve_triton_shared_memory_fallbacks_total", GATEWAY, "network"),
                "{{network}} fallbacks per second",
            ),
        ],
        units={f"{name} fallbacks per second": "ops" for name in ("encoder", "decoder")},
    )


def _request_time() -> Iterator[Panel]:
    requests = rate("nv_inference_request_success", TRITON_MODEL, "model")
    for part, (title, description) in _REQUEST_PARTS.items():
        spent = rate(f"nv_inference_{part}_duration_us", TRITON_MODEL, "model")
        yield Panel(
            title,
            description,
            "s",
            Query(f"{ratio(spent, requests)} / 1e6", "{{model}}"),
            width=6,
            thresholds=[(THRESHOLDS.triton_queue_s, RED)] if part == "queue" else (),
        )
    yield Panel(
        "Inference time in gateways",
        """Mean seconds of an inference as measured by the gateways. The excess over queue and
        compute time is the transport there and back.""",
        "s",
        mean("samserve_engine_run_seconds", GATEWAY_MODEL, "model, network"),
    )


def _batching() -> Iterator[Panel]:
    yield Panel(
        "Mean batch size",
        """Requests per execution. 1 although requests are pending: they differ in points or
        prompts, or the model does not batch. The maximum of the decoder is 8.""",
        "short",
        Query(
            ratio(
                rate("nv_inference_count", TRITON_MODEL, "model"),
                rate("nv_inference_exec_count", TRITON_MODEL, "model"),
            ),
            "{{model}}",
        ),
    )
    yield Panel(
        "Pending requests",
        """Requests waiting in Triton, by Triton model. Near 256 the queue of the decoder is full
        and further requests are rejected.""",
        "short",
        f"sum by (model) (nv_inference_pending_request_count{{{TRITON_MODEL}}})",
    )
    yield Panel(
        "Running and queued inferences in gateways",
        """If running is near triton.max_concurrent_encoder_requests or
        triton.max_concurrent_decoder_requests times the number of gateways while others are queued,
        the gateways hold back work for which Triton has no capacity.""",
        "short",
        [
            Query(
                f"sum by (network) (samserve_engine_running{{{GATEWAY}}})", "{{network}} running"
            ),
            Query(
                f'sum by (queue) (samserve_queue_depth{{{GATEWAY},queue=~"encoder|decoder"}})',
                "{{queue}} queued",
            ),
        ],
    )


def _gpus() -> Iterator[Panel]:
    yield Panel(
        "GPU utilization",
        """Ratio of time in which a kernel runs. High with a queue: the GPU is the bottleneck. Low
        with a queue: too few instances, or small batches. No data: Triton runs on CPUs.""",
        "percentunit",
        Query(f"nv_gpu_utilization{{{TRITON}}}", "{{gpu_uuid}}"),
        maximum=1,
    )
    yield Panel(
        "GPU memory utilization",
        "Ratio of GPU memory in use. Near 1, loading a model or a large batch fails.",
        "percentunit",
        Query(
            f"nv_gpu_memory_used_bytes{{{TRITON}}} / (nv_gpu_memory_total_bytes{{{TRITON}}} > 0)",
            "{{gpu_uuid}}",
        ),
        thresholds=[(0.95, RED)],
        maximum=1,
    )
    yield Panel(
        "GPU power",
        """Power draw in watts. If it drops while the utilization stays the same, the GPU is
        throttled for heat or power.""",
        "watt",
        Query(f"nv_gpu_power_usage{{{TRITON}}}", "{{gpu_uuid}}"),
    )


def _cpus() -> Iterator[Panel]:
    yield Panel(
        "CPU and memory utilization",
        """CPU and memory of Triton's machine. Without a GPU, the CPU runs the networks; with a GPU,
        a saturated CPU slows down inference as well.""",
        "percentunit",
        [
            Query(f"nv_cpu_utilization{{{TRITON}}}", "CPU {{instance}}"),
            Query(
                f"nv_cpu_memory_used_bytes{{{TRITON}}} "
                f"/ (nv_cpu_memory_total_bytes{{{TRITON}}} > 0)",
                "memory {{instance}}",
            ),
        ],
        maximum=1,
    )
