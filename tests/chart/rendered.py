"""Renders the chart with Helm, and finds parts of the rendered objects."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

from chart.paths import CHART
from tests.support.cases import check_all

Object = dict[str, Any]

# The loader in C, if available, is ten times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

VALUES_FILES = sorted((CHART / "ci").glob("*-values.yaml"))
RELEASE, NAMESPACE = "demo", "vision"


def ci_values(name: str) -> dict[str, Any]:
    """Return the values of a file in ``ci/``."""
    values = yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text(encoding="utf-8"))
    return values or {}


def render(values: dict[str, Any] | None = None, *, release: str = RELEASE) -> list[Object]:
    """Return all rendered objects. Raises `HelmError` for invalid values."""
    return [each for each in _render(json.dumps(values or {}), release) if each is not None]


def notes(values: dict[str, Any] | None = None) -> str:
    """Return the text that Helm prints after an installation."""
    with Chart.load(CHART) as chart:
        return chart.render(values, name=RELEASE, namespace=NAMESPACE)[
            "samserve/templates/NOTES.txt"
        ]


@functools.lru_cache(maxsize=64)
def _render(values: str, release: str) -> tuple[Object, ...]:
    with Chart.load(CHART) as chart:
        files = chart.render(json.loads(values), name=release, namespace=NAMESPACE)
    return tuple(
        each
        for path, text in files.items()
        if not path.endswith("NOTES.txt")
        for each in yaml.load_all(text, _LOADER)
    )


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [each for each in objects if each["kind"] in kinds]


def find_object(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = (each for each in of_kind(objects, kind) if each["metadata"]["name"] == name)
    return found


def component_of(each: Object) -> str:
    """Return the component label of an object."""
    return str(each["metadata"]["labels"]["app.kubernetes.io/component"])


def deployment(objects: list[Object], component: str) -> Object:
    (found,) = (each for each in of_kind(objects, "Deployment") if component_of(each) == component)
    return found


def gateway_deployment(objects: list[Object]) -> Object:
    """Return the Deployment of the gateways."""
    return deployment(objects, "gateway")


def only(objects: list[Object], kind: str) -> Object:
    (found,) = of_kind(objects, kind)
    return found


def pods(objects: list[Object]) -> list[Object]:
    """Return the pods and the pod templates of Deployments and Jobs."""
    return [
        each if each["kind"] == "Pod" else each["spec"]["template"]
        for each in of_kind(objects, "Deployment", "Job", "Pod")
    ]


def pod_spec(objects: list[Object], component: str = "gateway") -> Object:
    found: Object = deployment(objects, component)["spec"]["template"]["spec"]
    return found


def containers(pod: Object) -> list[Object]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def mounts(pod: Object) -> list[Object]:
    return [mount for each in containers(pod) for mount in each.get("volumeMounts", [])]


def container(objects: list[Object], name: str) -> Object:
    (found,) = (each for pod in pods(objects) for each in containers(pod) if each["name"] == name)
    return found


def config_text(objects: list[Object]) -> str:
    maps = (each.get("data", {}) for each in of_kind(objects, "ConfigMap"))
    (text,) = (each["config.toml"] for each in maps if "config.toml" in each)
    return str(text)


def config_of(objects: list[Object], folder: Path) -> Path:
    """Write the gateway's settings file; return its path."""
    path = folder / "config.toml"
    path.write_text(config_text(objects))
    return path


class RenderedValues(Mapping[str, list[Object]]):
    """The objects of each values file in ``ci/``, by its name; rendered on first access."""

    def __init__(self) -> None:
        self._names = [path.name.removesuffix("-values.yaml") for path in VALUES_FILES]

    def __getitem__(self, name: str) -> list[Object]:
        if name not in self._names:
            raise KeyError(name)
        return render(ci_values(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


RENDERED = RenderedValues()


def for_each_values_file(check: Callable[[list[Object]], None]) -> Callable[[], None]:
    """Return a test that runs *check* for each values file and names those that fail."""

    def test() -> None:
        check_all(check, RENDERED)

    test.__name__, test.__doc__ = check.__name__, check.__doc__
    return test
