"""The first page in an incident: is anybody harmed, where is the time, what has run out."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.dashboards import harm
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
from monitoring.dashboards.stages import COLORS, READING, by_cause
from monitoring.dashboards.variables import (
    HERE,
    MODEL,
    OF_MODEL,
    OF_RPC,
    OF_TRITON,
    OURS,
    OWNER,
    POD,
    TRITON,
    quantile,
    rate,
    ratio,
)
from monitoring.objectives import OBJECTIVES, THRESHOLDS
from monitoring.recording import P99, STAGE_MEAN
from monitoring.rules import any_of

_METHODS = any_of(each.method for each in OBJECTIVES)
_RPC = f'{OF_RPC},grpc_method=~"{_METHODS}"'


def page() -> Dashboard:
    """Make the page."""
    return Dashboard(
        name="overview",
        title="samserve / Overview",
        description="""Start here. From the top: is anybody harmed, which stage is slow and why,
            what has run out, what runs.""",
        variables=(*OWNER, MODEL),
        rows=(
            Row("Is anybody harmed?", [*harm.burning(), *harm.harm()], width=6, height=5),
            Row("Which stage is slow, for which model, and why?", list(_stages())),
            Row(
                "How much is asked, how does it end, how long does that take?",
                [*_calls(), *_ends()],
                width=6,
            ),
            Row("Has something run out?", [*_places(), *_parts()]),
            Row("What runs?", [*_gateways(), *_content()], width=6),
        ),
    )


def _stages() -> Iterator[Panel]:
    for method in ("Predict", "Embed", "AutoMask"):
        yield Panel(
            f"Where does the time of {'an' if method[0] in 'AE' else 'a'} {method} go?",
            f"""Mean seconds of a call by cause; the height is the whole call. {READING} Next: the
            table below says which stage and model, the page Latency shows each stage.""",
            "s",
            list(by_cause(method)),
            Kind.STACK,
            colors=COLORS,
        )
    change = f'sum by (grpc_method, model, stage) ({STAGE_MEAN}{{{HERE},model=~"$model"}}%s)'
    now, before = change % "", change % " offset 1d"
    yield Panel(
        "Which stage takes longer than the day before, for which model?",
        """Mean seconds that a call spends in each stage, now and at the same time the day before,
        what has grown most on top: that is where to look. docs/runbook.md says of each stage what
        makes it slow. Without a day of history only the second column is filled. Calls without a
        model ended before it was known.""",
        "s",
        [now, before, f"{now} - {before}"],
        Kind.TABLE,
        width=24,
        columns={
            "grpc_method": "RPC",
            "model": "Model",
            "stage": "Stage",
            "Value #A": "Now",
            "Value #B": "The day before",
            "Value #C": "Growth",
        },
        sort="Growth",
        steps=[(0.01, YELLOW), (0.1, RED)],
    )


def _calls() -> Iterator[Panel]:
    yield Panel(
        "How many calls come in?",
        """Calls a second by RPC. A fall to nothing while gateways are ready: look between clients
        and gateways.""",
        "reqps",
        rate("grpc_server_started_total", OF_RPC, "grpc_method"),
    )
    yield Panel(
        "How do calls fail?",
        """Calls a second that did not end well, by the reason that clients are told.
        docs/operations.md, "Errors", says what each means. OVERLOADED: see 'What is refused for
        what?'.""",
        "reqps",
        rate("samserve_errors_total", OURS, "grpc_method, reason"),
    )


def _ends() -> Iterator[Panel]:
    handled = rate("grpc_server_handled_total", _RPC, "grpc_method")
    failed = rate("grpc_server_handled_total", f'{_RPC},grpc_code!="OK"', "grpc_method, grpc_code")
    yield Panel(
        "Which part of the calls ends how?",
        """By status code, without OK. CANCELLED: the client has left. INVALID_ARGUMENT, NOT_FOUND
        and the like: its mistakes. RESOURCE_EXHAUSTED: overload or a quota. The others are
        ours.""",
        "percentunit",
        Query(ratio(failed, handled, "grpc_method"), "{{grpc_method}} {{grpc_code}}"),
    )
    yield Panel(
        "How long do the slowest calls take, and did the day before?",
        """99th percentile without the client's part, of calls that ended well, and the same a day
        before. Objectives: """
        + ", ".join(f"{each.method} {each.within_s:g} s" for each in OBJECTIVES)
        + ". Next: the page Latency.",
        "s",
        [
            Query(quantile(0.99, "samserve_call_seconds", OF_MODEL, "grpc_method"), exemplars=True),
            Query(f"max by (grpc_method) ({P99}{{{HERE}}} offset 1d)", "{{grpc_method}} before"),
        ],
    )


