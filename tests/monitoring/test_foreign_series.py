"""Rules and panels ignore the series of another gRPC service, release, Triton and Redis."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.prometheus.server import PrometheusServer
from monitoring import alerts, recording
from monitoring.queries import dashboards, queries, substitute
from monitoring.rules import Alert, Group, Recording, rule_file
from tests.monitoring.foreign_series import (
    SECOND,
    Series,
    foreign_series,
    growth,
    own_series,
    parse_series,
    second_release,
    to_promql,
)
from tests.monitoring.promtool import evaluate, promtool
from tests.support.cases import check_all

CASES = {
    f"{path.stem}: {test['name']}": test
    for path in sorted((Path(__file__).parent / "rules").glob("*.yaml"))
    for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]
}
# An alert on absence: a second release would silence it.
ON_ABSENCE = {"SamserveMetricsAbsent"}

_RULES = [rule for group in (*recording.groups(), *alerts.groups()) for rule in group.rules]
_RECORDINGS = {rule.record: rule for rule in _RULES if isinstance(rule, Recording)}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(duration: str) -> int:
    """Return the seconds of a duration such as ``1h50m``."""
    return sum(int(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+)([smhd])", duration))


def dependencies(exprs: list[str]) -> Iterator[Recording]:
    """Yield the recording rules that *exprs* need, in the order of evaluation."""
    for record, rule in _RECORDINGS.items():
        if any(re.search(rf"(?<![\w:]){record}(?![\w:])", expr) for expr in exprs):
            yield from dependencies([rule.expr])
            yield rule


def with_foreign_series(test: dict[str, Any], *, another_release: bool) -> dict[str, Any]:
    """Return a test with foreign series added, which expects the same alerts on samserve alone."""
    last = max(seconds(each["eval_time"]) for each in test["alert_rule_test"])
    points = last // seconds(test["interval"])
    inputs = list(test["input_series"])
    for each in test["input_series"]:
        name, labels = parse_series(each["series"])
        foreign = list(foreign_series(name, labels))
        if another_release:
            foreign.append(second_release(name, labels))
        for number, values in enumerate((f"0x{points}", f"0+1000x{points}")):
            # Zeros may change a minimum, fast growth a maximum, and both a sum.
            inputs += [
                {"series": to_promql(metric, {**of, "pod": f"other-{number}"}), "values": values}
                for metric, of in foreign
            ]
    queries = [_alerts(each) for each in test["alert_rule_test"]]
    return {"interval": test["interval"], "input_series": inputs, "promql_expr_test": queries}


def _alerts(case: dict[str, Any]) -> dict[str, Any]:
    firing = {"alertname": case["alertname"], "alertstate": "firing"}
    return {
        "expr": f'{to_promql("ALERTS", firing)[:-1]},release!="{SECOND}"}}',
        "eval_time": case["eval_time"],
        "exp_samples": [
            {"labels": to_promql("ALERTS", {**firing, **alert["exp_labels"]}), "value": 1}
            for alert in case["exp_alerts"]
        ],
    }


def check_rules(folder: Path, test: dict[str, Any]) -> None:
    """Raise AssertionError if foreign series change the alerts."""
    names = {case["alertname"] for case in test["alert_rule_test"]}
    tested = [rule for rule in _RULES if isinstance(rule, Alert) and rule.name in names]
    recorded = dict.fromkeys(dependencies([rule.expr for rule in tested]))
    groups = [Group("needed", "1m", [*recorded, *tested])]
    (folder / "rules.yaml").write_text(rule_file(groups))

    crowded = with_foreign_series(test, another_release=not names & ON_ABSENCE)
    evaluate(folder, crowded, rules=["rules.yaml"], interval="1m")


@pytest.mark.slow
def test_rules_ignore_foreign_series(tmp_path: Path) -> None:
    check_all(partial(check_rules, tmp_path), CASES)


STEP_S = 60
STEPS = 16
# Panels compare with these offsets.
OFFSETS_S = (86400, 3600, 0)


def history(now: int) -> Iterator[str]:
    """Yield a history in OpenMetrics: own series alone, with foreign series, with two releases."""
    # Two own series may have the same foreign series.
    for series, (name, labels) in {to_promql(*each): each for each in _all_series()}.items():
        yield from _samples(series, growth(name, labels), now, OFFSETS_S if ":" in name else (0,))
    yield "# EOF"


def _all_series() -> Iterator[Series]:
    for name, own in own_series(iter(_RECORDINGS)):
        for namespace in ("alone", "foreign", "releases"):
            labels = {**own, "namespace": namespace}
            yield name, labels
            if namespace != "alone" and ":" not in name:
                yield from foreign_series(name, labels)
            if namespace == "releases" and "release" in labels:
                yield second_release(name, labels)


def _samples(series: str, step_growth: int, now: int, offsets: tuple[int, ...]) -> Iterator[str]:
    for offset in offsets:
        for step in range(STEPS):
            when = now - offset - (STEPS - 1 - step) * STEP_S
            yield f"{series} {10_000 + step_growth * step} {when}"


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PrometheusServer, int]]:
    """A Prometheus with all of these series, and the time of the latest values."""
    folder = tmp_path_factory.mktemp("foreign")
    now = int(time.time()) // STEP_S * STEP_S
    (folder / "history").write_text("\n".join(history(now)) + "\n")
    promtool("tsdb", "create-blocks-from", "openmetrics", folder / "history", folder / "data")
    server = PrometheusServer({}, log=folder / "log")
    server.history = folder / "data"
    with server:
        yield server, now


Result = dict[frozenset[tuple[str, str]], float]


def evaluate_panel(server: PrometheusServer, now: int, expr: str, **chosen: str) -> Result:
    """Evaluate with these variables; the label ``namespace`` is dropped."""
    text = substitute(expr, rate_interval="5m", window="10m", **chosen)
    return {
        frozenset(
            (key, value) for key, value in each["metric"].items() if key != "namespace"
        ): float(each["value"][1])
        for each in server.query(text, now)
    }


def expressions() -> dict[str, str]:
    """Return the expressions of panels, annotations and variables, except namespace and release."""
    found = {f"{n} {each.panel} {each.legend}": each.expr for n, each in enumerate(queries())}
    for page in dashboards():
        for annotation in page["annotations"]["list"]:
            found[f"{page['title']}: {annotation['name']}"] = annotation["expr"]
        for variable in page["templating"]["list"]:
            if variable["name"] in ("model", "method"):
                selector, label = re.fullmatch(
                    r"label_values\((.+), (\w+)\)", variable["query"]["query"]
                ).groups()
                found[f"{page['title']}: {variable['name']}"] = f"count by ({label}) ({selector})"
    return found


def equal(one: Result, other: Result) -> bool:
    """Return whether two results are equal up to rounding."""
    return one.keys() == other.keys() and all(
        math.isclose(number, other[key], rel_tol=1e-9) or math.isnan(number)
        for key, number in one.items()
    )


def test_panels_ignore_foreign_series(prometheus: tuple[PrometheusServer, int]) -> None:
    def check(expr: str) -> None:
        query = partial(evaluate_panel, *prometheus, expr)
        alone = query(namespace="alone")
        assert alone
        assert equal(query(namespace="foreign"), alone)
        assert equal(query(namespace="releases", release="first"), alone)

    check_all(check, expressions())


def test_a_second_release_can_be_chosen(prometheus: tuple[PrometheusServer, int]) -> None:
    server, now = prometheus
    ready = "count(samserve_ready{job='samserve',namespace=~'$namespace',release=~'$release'})"

    counts = [
        list(evaluate_panel(server, now, ready, namespace="releases", release=release).values())
        for release in ("first", SECOND, ".*", "(first|second)")
    ]

    assert counts == [[1], [1], [2], [2]]
