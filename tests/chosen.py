"""The engine that a test runs on.

Tests of behaviour run on every engine, as `engines_of` says; all other tests run on `FakeEngine`
unless they choose an engine themselves.  ``pytest --engine NAME`` runs everything on one engine.
The expectations are those of `FakeEngine`.  The other engines serve the same answers from real ONNX
models (`tests.engines.drawing`); tests about the default model use that one.
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
from tests.samples import total

ENGINES = ("fake", "onnx", "triton", "triton-message")

Sections = dict[str, dict[str, Any]]

kind = "fake"
"""One of `ENGINES`: that of the test which runs."""

BEHAVIOUR = ("tests/rpc/", "tests/client/", "tests/segmentation/automask/test_service.py")
"""Where the tests of behaviour are."""

# There, but with an engine of their own or with none: another one would repeat what they say.
_ON_ONE = (
    "tests/rpc/test_methods.py",
    "tests/rpc/test_requests.py",
    "tests/rpc/test_error_table.py",
    "tests/rpc/test_field_limit.py",
    "tests/rpc/test_prefetch.py",
    "tests/rpc/test_tally.py",
    "tests/client/test_advice.py",
    "tests/client/test_call_options.py",
    "tests/client/test_dns.py",
    "tests/client/test_forks.py",
    "tests/client/test_mistakes.py",
    "tests/client/test_other_clients.py",
    "tests/client/test_retries.py",
)

# What says most in short: on Triton it runs in `make test`, with tensors in messages only it does.
_IN_SHORT = ("tests/rpc/test_service.py", "tests/rpc/test_concurrency.py")


def engines_of(path: str) -> dict[str, bool]:
    """Name the engines that the tests of a file run on, and whether that is slow.

    *path* is relative to the repository; empty for tests that are not about behaviour.
    """
    if path.startswith(_ON_ONE):
        return {}
    if path.startswith(_IN_SHORT):
        return {"fake": False, "onnx": True, "triton": False, "triton-message": True}
    if path.startswith(BEHAVIOUR):
        return {"fake": False, "onnx": True, "triton": True}
    return {}


def drawing(engine: str = "") -> Sections:
    """Settings of an engine that draws as `FakeEngine` does; the chosen one if none is named."""
    match engine or kind:
        case "fake":
            return {"engine": {"kind": "fake"}}
        case "onnx":
            return {"engine": {"kind": "onnx", "model_repository": drawing_repository()}}
        case triton:
            return _triton(triton, triton_server(drawing_repository()))


def default_model() -> Sections:
    """Settings of an engine that serves the default model."""
    if kind.startswith("triton"):
        return _triton(kind, triton_server(default_repository()))
    return {"engine": {"kind": "onnx"}}


def runs(service: Running, network: str, outcome: str = "ok") -> int:
    """Count the runs of a network, the one of the warm-up among them."""
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
            # A Triton that has crashed fails a test at once, and not after minutes.
            "startup_s": 60,
        },
        # Every service of the suite takes its arena at once.
        "store": {"capacity_bytes": 64 << 20},
    }


@cache
def drawing_repository() -> Path:
    """Write the pair that draws, once."""
    folder = tempfile.TemporaryDirectory(prefix="samserve-tests-")
    atexit.register(folder.cleanup)
    write_drawing_pair(Path(folder.name))
    return Path(folder.name)


def triton_server(repository: Path) -> TritonServer:
    """Give a running Triton on a repository, which tests share until they end."""
    return _triton_server(repository).revive()


@cache
def _triton_server(repository: Path) -> TritonServer:
    log = Path(tempfile.mkstemp(prefix="samserve-triton-", suffix=".log")[1])
    server = TritonServer(model_repository=repository, log=log)
    atexit.register(log.unlink, missing_ok=True)
    atexit.register(server.kill)
    return server
