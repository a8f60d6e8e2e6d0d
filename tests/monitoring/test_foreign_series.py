"""Rules and panels say the same beside another gRPC service, release, Triton and Redis."""

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
    ours,
    read,
    second_release,
    speed,
    written,
)
from tests.monitoring.promtool import evaluate, promtool
from tests.support.together import check_all

CASES = {
    f"{path.stem}: {test['name']}": test
    for path in sorted((Path(__file__).parent / "rules").glob("*.yaml"))
    for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]
}
# An alert on what is absent: another release is there.
SEES_ALL = {"SamserveMetricsAbsent"}

_RULES = [rule for group in (*recording.groups(), *alerts.groups()) for rule in group.rules]
_RECORDINGS = {rule.record: rule for rule in _RULES if isinstance(rule, Recording)}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(duration: str) -> int:
    """Read a duration such as ``1h50m``."""
    return sum(int(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+)([smhd])", duration))


def needed(exprs: list[str]) -> Iterator[Recording]:
    """Yield the recording rules that *exprs* use, before those that use them."""
    for record, rule in _RECORDINGS.items():
        if any(re.search(rf"(?<![\w:]){record}(?![\w:])", expr) for expr in exprs):
            yield from needed([rule.expr])
            yield rule


def beside(test: dict[str, Any], *, another_release: bool) -> dict[str, Any]:
    """Put series of others beside those of a test, and ask for the alerts on ours alone."""
    last = max(seconds(each["eval_time"]) for each in test["alert_rule_test"])
    points = last // seconds(test["interval"])
    given = list(test["input_series"])
    for each in test["input_series"]:
        name, labels = read(each["series"])
        foreign = list(foreign_series(name, labels))
        if another_release:
            foreign.append(second_release(name, labels))
        for number, values in enumerate((f"0x{points}", f"0+1000x{points}")):
            # What is nothing may be the least of all, what grows the most, and both fill a sum.
            given += [
                {"series": written(metric, {**of, "pod": f"other-{number}"}), "values": values}
                for metric, of in foreign
            ]
    asked = [_alerts(each) for each in test["alert_rule_test"]]
    return {"interval": test["interval"], "input_series": given, "promql_expr_test": asked}


def _alerts(case: dict[str, Any]) -> dict[str, Any]:
    firing = {"alertname": case["alertname"], "alertstate": "firing"}
    return {
        "expr": f'{written("ALERTS", firing)[:-1]},release!="{SECOND}"}}',
        "eval_time": case["eval_time"],
        "exp_samples": [
            {"labels": written("ALERTS", {**firing, **alert["exp_labels"]}), "value": 1}
            for alert in case["exp_alerts"]
        ],
    }


def check_rules(folder: Path, test: dict[str, Any]) -> None:
    """Raise AssertionError if alerts are other ones beside series of others."""
    names = {case["alertname"] for case in test["alert_rule_test"]}
    about = [rule for rule in _RULES if isinstance(rule, Alert) and rule.name in names]
    recorded = dict.fromkeys(needed([rule.expr for rule in about]))
    groups = [Group("needed", "1m", [*recorded, *about])]
    (folder / "rules.yaml").write_text(rule_file(groups))

    crowded = beside(test, another_release=not names & SEES_ALL)
    evaluate(folder, crowded, rules=["rules.yaml"], interval="1m")


@pytest.mark.slow
def test_rules_are_about_ours_alone(tmp_path: Path) -> None:
    check_all(partial(check_rules, tmp_path), CASES)


STEP_S = 60
STEPS = 16
# Panels compare with these times ago.
AGO_S = (86400, 3600, 0)


def history(now: int) -> Iterator[str]:
    """Yield a history in OpenMetrics: ours alone, beside others, beside another release, too."""
    # Two of ours may have the same foreign series beside them.
    for series, (name, labels) in {written(*each): each for each in _crowd()}.items():
        yield from _samples(series, speed(name, labels), now, AGO_S if ":" in name else (0,))
    yield "# EOF"


def _crowd() -> Iterator[Series]:
    for name, own in ours(iter(_RECORDINGS)):
        for namespace in ("alone", "others", "beside"):
            labels = {**own, "namespace": namespace}
            yield name, labels
            if namespace != "alone" and ":" not in name:
                yield from foreign_series(name, labels)
            if namespace == "beside" and "release" in labels:
                yield second_release(name, labels)


def _samples(series: str, speed: int, now: int, ago: tuple[int, ...]) -> Iterator[str]:
    for since in ago:
        for step in range(STEPS):
            when = now - since - (STEPS - 1 - step) * STEP_S
            yield f"{series} {10_000 + speed * step} {when}"


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PrometheusServer, int]]:
    """A Prometheus that knows all of them, and the time of the newest values."""
    folder = tmp_path_factory.mktemp("others")
    now = int(time.time()) // STEP_S * STEP_S
    (folder / "history").write_text("\n".join(history(now)) + "\n")
    promtool("tsdb", "create-blocks-from", "openmetrics", folder / "history", folder / "data")
    server = PrometheusServer({}, log=folder / "log")
    server.history = folder / "data"
    with server:
        yield server, now


Answer = dict[frozenset[tuple[str, str]], float]


def asked(server: PrometheusServer, now: int, expr: str, **chosen: str) -> Answer:
    """Evaluate with these choices; which namespace it was about is left out."""
    text = substitute(expr, rate_interval="5m", window="10m", **chosen)
    return {
        frozenset((key, of) for key, of in each["metric"].items() if key != "namespace"): float(
            each["value"][1]
        )
        for each in server.query(text, now)
    }


def expressions() -> dict[str, str]:
    """Return what pages ask by where they do: panels, marks, and choices but those of owners."""
    found = {f"{n} {each.panel} {each.legend}": each.expr for n, each in enumerate(queries())}
    for page in dashboards():
        for mark in page["annotations"]["list"]:
            found[f"{page['title']}: {mark['name']}"] = mark["expr"]
        for choice in page["templating"]["list"]:
            if choice["name"] in ("model", "method"):
                selector, label = re.fullmatch(
                    r"label_values\((.+), (\w+)\)", choice["query"]["query"]
                ).groups()
                found[f"{page['title']}: {choice['name']}"] = f"count by ({label}) ({selector})"
    return found


def same(one: Answer, other: Answer) -> bool:
    """Whether two answers are equal but for rounding."""
    return one.keys() == other.keys() and all(
        math.isclose(number, other[key], rel_tol=1e-9) or math.isnan(number)
        for key, number in one.items()
    )


def test_panels_show_ours_alone(prometheus: tuple[PrometheusServer, int]) -> None:
    def check(expr: str) -> None:
        ask = partial(asked, *prometheus, expr)
        alone = ask(namespace="alone")
        assert alone
        assert same(ask(namespace="others"), alone)
        assert same(ask(namespace="beside", release="first"), alone)

    check_all(check, expressions())


def test_a_second_release_can_be_chosen(prometheus: tuple[PrometheusServer, int]) -> None:
    server, now = prometheus
    ready = "count(samserve_ready{job='samserve',namespace=~'$namespace',release=~'$release'})"

    counts = [
        list(asked(server, now, ready, namespace="beside", release=release).values())
        for release in ("first", SECOND, ".*", "(first|second)")
    ]

    assert counts == [[1], [1], [2], [2]]
