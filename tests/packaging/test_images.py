"""The Dockerfile: it is linted, and agrees with the chart and the package."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from tests.chart.rendered import container, only, render
from tests.packaging.images import DOCKERFILE, ROOT, pins, stages
from tests.support.waiting import until_sync


def test_hadolint_reports_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"

    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "")


def test_images_match_the_chart() -> None:
    found = stages()
    pod = only(render(), "Deployment")["spec"]["template"]["spec"]
    ports = {port["containerPort"] for port in container(render(), "gateway")["ports"]}
    runtime = dict(found["runtime"].steps)

    # The last stage is the default target.
    assert list(found)[-1] == "gateway"
    assert "export" in found
    assert found["gateway"].base == found["export"].base == "runtime"
    user, group = runtime["USER"].split(":")
    assert pod["securityContext"]["runAsUser"] == int(user)
    assert pod["securityContext"]["runAsGroup"] == int(group)
    assert json.loads(runtime["CMD"]) == container(render(), "gateway")["command"]
    assert set(dict(found["gateway"].steps)["EXPOSE"].split()) == {str(port) for port in ports}


def test_default_command_listens_on_all_addresses(tmp_path: Path) -> None:
    """Both IPv4 and IPv6; loopback would not be reachable from outside a container."""
    runtime = dict(stages()["runtime"].steps)
    source, target = runtime["COPY"].split()
    (config,) = re.findall(r"SAMSERVE_CONFIG=(\S+)", runtime["ENV"])
    assert config == target
    environment = {
        "PATH": os.defpath,
        "SAMSERVE_CONFIG": str(ROOT / source),
        "SAMSERVE_SERVER__PORT": "0",
        "SAMSERVE_SERVER__ADMIN_PORT": "0",
        "SAMSERVE_LOG__FORMAT": "json",
    }
    name, *arguments = json.loads(runtime["CMD"])
    assert name == "samserve"
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", name, *arguments], env=environment, stdout=log, stderr=log
        )
    try:
        until_sync(lambda: server.poll() is not None or '"serving"' in read(tmp_path / "log"))
        assert server.poll() is None, read(tmp_path / "log")
        lines = (tmp_path / "log").read_text().splitlines()
        (serving,) = (each for each in map(json.loads, lines) if each["event"] == "serving")
        ports = [int(serving[name].rpartition(":")[2]) for name in ("address", "admin")]
        for port in ports:
            for host in ("127.0.0.1", "::1"):
                socket.create_connection((host, port)).close()
    finally:
        server.kill()
        server.wait()


def read(path: Path) -> str:
    return path.read_text()


def test_pins_have_no_url_or_local_version() -> None:
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", f"{n}=={v}") for n, v in pins().items())
    assert {"grpcio", "onnxruntime", "torch"} <= pins().keys()


def test_dockerignore_allows_exactly_what_is_copied() -> None:
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / "service" / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        name
        for stage in ("page", "build")
        for instruction, rest in stages()[stage].steps
        if instruction == "COPY" and "--from=" not in rest
        for name in rest.split()[:-1]
    }

    # Files below folders that are copied.
    copied -= {"web/hatch_build.py", "service/samserve/export/samples"}
    assert allowed == copied


def test_every_import_is_a_declared_dependency() -> None:
    """Including the extra of the module that imports it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    owners_by_module = importlib.metadata.packages_distributions()

    def names(*lists: list[str]) -> set[str]:
        return {Requirement(each).name.lower().replace("_", "-") for part in lists for each in part}

    missing = []
    for path in sorted((ROOT / "service" / "samserve").rglob("*.py")):
        part = path.relative_to(ROOT / "service" / "samserve").as_posix()
        declared = names(
            project["dependencies"],
            # Installed with pydantic, of the same version.
            ["pydantic-core"],
            # `tune` includes `export`.
            extras["export"] if part.startswith(("export/", "tuning/")) else [],
            extras["tune"] if part.startswith("tuning/") else [],
            extras["bridge"] if part.startswith("bridge/") else [],
            extras["ray"] if part.startswith("annotate/ray/") else [],
            extras["geo"] if part == "annotate/tiles/gdal.py" else [],
            extras["heif"] if part in ("client/conversion.py", "datasets/image_files.py") else [],
            extras["tracing"] if part in ("telemetry/tracing/otel.py", "client/tracing.py") else [],
        )
        # CVAT's command line is what imports these modules.
        present = {"samserve", "cvat_sdk"} if part.startswith("cvat/") else {"samserve"}
        for module in imported(path) - sys.stdlib_module_names - present:
            owners = {name.lower().replace("_", "-") for name in owners_by_module.get(module, [])}
            if not owners & declared:
                missing.append(f"{part}: {module}")
    assert missing == []


def imported(path: Path) -> set[str]:
    """Return the packages that a module imports, including inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {each.name.split(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found
