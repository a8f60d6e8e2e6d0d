"""Prometheus scrapes a gateway under load, Triton and the cache nodes.

Every query of dashboards and rules has data, and uses metrics that are really exported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial

import promql_parser as promql
import pytest

from monitoring.live.stack import running
from monitoring.queries import Query, queries, substitute
from tests.monitoring.catalogue import LABELS, TARGET
from tests.monitoring.live import Observed, exported, rules, run_load, without_range
from tests.monitoring.promql import selectors
from tests.support.cases import check_all
from tests.support.waiting import until_sync

pytestmark = pytest.mark.slow

# The pause before the burst of calls.
LOAD_S = 12
WINDOW = "30s"
# Status codes after every kind of client has made its calls.
CODES = {
    *(("Predict", code) for code in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED")),
    *(("AutoMask", code) for code in ("OK", "CANCELLED", "DEADLINE_EXCEEDED")),
    *(("Embed", code) for code in ("OK", "INVALID_ARGUMENT")),
    *((method, "OK") for method in ("DeleteEmbedding", "ListModels")),
}
QUERIES = list(queries())
RULES = list(rules())
# There is no GPU; test_gpu.py has metrics recorded on a machine with one.
GPU = "nv_gpu_"


def no_data_because(query: Query) -> str:
    """Return why a query has no data after the load, or an empty string if it must have data."""
    if query.uses_offset:
        return "compares with a time before the start"
    if GPU in query.expr:
        return "no GPU"
    if 'grpc_method="Embed"' in query.expr and 'stage=~"decode"' in query.expr:
        return "an Embed runs no decoder"
    return ""


def check_query(observed: Observed, query: Query) -> None:
    """Raise AssertionError if a query has no data, or data that is not expected."""
    result = observed.query(substitute(query.expr, rate_interval=WINDOW))
    if "ALERTS{" in query.expr:
        # On a slow machine the load takes long enough for one to fire.
        return
    assert bool(result) != bool(no_data_because(query)), no_data_because(query)


def check_rule(observed: Observed, rule: dict[str, str]) -> None:
    """Raise AssertionError if a rule selects a series that does not exist."""
    observed.stack.prometheus.query(rule["expr"], observed.until)
    for selector in selectors(promql.parse(rule["expr"])):
        assert observed.query(without_range(selector)), without_range(selector)
    if "record" in rule:
        assert observed.query(rule["record"])


def check_names(observed: Observed) -> None:
    """Raise AssertionError if the catalogue has a metric or label that is not exported."""
    # The gateway has no HTTP listener here; tests/http reads the metrics of one.
    not_exported = (GPU, "ALERTS", "samserve_http_")
    for name, labels in LABELS.items():
        if name.startswith(not_exported):
            continue
        found = observed.stack.prometheus.series(name)
        assert found, name
        # Prometheus drops labels with an empty value.
        labels_found = set().union(*found) - {"__name__"}
        assert labels_found - TARGET == set(labels), name


def exemplar_traces(observed: Observed) -> set[str]:
    """Return the trace ids in the exemplars of calls."""
    found = observed.stack.prometheus.exemplars(
        "samserve_call_seconds_bucket", observed.since, observed.until
    )
    return {each["labels"]["trace_id"] for series in found for each in series["exemplars"]}


def is_complete(observed: Observed) -> bool:
    """Return whether there is data for every query."""
    try:
        check_queries_and_rules(observed)
        check_names(observed)
    except AssertionError:
        return False
    return observed.tally.keys() >= CODES and bool(exemplar_traces(observed))


def check_queries_and_rules(observed: Observed) -> None:
    """Raise AssertionError with the names of all queries and rules without data."""
    queries, rules = enumerate(QUERIES), enumerate(RULES)
    check_all(
        partial(check_query, observed),
        {f"{n} {q.dashboard}: {q.panel} {q.legend}": q for n, q in queries},
    )
    check_all(
        partial(check_rule, observed),
        {f"{n} {rule.get('alert') or rule['record']}": rule for n, rule in rules},
    )


@pytest.fixture(scope="module")
def observed() -> Iterator[Observed]:
    """The whole system after a load that includes faults."""
    with running() as stack:
        yield run_load(stack, LOAD_S, is_complete)


def test_there_are_enough_queries() -> None:
    assert len(QUERIES) >= 30
    assert len({query.dashboard for query in QUERIES}) == 4
    # Few queries are exempt.
    assert sum(bool(no_data_because(query)) for query in QUERIES) <= 12


def test_panels_have_data_and_rules_select_existing_series(observed: Observed) -> None:
    """An alert must be inactive because of its values, not because of missing series."""
    check_queries_and_rules(observed)


def test_model_and_namespace_variables_filter_the_results(observed: Observed) -> None:
    for query in QUERIES:
        if no_data_because(query) or "$model" not in query.expr:
            continue
        expr = partial(substitute, query.expr, rate_interval=WINDOW)
        assert observed.query(expr(model="sam_tiny", namespace="samserve"))
        assert not observed.query(expr(namespace="elsewhere"))


def test_prometheus_evaluates_every_rule(observed: Observed) -> None:
    evaluated = observed.stack.prometheus.rules()

    assert len(evaluated) == len(RULES)
    assert {(rule["name"], rule["health"], rule.get("lastError")) for rule in evaluated} == {
        (rule.get("alert") or rule["record"], "ok", None) for rule in RULES
    }


def test_catalogue_contains_only_exported_metrics(observed: Observed) -> None:
    check_names(observed)


def test_status_code_metrics_match_those_of_clients(observed: Observed) -> None:
    handled = exported(observed.stack, "grpc_server_handled_total", "grpc_method", "grpc_code")

    assert +_count_codes(handled) == _count_codes(observed.tally)
    assert observed.tally.keys() >= CODES


def _count_codes(counts: Mapping[tuple[str, ...], float]) -> Counter[tuple[str, str]]:
    """Count cancelled and timed out calls as one: a slow server cannot distinguish them."""
    found: Counter[tuple[str, str]] = Counter()
    for (method, code), count in counts.items():
        aborted = code in ("CANCELLED", "DEADLINE_EXCEEDED")
        found[method, "aborted" if aborted else code] += int(count)
    return found


def test_exemplars_refer_to_traces(observed: Observed) -> None:
    traces = exemplar_traces(observed)

    assert traces
    # Spans are exported some seconds after their call.
    until_sync(lambda: traces <= {span.trace_id.hex() for span in observed.stack.receiver.spans})


def test_triton_counts_the_inferences_of_the_gateway(observed: Observed) -> None:
    runs = observed.query('sum(samserve_engine_runs_total{network="encoder",outcome="ok"})')
    requests = observed.query('sum(nv_inference_request_success{model="sam_tiny_encoder"})')

    assert int(runs[0]["value"][1]) > 0
    # Triton also counts the warm-up, and requests that the gateway abandoned after sending them.
    assert int(requests[0]["value"][1]) >= int(runs[0]["value"][1])