def _places() -> Iterator[Panel]:
    limit = THRESHOLDS.in_flight_ratio
    yield Panel(
        "How close are gateways to refusing calls?",
        """Calls in flight, of those that a gateway lets in (admission.*). At 100 % the next one is
        refused with OVERLOADED. Next: if it is high, which stage holds the calls?""",
        "percentunit",
        f"max by (grpc_method) (samserve_inflight_requests{{{OURS}}} "
        f"/ samserve_inflight_limit{{{OURS}}})",
        steps=[(limit, ORANGE), (1, RED)],
        most=1,
    )
    yield Panel(
        "What is refused for what?",
        """Calls a second that were refused, by what was exhausted. calls, request_bytes,
        slow_requests, slow_answers, prefetch, prefetch_bytes, memory: the server's bounds. The
        others are quotas of tenants.""",
        "reqps",
        rate("samserve_refusals_total", OURS, "grpc_method, kind"),
    )
    yield Panel(
        "How many pieces of work wait for their turn?",
        """encoder, decoder: for the model runtime; the page Triton says whether it is busy.
        workers, bulk_workers: for a thread, so for CPU of the gateway; the bulk ones are
        AutoMask's.""",
        "short",
        f"sum by (queue) (samserve_queue_waiting{{{OURS}}})",
    )


def _parts() -> Iterator[Panel]:
    hits = rate("samserve_cache_requests_total", f'{OURS},result="hit"')
    yield Panel(
        "Are embeddings found?",
        """Part of the embeddings looked for that memory or the shared cache had. A fall makes
        Predict encode, or answer NOT_FOUND. Next: the page Cache.""",
        "percentunit",
        Query(ratio(hits, rate("samserve_cache_requests_total", f'{OURS},tier="memory"')), "found"),
        most=1,
    )
    wait = rate("nv_inference_queue_duration_us", OF_TRITON, "model")
    asked = rate("nv_inference_request_success", OF_TRITON, "model")
    yield Panel(
        "How long do requests wait in Triton?",
        """Mean seconds in Triton's queue, by its model. It grows when instances or the GPU are
        busy. No data: models run in the gateway, or Triton is not scraped. Next: the page
        Triton.""",
        "s",
        Query(f"{ratio(wait, asked)} / 1e6", "{{model}}"),
        steps=[(THRESHOLDS.triton_queue_s, RED)],
    )
    yield Panel(
        "How busy are GPUs and gateways?",
        """GPUs: part of the time in which a kernel runs. Gateways: cores in use; one that stays at
        about 1 while calls wait is bound by Python's event loop. No GPU, no line.""",
        "short",
        [
            Query(f"max by (gpu_uuid) (nv_gpu_utilization{{{TRITON}}})", "GPU {{gpu_uuid}}"),
            Query(
                f"rate(process_cpu_seconds_total{{{OURS}}}[$__rate_interval])", f"cores of {POD}"
            ),
        ],
    )


def _gateways() -> Iterator[Panel]:
    same = "on (namespace, pod, instance)"
    yield Panel(
        "Which gateways are ready, of which version?",
        """One line a gateway. Not ready: see /readyz and the log. Several versions: a roll-out is
        under way, or was left half done.""",
        "none",
        f"samserve_build_info{{{OURS}}} * {same} group_left () samserve_ready{{{OURS}}}",
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
        words={"0": ("not ready", RED), "1": ("ready", GREEN)},
    )


def _content() -> Iterator[Panel]:
    yield Panel(
        "Which models are served?",
        """By how many gateways each. Two digests of one model: gateways disagree. Unless
        `samserve models show` tells the same encoder digest of both, an embedding of one is not
        found by the others.""",
        "none",
        f"count by (model, digest) (samserve_model_info{{{OF_MODEL}}})",
        Kind.TABLE,
        columns={"model": "Model", "digest": "Digest", "Value": "Gateways"},
    )
    yield Panel(
        "Are certificates, keys and policies in order?",
        """Not in order: the file was replaced by one that cannot be used, and the older content is
        in force. The log says why.""",
        "none",
        f"min by (file) (samserve_file_in_order{{{OURS}}})",
        Kind.TABLE,
        columns={"file": "File", "Value": "State"},
        words={"0": ("not in order", RED), "1": ("in order", GREEN)},
        empty="no files are watched",
    )
