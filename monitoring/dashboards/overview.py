"""The overview: error budgets and alerts, latency by cause, traffic, saturation, deployment."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.dashboards import error_budget
from monitoring.dashboards.spec import (
    GREEN,
    ORANGE,
    RED,
    YELLOW,
    Dashboard,
    Kind,
    Panel,
    Query,
    Row,
)
from monitoring.dashboards.stages import CAUSE_COLORS, CAUSES_HELP, by_cause
from monitoring.dashboards.variables import (
    GATEWAY,
    GATEWAY_MODEL,
    MODEL_VARIABLE,
    POD,
    RPC,
    SCOPE,
    SCOPE_VARIABLES,
    TRITON,
    TRITON_MODEL,
    quantile,
    rate,
    ratio,
)
from monitoring.objectives import OBJECTIVES, THRESHOLDS
from monitoring.recording import P99, STAGE_MEAN
from monitoring.rules import any_of

_METHODS = any_of(each.method for each in OBJECTIVES)
_CALLS = f'{RPC},grpc_method=~"{_METHODS}"'
_OBJECTIVES = ", ".join(f"{each.method} {each.threshold_s:g} s" for each in OBJECTIVES)


def page() -> Dashboard:
    """Return the dashboard."""
    return Dashboard(
        name="overview",
        title="samserve / Overview",
        description="""Start here. From top to bottom: user impact, latency by cause, traffic and
            errors, saturation, deployment.""",
        variables=(*SCOPE_VARIABLES, MODEL_VARIABLE),
        rows=(
            Row(
                "Error budgets and alerts",
                [*error_budget.burn_rate_panels(), *error_budget.budget_and_alert_panels()],
                width=6,
                height=5,
            ),
            Row("Latency by cause", list(_stages())),
            Row("Traffic, errors and latency", [*_traffic(), *_results()], width=6),
            Row("Saturation", [*_admission(), *_dependencies()]),
            Row("Deployment", [*_gateways(), *_models_and_files()], width=6),
        ),
    )


def _stages() -> Iterator[Panel]:
    for method in ("Predict", "Embed", "AutoMask"):
        yield Panel(
            f"{method} latency by cause",
            f"""Where does the time of a call go? Mean seconds by cause; the height is the whole
            call. {CAUSES_HELP} Next: the table below has stage and model, the dashboard Latency has
            each stage.""",
            "s",
            list(by_cause(method)),
            Kind.STACK,
            colors=CAUSE_COLORS,
        )
    change = f'sum by (grpc_method, model, stage) ({STAGE_MEAN}{{{SCOPE},model=~"$model"}}%s)'
    now, before = change % "", change % " offset 1d"
    yield Panel(
        "Stage latency compared with the day before",
        """Which stage takes longer than the day before, for which model? Mean seconds that a call
        spends in each stage, now and 24 hours ago; the largest growth is on top. docs/runbook.md
        lists what makes each stage slow. Without a day of history only the column "Now" has values.
        Calls without a model ended before it was known.""",
        "s",
        [now, before, f"{now} - {before}"],
        Kind.TABLE,
        width=24,
        columns={
            "grpc_method": "RPC",
            "model": "Model",
            "stage": "Stage",
            "Value #A": "Now",
            "Value #B": "Day before",
            "Value #C": "Growth",
        },
        sort="Growth",
        thresholds=[(0.01, YELLOW), (0.1, RED)],
    )


def _traffic() -> Iterator[Panel]:
    yield Panel(
        "Request rate by method",
        """Calls per second. If it drops to 0 while gateways are ready, check the network, proxies
        and load balancers between clients and gateways.""",
        "reqps",
        rate("grpc_server_started_total", RPC, "grpc_method"),
    )
    yield Panel(
        "Errors by reason",
        """Failed and rejected calls per second, by the reason returned to the client.
        docs/operations.md, section Errors, explains each reason. OVERLOADED: see "Rejected calls by
        limit".""",
        "reqps",
        rate("samserve_errors_total", GATEWAY, "grpc_method, reason"),
    )


def _results() -> Iterator[Panel]:
    handled = rate("grpc_server_handled_total", _CALLS, "grpc_method")
    failed = rate(
        "grpc_server_handled_total", f'{_CALLS},grpc_code!="OK"', "grpc_method, grpc_code"
    )
    yield Panel(
        "Error ratio by status code",
        """Ratio of calls that end with each status code other than OK. CANCELLED: cancelled by the
        client. INVALID_ARGUMENT, NOT_FOUND and similar codes: client errors. RESOURCE_EXHAUSTED:
        overload or a quota. All others are server errors.""",
        "percentunit",
        Query(ratio(failed, handled, "grpc_method"), "{{grpc_method}} {{grpc_code}}"),
        no_value="no errors",
    )
    yield Panel(
        "Latency p99",
        f"""99th percentile of successful calls without the client's part, now and 24 hours ago.
        Objectives: {_OBJECTIVES}. Next: the dashboard Latency.""",
        "s",
        [
            Query(
                quantile(0.99, "samserve_call_seconds", GATEWAY_MODEL, "grpc_method"),
                exemplars=True,
            ),
            Query(
                f"max by (grpc_method) ({P99}{{{SCOPE}}} offset 1d)", "{{grpc_method}} day before"
            ),
        ],
    )


