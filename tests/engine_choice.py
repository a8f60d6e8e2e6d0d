"""The engine of a test.

Tests of behaviour run on every engine of `engines_of`; all other tests run on `FakeEngine` unless
they choose an engine themselves.  ``pytest --engine NAME`` runs all tests on one engine.  The
expected results are those of `FakeEngine`.  The other engines return the same results from real
ONNX models (`tests.engines.drawing`); tests of the default model use that model.
"""

from __future__ import annotations

import atexit
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from samserve.app import Running, default_repository
from samserve.engines.fake import FakeEngine

from harness.triton.server import TritonServer
from tests.engines.drawing import write_drawing_pair
from tests.metric_values import total

ENGINES = ("fake", "onnx", "triton", "triton-message")

Sections = dict[str, dict[str, Any]]

kind = "fake"
"""The engine of the current test, one of `ENGINES`."""

BEHAVIOUR = ("tests/rpc/", "tests/client/", "tests/segmentation/automask/test_service.py")
"""The paths of the tests of behaviour."""

# Exceptions with an engine of their own, or without any: another engine would test the same.
_ONE_ENGINE = (
    "tests/rpc/test_methods.py",
    "tests/rpc/test_requests.py",
    "tests/rpc/test_error_table.py",
    "tests/rpc/test_families.py",
    "tests/rpc/test_mask_formats.py",
    "tests/rpc/test_field_limit.py",
    "tests/rpc/test_prefetch.py",
    "tests/rpc/test_call_counts.py",
    "tests/client/test_advice.py",
    "tests/client/test_call_options.py",
    "tests/client/test_conversion.py",
    "tests/client/test_dns.py",
    "tests/client/test_families.py",
    "tests/client/test_forks.py",
    "tests/client/test_invalid_arguments.py",
    "tests/client/test_mask_formats.py",
    "tests/client/test_other_clients.py",
    "tests/client/test_retries.py",
)

# The most important tests: they run on Triton in `make test` too, and with tensors in messages.
_ALL_TRANSPORTS = ("tests/rpc/test_service.py", "tests/rpc/test_concurrency.py")


def engines_of(path: str) -> dict[str, bool]:
    """Return the engines of the tests of a file, and whether the tests are slow on each.

    *path* is relative to the repository.  The result is empty for tests that are not parametrized.
    """
    if path.startswith(_ONE_ENGINE):
        return {}
    if path.startswith(_ALL_TRANSPORTS):
        return {"fake": False, "onnx": True, "triton": False, "triton-message": True}
    if path.startswith(BEHAVIOUR):
        return {"fake": False, "onnx": True, "triton": True}
    return {}


def drawing_settings(engine: str = "") -> Sections:
    """Return settings of an engine with the masks of `FakeEngine`; by default the current one."""
    match engine or kind:
        case "fake":
            return {"engine": {"kind": "fake"}}
        case "onnx":
            return {"engine": {"kind": "onnx", "model_repository": drawing_repository()}}
        case triton:
            return _triton(triton, triton_server(drawing_repository()))


def default_model_settings() -> Sections:
    """Return settings of an engine that serves the default model."""
    if kind.startswith("triton"):
        return _triton(kind, triton_server(default_repository()))
    return {"engine": {"kind": "onnx"}}


def run_count(service: Running, network: str, outcome: str = "ok") -> int:
    """Count the runs of a network, including the one of the warm-up."""
    if isinstance(service.engine, FakeEngine):
        name = {"encoder": "encode", "decoder": "decode"}[network]
        ended = {"ok": "finished", "cancelled": "cancelled"}[outcome]
        return service.engine.counts[f"{name}_{ended}"]
    labels = {"network": network, "outcome": outcome}
    return int(total(service.metrics.registry, "samserve_engine_runs_total", **labels))


def _triton(engine: str, server: TritonServer) -> Sections:
    memory = "off" if engine == "triton-message" else "required"
    return {
        "engine": {"kind": "triton"},
        "triton": {
            "url": server.grpc_address,
            "shared_memory": memory,
            # A crashed Triton fails a test after one minute.
            "startup_timeout_s": 60,
        },
        # Every service allocates its whole capacity at the start.
        "cache": {"local": {"capacity_bytes": 64 << 20}},
    }


@cache
def drawing_repository() -> Path:
    """Return a repository of the drawing models, which is written once."""
    folder = tempfile.TemporaryDirectory(prefix="samserve-tests-")
    atexit.register(folder.cleanup)
    write_drawing_pair(Path(folder.name))
    return Path(folder.name)


def triton_server(repository: Path) -> TritonServer:
    """Return a running Triton for a repository, which all tests share."""
    return _triton_server(repository).ensure_running()


@cache
def _triton_server(repository: Path) -> TritonServer:
    log = Path(tempfile.mkstemp(prefix="samserve-triton-", suffix=".log")[1])
    server = TritonServer(model_repository=repository, log=log)
    atexit.register(log.unlink, missing_ok=True)
    atexit.register(server.kill)
    return server
