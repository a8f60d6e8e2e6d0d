"""What it costs the gateway to know who calls: CPU time of its process for one small call.

Servers that ask for nothing, for a key, for a key within quotas, for a token, and for a key over
TLS run side by side and are called in turns; the call is ListModels, which does little else.

``python -m benchmarks.access [--rounds 10] [--calls 300]``
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import jwt
import psutil
import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from samserve.security import keys
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

_POLICY = "version = 1\n[quotas.default]\nrequests_per_s = 1e6\npredict = 1000\n"


@dataclass
class Way:
    """One way to be let in: settings of the server, and what the client brings along."""

    settings: dict[str, object]
    credential: str = ""
    authority: trustme.CA | None = None
    spent_us: list[float] = field(default_factory=list)


def ways(folder: Path) -> dict[str, Way]:
    """Make keys, tokens and certificates, and the servers' files for them."""
    key = keys.new_key()
    key_file, policy, jwks = (folder / name for name in ("keys.toml", "policy.toml", "jwks.json"))
    key_file.write_text(keys.entry_for(key, "acme", ("embed",)).toml())
    policy.write_text(_POLICY)
    signer = ec.generate_private_key(ec.SECP256R1())
    public = json.loads(jwt.get_algorithm_by_name("ES256").to_jwk(signer.public_key()))
    jwks.write_text(json.dumps({"keys": [public]}))
    claims = {"iss": "i", "aud": "a", "exp": time.time() + 3600, "tenant": "t", "roles": ["embed"]}
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(folder / "tls.key")
    issued.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    by_key = {"auth.keys_file": key_file}
    tls = {"tls.cert_file": folder / "tls.crt", "tls.key_file": folder / "tls.key"}
    tokens = {"auth.jwks_file": jwks, "auth.jwt_issuer": "i", "auth.jwt_audience": "a"}
    return {
        "nobody is asked": Way({}),
        "key": Way(by_key, key),
        "key and quotas": Way({**by_key, "auth.policy_file": policy}, key),
        "token (ES256)": Way(tokens, jwt.encode(claims, signer, "ES256")),
        "key over TLS": Way({**by_key, **tls}, key, authority),
    }


@contextmanager
def served(way: Way) -> Iterator[tuple[psutil.Process, SegmentationServiceStub]]:
    """Run a server and connect to it."""
    settings = {"engine.kind": "fake", "server.port": 0, "server.admin_port": 0, **way.settings}
    command = [sys.executable, "-m", "samserve", "serve"]
    command += [f"--set={name}={value}" for name, value in settings.items()]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = next(filter(None, (re.search(r"address=(\S+)", line) for line in process.stderr)))
        # Its log goes through a pipe, as in production.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        target = found[1].replace("127.0.0.1", "localhost")
        options = [("grpc.use_local_subchannel_pool", 1)]
        if way.authority is None:
            channel = grpc.insecure_channel(target, options)
        else:
            trusted = grpc.ssl_channel_credentials(way.authority.cert_pem.bytes())
            channel = grpc.secure_channel(target, trusted, options)
        try:
            yield psutil.Process(process.pid), SegmentationServiceStub(channel)
        finally:
            channel.close()
            process.terminate()


def spent_us(process: psutil.Process, stub: SegmentationServiceStub, way: Way, calls: int) -> float:
    """CPU microseconds of the server for one call."""
    metadata = (("authorization", f"Bearer {way.credential}"),) if way.credential else ()
    stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
    before = sum(process.cpu_times()[:2])
    for _ in range(calls):
        stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
    return (sum(process.cpu_times()[:2]) - before) / calls * 1e6


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        all_ways = ways(Path(folder))
        servers = {name: stack.enter_context(served(way)) for name, way in all_ways.items()}
        for _ in range(arguments.rounds):
            for name, way in all_ways.items():
                way.spent_us.append(spent_us(*servers[name], way, arguments.calls))
    medians = {name: statistics.median(way.spent_us) for name, way in all_ways.items()}
    baseline = next(iter(medians.values()))
    print(f"{'caller is known by':18} {'CPU us a call':>14} {'ratio':>7}")
    for name, median in medians.items():
        print(f"{name:18} {median:14.0f} {median / baseline:7.2f}")


if __name__ == "__main__":
    main()
