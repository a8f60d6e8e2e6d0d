"""Prometheus rules: each alert fires and stays inactive as expected, evaluated by promtool."""

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
    ERROR_CODES,
    ERROR_REASONS,
    FAST_BURN_RATES,
    LONG_WINDOWS,
    MIN_BAD_CALLS,
    OBJECTIVES,
    SHORT_WINDOWS,
    SLOW_BURN_RATES,
    THRESHOLDS,
)
from monitoring.queries import dashboards
from monitoring.rules import RUNBOOK, Alert, Recording, bucket
from monitoring.series import INSTALLATION_LABELS, RPC
from tests.monitoring.catalogue import STAGES, TARGET
from tests.monitoring.promql import check, labels_of
from tests.monitoring.promtool import promtool
from tests.support.cases import check_all

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


# The loader in C is ten times as fast, but optional.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@functools.cache
def content(path: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), _LOADER)
    return parsed


def cases() -> list[dict[str, Any]]:
    tests = [test for path in CASES for test in content(path)["tests"]]
    return [case for test in tests for case in test["alert_rule_test"]]


@pytest.mark.parametrize("file", ["samserve-recording.yaml", "samserve-alerts.yaml"])
def test_promtool_accepts_the_rules(file: str) -> None:
    assert "SUCCESS" in promtool("check", "rules", RULES / file)


# promtool needs some seconds for each file, since some cases span days.
@pytest.mark.slow
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_alert_cases_pass(path: Path) -> None:
    promtool("test", "rules", path)


def test_every_alert_has_a_firing_and_an_inactive_case() -> None:
    def check(name: str) -> None:
        expected = [case["exp_alerts"] for case in cases() if case["alertname"] == name]
        assert any(expected)
        assert not all(expected)

    assert {case["alertname"] for case in cases()} == set(NAMES)
    check_all(check, {name: name for name in NAMES})


def test_each_objective_has_firing_cases() -> None:
    for name in ("SamserveAvailabilityBurnFast", "SamserveLatencyBurnFast"):
        fired = {
            alert["exp_labels"]["grpc_method"]
            for case in cases()
            if case["alertname"] == name
            for alert in case["exp_alerts"]
        }
        assert fired == {objective.method for objective in OBJECTIVES}


def test_every_alert_has_annotations_and_a_runbook_section() -> None:
    def check(alert: Alert) -> None:
        annotations = alert.to_dict()["annotations"]
        assert alert.name.startswith("Samserve")
        assert alert.severity in ("critical", "warning", "info")
        assert re.fullmatch(r"\d+m", alert.for_)
        assert set(annotations) == {"summary", "description", "runbook_url"}
        assert len(annotations["description"]) > 60
        assert annotations["runbook_url"] == f"{RUNBOOK}#{alert.name.lower()}"
        assert alert.name in HEADINGS

    check_all(check, named(ALERTS))


def named(alerts: list[Alert]) -> dict[str, Alert]:
    """Return alerts by name and labels: some have the same name for different RPCs."""
    return {f"{alert.name} {dict(alert.labels)}": alert for alert in alerts}


def test_runbook_sections_are_those_of_the_alerts() -> None:
    assert sorted(HEADINGS) == NAMES


def test_runbook_table_contains_every_stage() -> None:
    table = RUNBOOK_TEXT.split("## Slow stages")[1].split("\n\n")[2]
    stages = {
        stage
        for line in table.splitlines()[2:]
        for stage in re.findall("`(\\w+)`", line.split("|")[2])
    }

    assert stages == STAGES


def test_settings_in_texts_exist() -> None:
    sections = {name: set(type(section).model_fields) for name, section in Settings()}
    pages = [path.read_text() for path in (FILES / "dashboards").glob("*.json")]
    texts = "\n".join([RUNBOOK_TEXT, (RULES / "samserve-alerts.yaml").read_text(), *pages])
    # `cache.md` and `triton.md` are documents.
    used = set(re.findall(rf"(?<![\w.])({'|'.join(sections)})\.(?!md\b)([a-z]\w+)\b", texts))

    assert len(used) > 20
    assert {(section, name) for section, name in used if name not in sections[section]} == set()


def test_quoted_titles_in_the_runbook_exist() -> None:
    titles = {panel["title"] for page in dashboards() for panel in page["panels"]}
    quoted = set(re.findall(r'"([A-Z][^"\n]+)"', RUNBOOK_TEXT))

    assert len(quoted) > 15
    assert quoted <= titles


