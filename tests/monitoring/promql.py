"""Checks of a PromQL expression: its metrics, labels and values, and the labels of its result."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import promql_parser as promql

from tests.monitoring.catalogue import LABELS, TARGET, VALUES, jobs_of

_LEVELS = ("namespace", "release", "grpc_method", "model", "stage")
_LITERALS = re.compile(r"[A-Za-z0-9_.]+(\|[A-Za-z0-9_.]+)*")
_KEEP_LABELS = ("topk", "bottomk", "limitk")
_SCALARS = (promql.NumberLiteral, promql.StringLiteral)


class InvalidQuery(Exception):
    """An expression uses an unknown metric, label or value."""


def labels_of(metric: str) -> frozenset[str]:
    """Return the labels of a metric, or of the series of a recording rule."""
    if ":" in metric:
        level = metric.split(":", maxsplit=1)[0]
        return frozenset(label for label in _LEVELS if label in level)
    if metric not in LABELS:
        raise InvalidQuery(f"no metric {metric}")
    return LABELS[metric] | TARGET


def selectors(expr: promql.Expr) -> Iterator[promql.VectorSelector]:
    """Yield all selectors of a parsed expression."""
    found: list[promql.VectorSelector] = []

    def visit(node: object) -> None:
        if isinstance(node, promql.MatrixSelector):
            found.append(node.vector_selector)
        elif isinstance(node, promql.VectorSelector):
            found.append(node)

    promql.walk(expr, visit)
    yield from found


def check(text: str) -> frozenset[str]:
    """Return the labels of the result; raise `InvalidQuery` for unknown metrics, labels, values."""
    parsed = promql.parse(text)
    for selector in selectors(parsed):
        for matcher in selector.matchers.matchers:
            _check_matcher(selector.name or "", matcher)
    labels = _Labels().of(parsed)
    for selector in selectors(parsed):
        _check_job(selector)
    return labels


def _check_job(selector: promql.VectorSelector) -> None:
    """Raise `InvalidQuery` for a selector that would include foreign series."""
    metric = selector.name or ""
    # Recorded series inherit the labels that their rules select.
    if ":" in metric or metric == "ALERTS":
        return
    named = {each.name: each.value.split("|") for each in selector.matchers.matchers}
    if not named.get("job") or set(named["job"]) - set(jobs_of(metric)):
        raise InvalidQuery(f"{metric}: the job is not one of {jobs_of(metric)}")
    if metric.startswith("grpc_") and "grpc_service" not in named:
        raise InvalidQuery(f"{metric}: no gRPC service")


def _check_matcher(metric: str, matcher: promql.Matcher) -> None:
    if matcher.name not in labels_of(metric):
        raise InvalidQuery(f"{metric} has no label {matcher.name}")
    known = VALUES.get(matcher.name)
    if known is None or not _LITERALS.fullmatch(matcher.value):
        return
    unknown = set(matcher.value.split("|")) - known
    if unknown:
        raise InvalidQuery(f"{metric}: unknown values of {matcher.name}: {sorted(unknown)}")


@dataclass(frozen=True)
class _Labels:
    """The labels of the result, by the kind of expression."""

    def of(self, node: object) -> frozenset[str]:
        for kind, handle in self._kinds():
            if isinstance(node, kind):
                return handle(node)
        raise InvalidQuery(f"unsupported node {type(node).__name__}")

    def _kinds(self) -> Iterator[tuple[type | tuple[type, ...], Callable[..., frozenset[str]]]]:
        yield _SCALARS, lambda node: frozenset()
        yield promql.VectorSelector, lambda node: labels_of(node.name)
        yield promql.MatrixSelector, lambda node: labels_of(node.vector_selector.name)
        yield (
            (promql.ParenExpr, promql.SubqueryExpr, promql.UnaryExpr),
            lambda node: self.of(node.expr),
        )
        yield promql.Call, self._call
        yield promql.AggregateExpr, self._aggregate
        yield promql.BinaryExpr, self._binary

    def _call(self, node: promql.Call) -> frozenset[str]:
        inner = frozenset[str]().union(*(self.of(each) for each in node.args))
        if node.func.name == "label_replace":
            target, source = node.args[1].val, node.args[3].val
            if source not in inner:
                raise InvalidQuery(f"label_replace reads {source}")
            return inner | {target}
        return inner - {"le"} if node.func.name == "histogram_quantile" else inner

    def _aggregate(self, node: promql.AggregateExpr) -> frozenset[str]:
        inner = self.of(node.expr)
        by = frozenset(node.modifier.labels) if node.modifier else frozenset[str]()
        if by - inner:
            raise InvalidQuery(f"by {sorted(by - inner)}: not in {node.expr.prettify()}")
        return inner if str(node.op) in _KEEP_LABELS and not by else by

    def _binary(self, node: promql.BinaryExpr) -> frozenset[str]:
        left, right = self.of(node.lhs), self.of(node.rhs)
        scalars = isinstance(node.lhs, _SCALARS), isinstance(node.rhs, _SCALARS)
        if any(scalars):
            return right if scalars[0] else left
        matching = node.modifier.matching if node.modifier else None
        if matching is None and str(node.op) != "or" and left != right:
            raise InvalidQuery(f"sides with different labels never match: {node.prettify()}")
        if matching is not None and set(matching.labels) - (left & right) - {"le"}:
            raise InvalidQuery(f"matches on a label that one side lacks: {node.prettify()}")
        return left | right if str(node.op) == "or" else left
