"""Where tritonserver and the Python of its models are, and the folder of backends they make."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError

ROOT = Path(__file__).parents[2]
BACKEND = Path(__file__).parent / "backend" / "model.py"
HOME_VARIABLE = "SAMSERVE_TRITON_HOME"
BACKEND_VARIABLE = "SAMSERVE_TRITON_BACKEND"
"""Names a folder that `scripts/build-triton-backend` has made, to use NVIDIA's own backend."""


@dataclass(frozen=True, slots=True)
class TritonHome:
    """An environment made by ``make .venv-triton/.done``."""

    path: Path
    libraries: Path
    """Folder of libpython."""
    packages: Path
    """Folder of the environment's packages."""
    python: str
    """Minor version of Python, like ``3.11``: there is a stub for each."""

    @property
    def server(self) -> Path:
        """The program."""
        return self._triton / "bin" / "tritonserver"

    def variables(self, given: Mapping[str, str]) -> dict[str, str]:
        """Environment variables for the server; ``given`` are those of this process."""
        bundled = self.packages / "nvidia_pytriton.libs"
        return {
            **given,
            # The processes of the models find their packages by the first python3 on the PATH.
            "PATH": f"{self.path / 'bin'}:{given.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": f"{self.libraries}:{bundled}",
            "PYTHONNOUSERSITE": "1",
            # Nothing here computes with numpy; its thread pools only cost time at start.
            "OPENBLAS_NUM_THREADS": "1",
        }

    def copy_backends(self, folder: Path) -> None:
        """Fill ``folder`` as tritonserver wants its backends: ours, and the Python one under it.

        It refuses links that lead out of the folder.  Where BACKEND_VARIABLE names NVIDIA's
        backend, that one takes the place of ours.
        """
        python = folder / "python"
        python.mkdir(parents=True)
        bundled = self._triton / "backends" / "python"
        for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
            shutil.copy(bundled / name, python)
        stub = "triton_python_backend_stub"
        shutil.copy(self._triton / "python_backend_stubs" / self.python / stub, python)
        own = own_backend()
        if own is not None:
            shutil.copytree(own, folder / "onnxruntime")
            return
        ours = folder / "onnxruntime"
        ours.mkdir()
        shutil.copy(BACKEND, ours)

    @property
    def _triton(self) -> Path:
        return self.packages / "pytriton" / "tritonserver"


def own_backend() -> Path | None:
    """Return the folder of NVIDIA's own backend, if BACKEND_VARIABLE names one."""
    named = os.environ.get(BACKEND_VARIABLE)
    return Path(named) if named else None


def find_home() -> TritonHome:
    """Return the environment that SAMSERVE_TRITON_HOME names, or the one that make makes."""
    return _inspect(Path(os.environ.get(HOME_VARIABLE) or ROOT / ".venv-triton").absolute())


@functools.cache
def _inspect(path: Path) -> TritonHome:
    python = path / "bin" / "python"
    if not python.exists():
        raise HarnessError(
            f"no Triton environment at {path}: "
            f"run `make .venv-triton/.done`, or set {HOME_VARIABLE}"
        )
    query = (
        "import json, sys, sysconfig as s; print(json.dumps([s.get_config_var('LIBDIR'), "
        "s.get_path('purelib'), '{}.{}'.format(*sys.version_info[:2])]))"
    )
    answer = subprocess.run([python, "-c", query], check=True, capture_output=True, text=True)
    libraries, packages, version = json.loads(answer.stdout)
    home = TritonHome(path, Path(libraries), Path(packages), version)
    if not home.server.exists():
        raise HarnessError(f"no nvidia-pytriton in {path}: run `make .venv-triton/.done`")
    return home
