"""Rules for Prometheus: each alert fires when it shall and is quiet when it shall, by promtool."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from samserve.rpc.methods import SERVICE
from samserve.settings import Settings
from samserve.telemetry.metrics.buckets import SECONDS

from monitoring import alerts, recording
from monitoring.__main__ import FILES
from monitoring.alerts.budgets import seconds
from monitoring.objectives import (
    BAD_CODES,
    BAD_REASONS,
    FAST_BURNS,
    LEAST_BAD_CALLS,
    OBJECTIVES,
    QUICK_WINDOWS,
    SLOW_BURNS,
    SLOW_WINDOWS,
    THRESHOLDS,
)
from monitoring.rules import RUNBOOK, Alert, Recording, bound
from monitoring.series import OWNER, RPC
from tests.monitoring.catalogue import STAGES, TARGET
from tests.monitoring.promql import check, labels_of
from tests.monitoring.promtool import promtool
from tests.support.together import check_all

RULES = FILES / "rules"
ALERTS = [rule for group in alerts.groups() for rule in group.rules if isinstance(rule, Alert)]
RECORDINGS = [
    rule for group in recording.groups() for rule in group.rules if isinstance(rule, Recording)
]
NAMES = sorted({alert.name for alert in ALERTS})
CASES = sorted((Path(__file__).parent / "rules").glob("*.yaml"))
ROOT = FILES.parents[2]
RUNBOOK_TEXT = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^### (\w+)$", RUNBOOK_TEXT, re.MULTILINE)


# The one in C is ten times as fast, where it is there.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@functools.cache
def content(path: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), _LOADER)
    return parsed


def cases() -> list[dict[str, Any]]:
    tests = [test for path in CASES for test in content(path)["tests"]]
    return [case for test in tests for case in test["alert_rule_test"]]


@pytest.mark.parametrize("file", ["samserve-recording.yaml", "samserve-alerts.yaml"])
def test_prometheus_takes_the_rules(file: str) -> None:
    assert "SUCCESS" in promtool("check", "rules", RULES / file)


# Days of budgets and the others take promtool some seconds each.
@pytest.mark.slow
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_alerts_fire_and_are_quiet(path: Path) -> None:
    promtool("test", "rules", path)


def test_every_alert_is_shown_to_fire_and_to_be_quiet() -> None:
    def check(name: str) -> None:
        about = [case["exp_alerts"] for case in cases() if case["alertname"] == name]
        assert any(about)
        assert not all(about)

    assert {case["alertname"] for case in cases()} == set(NAMES)
    check_all(check, {name: name for name in NAMES})


def test_each_objective_has_cases_of_its_own() -> None:
    for name in ("SamserveAvailabilityBurnFast", "SamserveLatencyBurnFast"):
        fired = {
            alert["exp_labels"]["grpc_method"]
            for case in cases()
            if case["alertname"] == name
            for alert in case["exp_alerts"]
        }
        assert fired == {objective.method for objective in OBJECTIVES}


def test_an_alert_says_what_it_means_and_what_to_do() -> None:
    def check(alert: Alert) -> None:
        annotations = alert.plain()["annotations"]
        assert alert.name.startswith("Samserve")
        assert alert.severity in ("critical", "warning", "info")
        assert re.fullmatch(r"\d+m", alert.lasting)
        assert set(annotations) == {"summary", "description", "runbook_url"}
        assert len(annotations["description"]) > 60
        assert annotations["runbook_url"] == f"{RUNBOOK}#{alert.name.lower()}"
        assert alert.name in HEADINGS

    check_all(check, named(ALERTS))


def named(alerts: list[Alert]) -> dict[str, Alert]:
    """Return alerts by what tells them apart: some have the same name for different RPCs."""
    return {f"{alert.name} {dict(alert.labels)}": alert for alert in alerts}


def test_the_runbook_is_about_alerts_that_exist() -> None:
    assert sorted(HEADINGS) == NAMES


def test_the_runbook_has_a_line_for_every_stage() -> None:
    table = RUNBOOK_TEXT.split("## Which stage is slow")[1].split("\n\n")[2]
    stages = {
        stage
        for line in table.splitlines()[2:]
        for stage in re.findall("`(\\w+)`", line.split("|")[2])
    }

    assert stages == STAGES


def test_settings_that_are_named_exist() -> None:
    sections = {name: set(type(section).model_fields) for name, section in Settings()}
    pages = [path.read_text() for path in (FILES / "dashboards").glob("*.json")]
    texts = "\n".join([RUNBOOK_TEXT, (RULES / "samserve-alerts.yaml").read_text(), *pages])
    # `cache.md` and `triton.md` are documents.
    named = set(re.findall(rf"(?<![\w.])({'|'.join(sections)})\.(?!md\b)([a-z]\w+)\b", texts))

    assert len(named) > 20
    assert {(section, name) for section, name in named if name not in sections[section]} == set()


def test_links_of_the_runbook_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", RUNBOOK_TEXT):
        file, _, anchor = target.partition("#")
        text = (ROOT / "docs" / file).read_text(encoding="utf-8") if file else RUNBOOK_TEXT
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings}
        assert not anchor or anchor in anchors, target


def test_an_alert_names_what_there_is() -> None:
    def names_what_there_is(alert: Alert) -> None:
        labels = check(alert.expr) | {"severity"}
        used = set(re.findall(r"\$labels\.(\w+)", alert.summary + alert.description))
        assert used <= labels | TARGET
        # Whom it is about can be told from its labels, also where several share a Prometheus.
        assert set(OWNER) <= labels or alert.name == "SamserveMetricsAbsent"

    check_all(names_what_there_is, named(ALERTS))


def test_a_recorded_series_has_the_labels_that_its_name_tells() -> None:
    def has_the_labels_of_its_name(rule: Recording) -> None:
        assert check(rule.expr) == labels_of(rule.record)

    check_all(has_the_labels_of_its_name, {rule.record: rule for rule in RECORDINGS})


def test_burns_can_happen_and_their_windows_are_recorded() -> None:
    for objective in OBJECTIVES:
        for budget in (objective.error_budget, objective.slow_budget):
            assert 0 < budget * max(burn.factor for burn in FAST_BURNS) < 1
    windows = {each for burn in FAST_BURNS + SLOW_BURNS for each in (burn.long, burn.short)}
    assert windows <= set(QUICK_WINDOWS + SLOW_WINDOWS)


def test_bounds_of_times_are_bounds_of_the_histograms() -> None:
    compared = {each.within_s for each in OBJECTIVES} | {THRESHOLDS.queue_s, THRESHOLDS.loop_lag_s}

    assert compared <= set(SECONDS)
    written = re.findall(r"le=~?\"[^\"]+\"", (RULES / "samserve-recording.yaml").read_text())
    written += re.findall(r"le=~?\"[^\"]+\"", (RULES / "samserve-alerts.yaml").read_text())
    assert set(written) == {bound(each) for each in compared}


def test_a_bound_matches_what_old_and_new_versions_write() -> None:
    assert bound(0.25) == 'le="0.25"'
    pattern = re.fullmatch(r'le=~"(.+)"', bound(30))
    assert pattern
    regex = pattern[1].replace("\\\\", "\\")
    assert [bool(re.fullmatch(regex, text)) for text in ("30", "30.0", "30.5", "300")] == [
        *(True, True),
        *(False, False),
    ]


# What is not a threshold: units, and that something has happened at all.
_PLAIN = {0.0, 1.0, 1e6}


def test_every_number_of_the_rules_is_an_objective() -> None:
    known = {value for name in THRESHOLDS.__slots__ for value in [getattr(THRESHOLDS, name)]}
    known |= _PLAIN | _numbers_of_burns()
    for alert in ALERTS:
        # Without what is in quotes, windows, and names.
        text = re.sub(r'"[^"]*"|\[[^\]]*\]|offset \w+|[A-Za-z_:][\w:]*', " ", alert.expr)
        numbers = {float(each) for each in re.findall(r"\d+(?:\.\d+)?(?:e\d+)?", text)}
        assert numbers <= known, (alert.name, numbers - known)


def _numbers_of_burns() -> set[float]:
    burns = FAST_BURNS + SLOW_BURNS
    factors = {
        float(f"{burn.factor * budget:g}")
        for burn in burns
        for each in OBJECTIVES
        for budget in (each.error_budget, each.slow_budget)
    }
    lengths = {float(seconds(burn.long)) for burn in burns} | {float(seconds("30m"))}
    return factors | lengths | {float(LEAST_BAD_CALLS)}


def test_calls_are_those_of_the_service() -> None:
    assert RPC.endswith(f'grpc_service="{SERVICE}"')


def test_what_counts_as_bad_is_told_apart_from_mistakes_of_clients() -> None:
    assert not {"INVALID_ARGUMENT", "NOT_FOUND", "CANCELLED", "RESOURCE_EXHAUSTED"} & set(BAD_CODES)
    assert "QUOTA_EXCEEDED" not in BAD_REASONS
