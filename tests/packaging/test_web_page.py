"""The web page in wheels and source distributions, and what an installation without it serves."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hatchling.bridge.app import Application

from tests.packaging.environments import Environment, clean_environment
from tests.support.waiting import until_sync

ROOT = Path(__file__).parents[2]
HOOK = runpy.run_path(str(ROOT / "web" / "hatch_build.py"))
PAGE = "samserve/web_page/"
NODE = ROOT / ".venv-node" / "bin"
NPM = """#!/bin/sh
echo "$@" >>calls
if [ "$1" = run ]; then
    if [ -e broken ]; then echo 'main.tsx: no such module'; exit 1; fi
    /bin/mkdir -p dist && echo new >dist/index.html
fi
"""


class Sources:
    """A tree with the sources of a page, and programs on the PATH in place of Node.js and npm."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.root = folder
        self.web = folder / "web"
        (self.web / "src").mkdir(parents=True)
        (folder / "proto").mkdir()
        programs.mkdir()
        for name in HOOK["INPUTS"]:
            path = folder / name
            if not path.is_dir() and not path.suffix:
                path.mkdir(parents=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            (path / "file" if path.is_dir() else path).write_text("")
        self._programs = programs
        self.set_node("v22.1.0")
        self._write("npm", NPM)

    def set_node(self, version: str) -> None:
        self._write("node", f"#!/bin/sh\necho {version}\n")

    def _write(self, name: str, text: str) -> None:
        path = self._programs / name
        path.write_text(text)
        path.chmod(0o755)

    def write_page(self, age_s: int = 0) -> None:
        index = self.web / "dist" / "index.html"
        index.parent.mkdir()
        index.write_text("old")
        changed = max(path.stat().st_mtime_ns for path in HOOK["inputs"](self.root))
        os.utime(index, ns=(changed - age_s * 10**9,) * 2)

    def included(self, version: str = "standard") -> dict[str, str]:
        """Return the files that the hook adds to a wheel."""
        arguments = (str(self.root), {}, None, None, "", "wheel", Application())
        data: dict[str, dict[str, str]] = {"force_include": {}}
        HOOK["WebPage"](*arguments).initialize(version, data)
        return data["force_include"]

    @property
    def expected(self) -> dict[str, str]:
        return {str(self.web / "dist"): PAGE.rstrip("/")}

    @property
    def index(self) -> str:
        return (self.web / "dist" / "index.html").read_text().strip()

    @property
    def calls(self) -> list[str]:
        """Return the commands of npm, in order."""
        path = self.web / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[0] for line in lines]


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    monkeypatch.delenv("REQUIRE_WEB_PAGE", raising=False)
    return Sources(tmp_path / "root", tmp_path / "programs")


def test_page_is_built_with_its_packages(sources: Sources) -> None:
    assert sources.included() == sources.expected
    assert sources.calls == ["install", "run"]


def test_page_newer_than_its_inputs_is_used_as_it_is(sources: Sources) -> None:
    sources.write_page()

    assert sources.included() == sources.expected
    assert (sources.calls, sources.index) == ([], "old")


@pytest.mark.parametrize("changed", HOOK["INPUTS"])
def test_page_older_than_an_input_is_built_again(sources: Sources, changed: str) -> None:
    sources.write_page()
    path = sources.root / changed
    later = (sources.web / "dist" / "index.html").stat().st_mtime_ns + 1
    os.utime(path / "file" if path.is_dir() else path, ns=(later, later))

    assert sources.included() == sources.expected
    assert sources.index == "new"


def test_generated_code_is_no_input(sources: Sources) -> None:
    sources.write_page()
    generated = sources.root / HOOK["GENERATED"] / "later.ts"
    generated.parent.mkdir()
    generated.write_text("")
    later = generated.stat().st_mtime_ns + 10**9
    os.utime(generated, ns=(later, later))

    sources.included()

    assert sources.calls == []


