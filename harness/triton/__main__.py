"""Run tritonserver on a model repository, in the foreground, until Ctrl-C."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness.foreground import in_foreground
from harness.triton.environment import ROOT
from harness.triton.server import TritonServer


def main() -> int:
    """Run the command and return its exit status: zero after Ctrl-C or SIGTERM."""
    options = _parser().parse_args()
    server = TritonServer(
        options.model_repository,
        log=Path("/dev/stderr"),
        grpc_port=options.grpc_port,
        http_port=options.http_port,
        metrics_port=options.metrics_port,
    )
    return in_foreground(lambda: _serve(server))


def _serve(server: TritonServer) -> int:
    with server:
        print(_greeting(server), flush=True)
        try:
            return server.wait()
        finally:
            server.stop()


def _greeting(server: TritonServer) -> str:
    return (
        f"Triton listens on {server.grpc_address} (HTTP {server.http_port}, "
        f"metrics {server.metrics_port}); Ctrl-C stops it. Start a gateway that uses it: "
        f"samserve serve --set engine.kind=triton --set triton.url={server.grpc_address}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m harness.triton", description=__doc__)
    parser.add_argument("--model-repository", type=Path, default=ROOT / "model_repository")
    parser.add_argument("--grpc-port", type=int, default=8001)
    parser.add_argument("--http-port", type=int, default=8000)
    parser.add_argument("--metrics-port", type=int, default=8002)
    return parser


if __name__ == "__main__":
    sys.exit(main())