def test_runbook_links_are_valid() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", RUNBOOK_TEXT):
        file, _, anchor = target.partition("#")
        text = (ROOT / "docs" / file).read_text(encoding="utf-8") if file else RUNBOOK_TEXT
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings}
        assert not anchor or anchor in anchors, target


def test_alerts_use_existing_metrics_and_labels() -> None:
    def check_alert(alert: Alert) -> None:
        labels = check(alert.expr) | {"severity"}
        used = set(re.findall(r"\$labels\.(\w+)", alert.summary + alert.description))
        assert used <= labels | TARGET
        # The labels identify the installation, also if several share a Prometheus.
        assert set(INSTALLATION_LABELS) <= labels or alert.name == "SamserveMetricsAbsent"

    check_all(check_alert, named(ALERTS))


def test_recorded_series_have_the_labels_in_their_name() -> None:
    def check_labels(rule: Recording) -> None:
        assert check(rule.expr) == labels_of(rule.record)

    check_all(check_labels, {rule.record: rule for rule in RECORDINGS})


def test_burn_rates_are_possible_and_their_windows_are_recorded() -> None:
    for objective in OBJECTIVES:
        for budget in (objective.error_budget, objective.latency_budget):
            assert 0 < budget * max(rate.factor for rate in FAST_BURN_RATES) < 1
    windows = {
        each for rate in FAST_BURN_RATES + SLOW_BURN_RATES for each in (rate.long, rate.short)
    }
    assert windows <= set(SHORT_WINDOWS + LONG_WINDOWS)


def test_time_thresholds_are_bucket_bounds() -> None:
    compared = {each.threshold_s for each in OBJECTIVES} | {
        THRESHOLDS.queue_s,
        THRESHOLDS.loop_lag_s,
    }

    assert compared <= set(SECONDS)
    written = re.findall(r"le=~?\"[^\"]+\"", (RULES / "samserve-recording.yaml").read_text())
    written += re.findall(r"le=~?\"[^\"]+\"", (RULES / "samserve-alerts.yaml").read_text())
    assert set(written) == {bucket(each) for each in compared}


def test_bucket_matches_both_spellings_of_a_whole_number() -> None:
    assert bucket(0.25) == 'le="0.25"'
    pattern = re.fullmatch(r'le=~"(.+)"', bucket(30))
    assert pattern
    regex = pattern[1].replace("\\\\", "\\")
    assert [bool(re.fullmatch(regex, text)) for text in ("30", "30.0", "30.5", "300")] == [
        *(True, True),
        *(False, False),
    ]


# Numbers that are not thresholds: units, and "at least one event".
_PLAIN = {0.0, 1.0, 1e6}


def test_every_number_in_the_alerts_is_defined_in_objectives() -> None:
    known = {value for name in THRESHOLDS.__slots__ for value in [getattr(THRESHOLDS, name)]}
    known |= _PLAIN | _burn_rate_numbers()
    for alert in ALERTS:
        # Without quoted text, windows and names.
        text = re.sub(r'"[^"]*"|\[[^\]]*\]|offset \w+|[A-Za-z_:][\w:]*', " ", alert.expr)
        numbers = {float(each) for each in re.findall(r"\d+(?:\.\d+)?(?:e\d+)?", text)}
        assert numbers <= known, (alert.name, numbers - known)


def _burn_rate_numbers() -> set[float]:
    rates = FAST_BURN_RATES + SLOW_BURN_RATES
    factors = {
        float(f"{rate.factor * budget:g}")
        for rate in rates
        for each in OBJECTIVES
        for budget in (each.error_budget, each.latency_budget)
    }
    lengths = {float(seconds(rate.long)) for rate in rates} | {float(seconds("30m"))}
    return factors | lengths | {float(MIN_BAD_CALLS)}


def test_rpc_selector_names_the_service() -> None:
    assert RPC.endswith(f'grpc_service="{SERVICE}"')


def test_client_errors_do_not_count_as_failures() -> None:
    assert not {"INVALID_ARGUMENT", "NOT_FOUND", "CANCELLED", "RESOURCE_EXHAUSTED"} & set(
        ERROR_CODES
    )
    assert "QUOTA_EXCEEDED" not in ERROR_REASONS
