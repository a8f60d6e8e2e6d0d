"""The installation of tritonserver, the Python of its models, and its folder of backends."""

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
"""A folder created by `scripts/build-triton-backend`, to use NVIDIA's backend."""


@dataclass(frozen=True, slots=True)
class TritonHome:
    """An environment created by ``make .venv-triton/.done``."""

    path: Path
    libraries: Path
    """Folder of libpython."""
    packages: Path
    """Folder of the environment's packages."""
    python: str
    """Minor version of Python, for instance ``3.11``: each has its own stub."""

    @property
    def server(self) -> Path:
        """The tritonserver executable."""
        return self._triton / "bin" / "tritonserver"

    def variables(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return environment variables for the server; ``base`` are those of this process."""
        bundled = self.packages / "nvidia_pytriton.libs"
        return {
            **base,
            # The processes of the models find their packages by the first python3 on the PATH.
            "PATH": f"{self.path / 'bin'}:{base.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": f"{self.libraries}:{bundled}",
            "PYTHONNOUSERSITE": "1",
            # The backend does not compute with numpy; its thread pools would only delay the start.
            "OPENBLAS_NUM_THREADS": "1",
        }

    def copy_backends(self, folder: Path) -> None:
        """Copy the backends into ``folder``: that of the harness, and the Python one it runs on.

        They are copied because tritonserver rejects links that lead out of the folder.  If
        BACKEND_VARIABLE names NVIDIA's backend, it replaces that of the harness.
        """
        python = folder / "python"
        python.mkdir(parents=True)
        bundled = self._triton / "backends" / "python"
        for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
            shutil.copy(bundled / name, python)
        stub = "triton_python_backend_stub"
        shutil.copy(self._triton / "python_backend_stubs" / self.python / stub, python)
        nvidia = nvidia_backend()
        if nvidia is not None:
            shutil.copytree(nvidia, folder / "onnxruntime")
            return
        target = folder / "onnxruntime"
        target.mkdir()
        shutil.copy(BACKEND, target)

    @property
    def _triton(self) -> Path:
        return self.packages / "pytriton" / "tritonserver"


def nvidia_backend() -> Path | None:
    """Return the folder of NVIDIA's backend, if BACKEND_VARIABLE names one."""
    folder = os.environ.get(BACKEND_VARIABLE)
    return Path(folder) if folder else None


def find_home() -> TritonHome:
    """Return the environment in SAMSERVE_TRITON_HOME, or the one created by make."""
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
    result = subprocess.run([python, "-c", query], check=True, capture_output=True, text=True)
    libraries, packages, version = json.loads(result.stdout)
    home = TritonHome(path, Path(libraries), Path(packages), version)
    if not home.server.exists():
        raise HarnessError(f"no nvidia-pytriton in {path}: run `make .venv-triton/.done`")
    return home