def _admission() -> Iterator[Panel]:
    limit = THRESHOLDS.in_flight_ratio
    yield Panel(
        "In-flight calls relative to limit",
        """How close are gateways to rejecting calls? Calls in flight relative to the limit
        (admission.*) of the busiest gateway. At 100 % further calls are rejected with OVERLOADED.
        Next: if it is high, check which stage takes the time.""",
        "percentunit",
        f"max by (grpc_method) (samserve_inflight_requests{{{GATEWAY}}} "
        f"/ samserve_inflight_limit{{{GATEWAY}}})",
        thresholds=[(limit, ORANGE), (1, RED)],
        maximum=1,
    )
    yield Panel(
        "Rejected calls by limit",
        """Calls per second that were rejected, by the exhausted limit. calls, request_bytes,
        slow_requests, slow_responses, prefetches, prefetch_bytes, upload_bytes, memory: limits of
        the gateway.
        All others are quotas of tenants.""",
        "reqps",
        rate("samserve_rejected_total", GATEWAY, "grpc_method, kind"),
    )
    yield Panel(
        "Queue depth",
        """Queued work in the gateways. encoder, decoder: waiting for the engine; the dashboard
        Triton shows whether it is busy. workers, bulk_workers: waiting for a thread, that is for
        CPU of the gateway; bulk_workers run AutoMask.""",
        "short",
        f"sum by (queue) (samserve_queue_depth{{{GATEWAY}}})",
    )


def _dependencies() -> Iterator[Panel]:
    hits = rate("samserve_cache_requests_total", f'{GATEWAY},result="hit"')
    lookups = rate("samserve_cache_requests_total", f'{GATEWAY},tier="local"')
    yield Panel(
        "Cache hit ratio",
        """Ratio of lookups with a hit in the local or the shared cache. After a drop, Predict calls
        encode again, or return NOT_FOUND. Next: the dashboard Cache.""",
        "percentunit",
        Query(ratio(hits, lookups), "hit ratio"),
        maximum=1,
    )
    wait = rate("nv_inference_queue_duration_us", TRITON_MODEL, "model")
    requests = rate("nv_inference_request_success", TRITON_MODEL, "model")
    yield Panel(
        "Triton queue time",
        """Mean seconds of a request in Triton's queue, by Triton model. It grows when instances or
        the GPU are busy. No data: models run in the gateway, or Triton is not scraped. Next: the
        dashboard Triton.""",
        "s",
        Query(f"{ratio(wait, requests)} / 1e6", "{{model}}"),
        thresholds=[(THRESHOLDS.triton_queue_s, RED)],
    )
    yield Panel(
        "GPU and CPU utilization",
        """GPUs: ratio of time in which a kernel runs. Gateways: CPU cores in use; a gateway that
        stays near 1 core while calls wait is limited by Python's event loop. Without a GPU there is
        no GPU series.""",
        "short",
        [
            Query(f"max by (gpu_uuid) (nv_gpu_utilization{{{TRITON}}})", "GPU {{gpu_uuid}}"),
            Query(
                f"rate(process_cpu_seconds_total{{{GATEWAY}}}[$__rate_interval])",
                f"CPU cores {POD}",
            ),
        ],
    )


def _gateways() -> Iterator[Panel]:
    same = "on (namespace, pod, instance)"
    yield Panel(
        "Gateway readiness and version",
        """One row per gateway. Not ready: see /readyz and the log. Several versions: a rollout is
        in progress, or was not completed.""",
        "none",
        f"samserve_build_info{{{GATEWAY}}} * {same} group_left () samserve_ready{{{GATEWAY}}}",
        Kind.TABLE,
        width=12,
        columns={
            "namespace": "Namespace",
            "release": "Release",
            "pod": "Pod",
            "instance": "Address",
            "version": "Version",
            "engine": "Engine",
            "python": "Python",
            "Value": "Ready",
        },
        mappings={"0": ("not ready", RED), "1": ("ready", GREEN)},
    )


def _models_and_files() -> Iterator[Panel]:
    yield Panel(
        "Served models",
        """Number of gateways that serve each model. Two digests of one model: gateways serve
        different versions. Unless `samserve models show` prints the same encoder digest for both,
        an embedding of one version is not valid for the other.""",
        "none",
        f"count by (model, digest) (samserve_model_info{{{GATEWAY_MODEL}}})",
        Kind.TABLE,
        columns={"model": "Model", "digest": "Digest", "Value": "Gateways"},
    )
    yield Panel(
        "Configuration reload status",
        """State of reloadable files: certificates, keys and policies. Failed: the file on disk is
        invalid, and the previous content stays in use. The log has the reason.""",
        "none",
        f"min by (file) (samserve_config_last_reload_successful{{{GATEWAY}}})",
        Kind.TABLE,
        columns={"file": "File", "Value": "State"},
        mappings={"0": ("failed", RED), "1": ("ok", GREEN)},
        no_value="no reloadable files",
    )
    yield Panel(
        "Calls by version of the model",
        """Successful calls per second by the version that answered: the first digits of its digest.
        Two versions of one model at the same time: `samserve models promote` is in progress, calls
        end on the version that they began with, or some gateways were not switched.""",
        "reqps",
        rate("samserve_model_calls_total", GATEWAY_MODEL, "model, version"),
        width=24,
    )