def test_page_without_its_sources_is_used_as_it_is(sources: Sources) -> None:
    """As in the Dockerfile, whose stage with Python has only the page."""
    sources.write_page(age_s=60)
    shutil.rmtree(sources.web / "src")

    assert sources.included() == sources.expected
    assert sources.index == "old"


@pytest.mark.parametrize("page", [None, 60], ids=["none", "outdated"])
@pytest.mark.parametrize("node", ["missing", "too old", "without npm", "broken"])
def test_wheel_without_node_has_no_page_and_says_so(
    sources: Sources, capsys: pytest.CaptureFixture[str], page: int | None, node: str
) -> None:
    programs = Path(os.environ["PATH"])
    match node:
        case "missing":
            shutil.rmtree(programs)
        case "too old":
            sources.set_node("v20.20.2")
        case "without npm":
            (programs / "npm").unlink()
        case "broken":
            sources.set_node("unknown option >&2; exit 9")
    if page is not None:
        sources.write_page(page)

    assert sources.included() == {}
    shown = capsys.readouterr().err
    assert "built without the web page: Node.js 22 or newer and npm are not on the PATH" in shown
    assert "`make wheel` builds it" in shown
    assert sources.calls == []


def test_failure_of_npm_is_reported_and_leaves_a_wheel_without_page(
    sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    (sources.web / "broken").touch()

    assert sources.included() == {}
    assert "`npm run --silent build` failed: main.tsx: no such module" in capsys.readouterr().err


def test_missing_sources_are_reported(sources: Sources, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(sources.web / "src")

    assert sources.included() == {}
    assert "its sources are missing" in capsys.readouterr().err


def test_missing_page_is_an_error_where_it_is_required(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUIRE_WEB_PAGE", "1")
    sources.set_node("v20.20.2")

    with pytest.raises(HOOK["Unavailable"], match=r"Node\.js 22"):
        sources.included()
    sources.write_page()
    assert sources.included() == sources.expected


def test_editable_installation_builds_no_page(sources: Sources) -> None:
    assert sources.included("editable") == {}
    assert sources.calls == []


def test_make_and_the_hook_build_the_page_from_the_same_inputs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    (listed,) = re.findall(r"(?m)^PAGE_INPUTS := (.*)$", makefile)

    assert sorted(listed.split()) == sorted(HOOK["INPUTS"])
    assert [name for name in HOOK["INPUTS"] if not (ROOT / name).exists()] == []


def test_releases_require_the_page() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    dockerfile = (ROOT / "service" / "Dockerfile").read_text(encoding="utf-8")

    assert re.search(r"REQUIRE_WEB_PAGE=1 \S+pip wheel", makefile)
    assert re.search(r"REQUIRE_WEB_PAGE=1 \S+pip install", dockerfile)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    hatchling("sdist", ROOT, folder, os.environ["PATH"])
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


def hatchling(target: str, root: Path, folder: Path, path: str) -> str:
    """Build a distribution with this search path for programs; return what is shown."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target]
    done = subprocess.run(
        [*command, "--directory", str(folder)],
        cwd=root,
        env={**clean_environment(), "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def page_in(wheel: Path) -> dict[str, bytes]:
    """Return the files of the page in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(PAGE)]
        return {name.removeprefix(PAGE): archive.read(name) for name in names}


@pytest.fixture(scope="module")
def wheel_without_page(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel from the source distribution, built without Node.js."""
    folder = tmp_path_factory.mktemp("without")
    programs = folder / "programs"
    programs.mkdir()
    shown = hatchling("wheel", unpacked, folder, str(programs))
    assert "built without the web page" in shown
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.slow
def test_wheel_has_the_page_and_one_runtime_for_decoding(wheels: tuple[Path, Path]) -> None:
    page = page_in(wheels[1])
    built = {
        path.relative_to(ROOT / "web" / "dist").as_posix(): path.read_bytes()
        for path in (ROOT / "web" / "dist").rglob("*")
        if path.is_file()
    }
    runtimes = [name for name in page if name.endswith(".wasm")]

    assert page == built
    assert [re.sub(r"-[\w-]{8}\.wasm$", "", Path(name).name) for name in runtimes] == [
        "ort-wasm-simd-threaded"
    ]
    assert not [name for name in page if re.search(r"jsep|jspi|asyncify|webgpu|webgl", name)]
    assert not [name for name in page if name.endswith((".map", ".ts", ".tsx"))]


@pytest.mark.slow
def test_source_distribution_has_the_inputs_and_no_outputs(unpacked: Path) -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *HOOK["INPUTS"]]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    missing = [name for name in listed.stdout.split() if not (unpacked / name).is_file()]
    assert missing == []
    assert (unpacked / "web" / "hatch_build.py").is_file()
    for name in ("dist", "node_modules", "src/gen"):
        assert not (unpacked / "web" / name).exists()
    assert not (unpacked / "tests").exists()


@pytest.mark.slow
def test_wheel_of_a_source_distribution_has_the_page(
    unpacked: Path, wheels: tuple[Path, Path], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(unpacked, root)
    packages = root / "web" / "node_modules"
    # npm finds that nothing is missing. Temporary files of tests that run meanwhile are not copied.
    ignore = shutil.ignore_patterns(".vite*")
    shutil.copytree(
        ROOT / "web" / "node_modules", packages, symlinks=True, ignore=ignore, copy_function=link
    )
    try:
        hatchling("wheel", root, tmp_path, f"{NODE}{os.pathsep}{os.environ['PATH']}")
    finally:
        shutil.rmtree(packages)
    (wheel,) = tmp_path.glob("*.whl")

    assert page_in(wheel).keys() == page_in(wheels[1]).keys()


def link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def serving(wheel: Path, folder: Path) -> Iterator[str]:
    """Install a wheel and run its `samserve serve --web`; yield the page's address."""
    environment = Environment.create(folder / "environment")
    environment.install("--no-deps", wheel)
    environment.add_dependencies()
    variables = {
        "SAMSERVE_ENGINE__KIND": "fake",
        "SAMSERVE_SERVER__PORT": "0",
        "SAMSERVE_SERVER__ADMIN_PORT": "0",
        "SAMSERVE_HTTP__PORT": "0",
        "XDG_DATA_HOME": str(folder),
    }
    output = folder / "output"
    with output.open("wb") as file:
        server = subprocess.Popen(
            [environment.program("samserve"), "serve", "--web"],
            cwd=folder,
            env={**clean_environment(), **variables},
            stdout=file,
            stderr=file,
        )
    try:
        pattern = re.compile(r"http://127\.0\.0\.1:\d+/")
        until_sync(lambda: server.poll() is not None or bool(pattern.search(output.read_text())))
        found = pattern.search(output.read_text())
        assert found is not None, output.read_text()
        yield found[0]
    finally:
        server.terminate()
        server.wait()


def fetch(address: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(address, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_installed_wheel_serves_its_page(wheels: tuple[Path, Path], tmp_path: Path) -> None:
    with serving(wheels[1], tmp_path) as address:
        status, text = fetch(address)
        assert (status, text) == (200, page_in(wheels[1])["index.html"].decode())
        for name in re.findall(r'(?:src|href)="\./([^"]+)"', text):
            assert fetch(address + name)[0] == 200, name


@pytest.mark.slow
def test_installation_without_the_page_serves_all_else_and_says_how_to_get_it(
    wheel_without_page: Path, tmp_path: Path
) -> None:
    assert page_in(wheel_without_page) == {}

    with serving(wheel_without_page, tmp_path) as address:
        status, text = fetch(address)
        # A method of the API, which needs a session of the page or credentials.
        call = fetch(f"{address}samserve.v1.SegmentationService/ListModels")

    assert status == 404
    assert "make web" in text
    assert "UNSUPPORTED_HTTP_REQUEST" in call[1]
