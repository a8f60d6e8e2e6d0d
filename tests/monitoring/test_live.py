"""The real Prometheus scrapes a loaded gateway, Triton and the cache's nodes; all that dashboards
and rules ask is answered, and is about what is really exported.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import promql_parser as promql
import pytest

from monitoring.live.stack import running
from monitoring.queries import Query, queries, substitute
from tests.monitoring.catalogue import LABELS, TARGET
from tests.monitoring.live import Observed, drive, exported, plain, rules
from tests.monitoring.promql import selectors

pytestmark = pytest.mark.slow

LOAD_S = 40
WINDOW = "30s"
QUERIES = list(queries())
RULES = list(rules())
# No GPU is here; test_gpu.py has what Triton has exported on a machine with one.
GPU = "nv_gpu_"


@pytest.fixture(scope="module")
def observed() -> Iterator[Observed]:
    """The whole system after a load of every kind."""
    with running() as stack:
        yield drive(stack, LOAD_S)


def no_data_because(query: Query) -> str:
    """Say why a query has no answer after a load that does all that can be done."""
    if query.looks_back:
        return "compares with a time before the start"
    if GPU in query.expr:
        return "no GPU"
    if "ALERTS{" in query.expr:
        return "nothing has been wrong for long enough"
    if 'grpc_method="Embed"' in query.expr and 'stage=~"decode"' in query.expr:
        return "an Embed runs no decoder"
    return ""


def test_there_are_enough_questions() -> None:
    assert len(QUERIES) >= 30
    assert len({query.dashboard for query in QUERIES}) == 4
    # What is excused is a handful.
    assert sum(bool(no_data_because(query)) for query in QUERIES) <= 12


@pytest.mark.parametrize(
    "query", QUERIES, ids=lambda query: f"{query.dashboard}: {query.panel} {query.legend}"
)
def test_a_panel_s_query_is_answered(observed: Observed, query: Query) -> None:
    answer = observed.ask(substitute(query.expr, rate_interval=WINDOW))

    assert bool(answer) != bool(no_data_because(query)), no_data_because(query)


def test_a_model_and_a_namespace_can_be_chosen(observed: Observed) -> None:
    for query in QUERIES:
        if no_data_because(query) or "$model" not in query.expr:
            continue
        asked = partial(substitute, query.expr, rate_interval=WINDOW)
        assert observed.ask(asked(model="sam_tiny", namespace="samserve"))
        assert not observed.ask(asked(namespace="elsewhere"))


def test_prometheus_evaluates_every_rule(observed: Observed) -> None:
    known = observed.stack.prometheus.rules()

    assert len(known) == len(RULES)
    assert {(rule["name"], rule["health"], rule.get("lastError")) for rule in known} == {
        (rule.get("alert") or rule["record"], "ok", None) for rule in RULES
    }


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_is_about_what_is_there(observed: Observed, rule: dict[str, str]) -> None:
    """An alert that is quiet must be so because of values, and not for want of them."""
    observed.stack.prometheus.query(rule["expr"], observed.until)

    for selector in selectors(promql.parse(rule["expr"])):
        assert observed.ask(plain(selector)), plain(selector)
    if "record" in rule:
        assert observed.ask(rule["record"])


def test_nothing_is_named_that_is_not_exported(observed: Observed) -> None:
    own = {"ALERTS"}
    for name, labels in LABELS.items():
        if name.startswith(GPU) or name in own:
            continue
        found = observed.stack.prometheus.series(name)
        assert found, name
        # To Prometheus a label without a value is none.
        named = set().union(*found) - {"__name__"}
        assert named - TARGET == set(labels), name


def test_codes_are_those_that_clients_have_seen(observed: Observed) -> None:
    handled = exported(observed.stack, "grpc_server_handled_total", "grpc_method", "grpc_code")

    assert {key: count for key, count in handled.items() if count} == dict(observed.tally)
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "CANCELLED", "DEADLINE_EXCEEDED"} <= {
        code for _, code in observed.tally
    }


def test_an_exemplar_leads_to_a_trace(observed: Observed) -> None:
    found = observed.stack.prometheus.exemplars(
        "samserve_call_seconds_bucket", observed.since, observed.until
    )

    told = {each["labels"]["trace_id"] for series in found for each in series["exemplars"]}
    recorded = {span.trace_id for span in observed.stack.receiver.spans}
    assert told
    assert told <= recorded


def test_triton_counts_the_runs_that_the_gateway_counts(observed: Observed) -> None:
    runs = observed.ask('sum(samserve_engine_runs_total{network="encoder",outcome="ok"})')
    requests = observed.ask('sum(nv_inference_request_success{model="sam_tiny_encoder"})')

    assert int(runs[0]["value"][1]) > 0
    # Warm-up, and what was given up by the gateway when it had gone to Triton already.
    assert int(requests[0]["value"][1]) >= int(runs[0]["value"][1])
