"""The real Prometheus scrapes a loaded gateway, Triton and the cache's nodes; all that dashboards
and rules ask is answered, and is about what is really exported.
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
from tests.monitoring.live import Observed, drive, exported, plain, rules
from tests.monitoring.promql import selectors
from tests.support.together import check_all
from tests.support.waiting import until_sync

pytestmark = pytest.mark.slow

# As long as the rarest of the users waits before its burst of calls.
LOAD_S = 12
WINDOW = "30s"
# How calls have ended once all users have done what they do.
ENDS = {
    *(("Predict", code) for code in ("OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED")),
    *(("AutoMask", code) for code in ("OK", "CANCELLED", "DEADLINE_EXCEEDED")),
    *(("Embed", code) for code in ("OK", "INVALID_ARGUMENT")),
    *((method, "OK") for method in ("DeleteEmbedding", "ListModels")),
}
QUERIES = list(queries())
RULES = list(rules())
# No GPU is here; test_gpu.py has what Triton has exported on a machine with one.
GPU = "nv_gpu_"


def no_data_because(query: Query) -> str:
    """Say why a query has no answer after a load that does all that can be done."""
    if query.looks_back:
        return "compares with a time before the start"
    if GPU in query.expr:
        return "no GPU"
    if 'grpc_method="Embed"' in query.expr and 'stage=~"decode"' in query.expr:
        return "an Embed runs no decoder"
    return ""


def check_query(observed: Observed, query: Query) -> None:
    """Raise AssertionError if a query has no answer, or one that it cannot have."""
    answer = observed.ask(substitute(query.expr, rate_interval=WINDOW))
    if "ALERTS{" in query.expr:
        # On a slow machine the load takes long enough for one to fire.
        return
    assert bool(answer) != bool(no_data_because(query)), no_data_because(query)


def check_rule(observed: Observed, rule: dict[str, str]) -> None:
    """Raise AssertionError if a rule is about a series that is not there."""
    observed.stack.prometheus.query(rule["expr"], observed.until)
    for selector in selectors(promql.parse(rule["expr"])):
        assert observed.ask(plain(selector)), plain(selector)
    if "record" in rule:
        assert observed.ask(rule["record"])


def check_names(observed: Observed) -> None:
    """Raise AssertionError if the catalogue has a metric, or a label, that is not exported."""
    own = {"ALERTS"}
    for name, labels in LABELS.items():
        if name.startswith(GPU) or name in own:
            continue
        found = observed.stack.prometheus.series(name)
        assert found, name
        # To Prometheus a label without a value is none.
        named = set().union(*found) - {"__name__"}
        assert named - TARGET == set(labels), name


def traced(observed: Observed) -> set[str]:
    """Return the traces that exemplars of calls name."""
    found = observed.stack.prometheus.exemplars(
        "samserve_call_seconds_bucket", observed.since, observed.until
    )
    return {each["labels"]["trace_id"] for series in found for each in series["exemplars"]}


def everything_has_happened(observed: Observed) -> bool:
    """Whether there is data for all that is asked."""
    try:
        check_queries_and_rules(observed)
        check_names(observed)
    except AssertionError:
        return False
    return observed.tally.keys() >= ENDS and bool(traced(observed))


def check_queries_and_rules(observed: Observed) -> None:
    """Raise AssertionError with the names of all that is not answered."""
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
    """The whole system after a load of every kind."""
    with running() as stack:
        yield drive(stack, LOAD_S, everything_has_happened)


def test_there_are_enough_questions() -> None:
    assert len(QUERIES) >= 30
    assert len({query.dashboard for query in QUERIES}) == 4
    # What is excused is a handful.
    assert sum(bool(no_data_because(query)) for query in QUERIES) <= 12


def test_the_queries_of_panels_are_answered_and_rules_are_about_what_is_there(
    observed: Observed,
) -> None:
    """An alert that is quiet must be so because of values, and not for want of them."""
    check_queries_and_rules(observed)


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


def test_nothing_is_named_that_is_not_exported(observed: Observed) -> None:
    check_names(observed)


def test_codes_are_those_that_clients_have_seen(observed: Observed) -> None:
    handled = exported(observed.stack, "grpc_server_handled_total", "grpc_method", "grpc_code")

    assert +_ends(handled) == _ends(observed.tally)
    assert observed.tally.keys() >= ENDS


def _ends(counts: Mapping[tuple[str, ...], float]) -> Counter[tuple[str, str]]:
    """Count both ways of leaving early as one: on a slow machine the server cannot tell which."""
    found: Counter[tuple[str, str]] = Counter()
    for (method, code), count in counts.items():
        left = code in ("CANCELLED", "DEADLINE_EXCEEDED")
        found[method, "left early" if left else code] += int(count)
    return found


def test_an_exemplar_leads_to_a_trace(observed: Observed) -> None:
    told = traced(observed)

    assert told
    # Spans are sent some seconds after their call.
    until_sync(lambda: told <= {span.trace_id.hex() for span in observed.stack.receiver.spans})


def test_triton_counts_the_runs_that_the_gateway_counts(observed: Observed) -> None:
    runs = observed.ask('sum(samserve_engine_runs_total{network="encoder",outcome="ok"})')
    requests = observed.ask('sum(nv_inference_request_success{model="sam_tiny_encoder"})')

    assert int(runs[0]["value"][1]) > 0
    # Warm-up, and what was given up by the gateway when it had gone to Triton already.
    assert int(requests[0]["value"][1]) >= int(runs[0]["value"][1])
