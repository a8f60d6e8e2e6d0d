"""The Dockerfile: it is linted, and its steps run in directories instead of image layers.

No image is built, which requires a container runtime. The steps install the wheel, so these tests
cover the wheel as well.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import photos
from tests.chart.rendered import container, only, render
from tests.support.waiting import until_sync

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "service" / "Dockerfile"
CONSTRAINTS = ROOT / "service" / "constraints.txt"


@dataclass
class Stage:
    """A stage of the Dockerfile: its base, and its steps as (instruction, arguments)."""

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def stages() -> dict[str, Stage]:
    """Return the stages of the Dockerfile by name."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    current: Stage | None = None
    for line in text.replace("\\\n", " ").splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = rest.split()
            found[name] = current = Stage(base)
        elif instruction and current is not None:
            current.steps.append((instruction, rest))
    return found


def ignored_paths() -> set[Path]:
    """Return the paths below copied folders that .dockerignore excludes."""
    text = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text()
    return {ROOT / line for line in text.splitlines() if not line.startswith(("#", "!", "*"))}


class Builder:
    """Runs the steps of stages in a directory; pip and npm use the configuration of this machine.

    *page* has run the stage of that name.
    """

    def __init__(self, folder: Path, page: Builder | None = None) -> None:
        self.root = folder
        self._here = folder
        self._page = page

    @property
    def program(self) -> Path:
        return self.root / "opt" / "samserve"

    def build(self, name: str) -> None:
        stage = stages()[name]
        path = os.environ["PATH"]
        if stage.base in stages():
            self.build(stage.base)
        elif stage.base.startswith("node:"):
            path = f"{ROOT / '.venv-node' / 'bin'}:{path}"
        for instruction, rest in stage.steps:
            match instruction:
                case "WORKDIR":
                    self._here = self.root / rest.lstrip("/")
                    self._here.mkdir(parents=True, exist_ok=True)
                case "COPY":
                    self._copy(*rest.split())
                case "RUN":
                    self._run(rest, path)
                case "ARG":
                    assert rest.startswith("PIP_FLAGS=")
                case _:
                    raise AssertionError(f"{instruction} is not supported")

    def _copy(self, *names: str) -> None:
        *sources, target = names
        context = ROOT
        if sources[0] == "--from=page":
            assert self._page is not None
            context, sources = self._page.root, [each.lstrip("/") for each in sources[1:]]
        ignored = ignored_paths()

        def skip(folder: str, names: list[str]) -> set[str]:
            return {each for each in names if Path(folder) / each in ignored} | {"__pycache__"}

        for source in sources:
            copy = self._here / target
            copy.parent.mkdir(parents=True, exist_ok=True)
            if (context / source).is_dir():
                shutil.copytree(context / source, copy, ignore=skip)
            else:
                shutil.copy(context / source, copy)

    def _run(self, command: str, path: str) -> None:
        (self.root / "opt").mkdir(exist_ok=True)
        local = command.replace("/opt/samserve", str(self.program))
        local = re.sub(r"^python ", f"{sys.executable} ", local)
        environment = {**os.environ, "PIP_FLAGS": "", "PIP_QUIET": "1", "PATH": path}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            ["sh", "-ec", local],
            cwd=self._here,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def in_image(builder: Builder, *command: str, cwd: Path, code: int = 0) -> str:
    """Run a command with the image's environment; return its output, with stderr if it fails."""
    environment = {"PATH": f"{builder.program / 'bin'}:/usr/bin:/bin", "HOME": str(cwd)}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + (done.stderr if code else "")


def pins() -> dict[str, str]:
    lines = (line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#"))
    return {name: version for name, _, version in (line.partition("==") for line in lines)}


def packages(builder: Builder, folder: Path) -> dict[str, str]:
    listed = in_image(builder, "python", "-m", "pip", "list", "--format=json", cwd=folder)
    found = {each["name"].lower().replace("_", "-"): each["version"] for each in json.loads(listed)}
    return {name: version.partition("+")[0] for name, version in found.items()}


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


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    builder = Builder(tmp_path_factory.mktemp("page"))
    builder.build("page")
    # Hundreds of megabytes, which pytest would keep.
    shutil.rmtree(builder.root / "src" / "web" / "node_modules")
    return builder


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, page: Builder) -> Builder:
    builder = Builder(tmp_path_factory.mktemp("image"), page)
    builder.build("build")
    return builder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gateway_image_serves_and_is_small(gateway: Builder, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(photos.files()[0])
    options = ("--point", "250,200", "--out", "overlay.png", "--json", "response.json")

    in_image(gateway, "samserve", "predict", "photo.jpg", *options, cwd=tmp_path)

    response = json.loads((tmp_path / "response.json").read_text())
    assert (response["model"], response["image_size"]) == ("sam_tiny", [512, 512])
    assert response["results"][0]["masks"][0]["area"] > 0
    assert (tmp_path / "overlay.png").stat().st_size > 10_000
    used = sum(path.lstat().st_size for path in gateway.program.rglob("*") if path.is_file())
    assert used < 600 << 20
    # The content of the wheel, uncompressed.
    (package,) = gateway.program.glob("lib/python*/site-packages/samserve")
    wheel = [path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in wheel) < 40 << 20
    assert package / "web_page" / "index.html" in wheel


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gateway_image_has_pinned_runtime_packages_only(gateway: Builder, tmp_path: Path) -> None:
    installed = packages(gateway, tmp_path)

    assert installed.keys().isdisjoint({"torch", "onnx", "transformers", "scikit-image"})
    for name in ("samserve", "pip", "setuptools"):
        installed.pop(name, None)
    assert installed.items() <= pins().items()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", ["export small.pth", "models pull mobile_sam"])
def test_commands_without_their_extra_name_it(
    gateway: Builder, tmp_path: Path, command: str
) -> None:
    arguments = (*command.split(), "--repository", "models")

    output = in_image(gateway, "samserve", *arguments, cwd=tmp_path, code=1)

    assert output.count("\n") == 1
    assert "pip install '.[export]'" in output


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gateway_image_has_the_default_model_at_the_path_of_the_chart(gateway: Builder) -> None:
    command = container(render(), "copy-models")["command"]
    assert command[2] == "/opt/samserve/models/."
    models = gateway.program / "models"
    assert sorted(path.name for path in models.iterdir()) == [
        "sam_tiny_decoder",
        "sam_tiny_encoder",
    ]
    assert (models / "sam_tiny_encoder" / "config.pbtxt").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_export_image_exports_and_serves(tmp_path: Path, page: Builder) -> None:
    """The extra is complete, and the photos for the parity check are included."""
    import torch  # noqa: PLC0415 - slow import, for this test only

    from tests.oracle.sam import TINY, original  # noqa: PLC0415 - imports transformers

    builder = Builder(tmp_path, page)
    builder.build("build-export")
    torch.manual_seed(0)
    torch.save(original(TINY).state_dict(), tmp_path / "small.pth")
    (tmp_path / "photo.jpg").write_bytes(photos.files()[0])

    def samserve(*arguments: str) -> str:
        return in_image(builder, "samserve", *arguments, cwd=tmp_path)

    output = samserve("export", "small.pth", "--repository", "models")
    served = ("--set", "engine.model_repository=models", "--json", "-")
    response = samserve("predict", "photo.jpg", "--point", "250,200", *served)

    assert packages(builder, tmp_path)["torch"] == pins()["torch"]
    assert "75 prompts on 3 images" in output
    assert json.loads(response.splitlines()[-1])["model"] == "small"
    assert "sam_vit_h" in samserve("models", "catalog")
