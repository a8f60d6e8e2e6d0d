"""The channel: retries, message sizes, credentials."""

from __future__ import annotations

import json

import grpc

from samserve.addresses import is_loopback
from samserve.v1 import samserve_pb2 as pb

MAX_MESSAGE_BYTES = 256 << 20
"""What this client sends and takes at most; the server's own limits are in `Client.models`."""

# A call that has failed with UNAVAILABLE may be repeated: every method of the service gives the
# same answer twice.  AutoMask is here too, because gRPC never repeats a call of which a part of
# the answer has arrived: a search that has begun to stream is not begun again.
_RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def service_config() -> str:
    """Write the gRPC service config as JSON: what is retried, and how, over all addresses."""
    service = pb.DESCRIPTOR.services_by_name["SegmentationService"]
    names = [{"service": service.full_name, "method": method.name} for method in service.methods]
    config = {
        # Where a name leads to several servers, each gets its part.
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [{"name": names, "retryPolicy": _RETRY_POLICY}],
    }
    return json.dumps(config)


def check_private(target: str) -> None:
    """Raise `ValueError` for a target that a token would reach in the clear, over a network."""
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return
    address = rest if scheme in ("dns", "ipv4", "ipv6") else target
    # With an authority, `dns://SERVER/NAME`, it is somebody else who says where the name leads.
    host, _, port = address.removeprefix("///").rpartition(":")
    if not is_loopback(host if port.isdecimal() else address.removeprefix("///")):
        raise ValueError(
            f"a token would go to {target} without TLS: give credentials, "
            "or plaintext=True where the network is trusted"
        )


def open_channel(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    """Open a channel; without *credentials* it is not encrypted."""
    options: list[tuple[str, str | int]] = [
        ("grpc.service_config", service_config()),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # gRPC does not repeat a call whose request is larger than this; its default, 256 KiB,
        # would leave out most uploads.
        ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
    ]
    if credentials is None:
        # A proxy would see everything, a token too, also on the way to this machine itself.
        options.append(("grpc.enable_http_proxy", 0))
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, credentials, options=options)
