"""The channel: retries, message sizes, credentials."""

from __future__ import annotations

import json

import grpc

from samserve.system.addresses import is_local_target, parse_host, parse_target
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


def check_target(target: str) -> None:
    """Raise `ValueError` for what gRPC would not connect to, and say how to write it."""
    if not isinstance(target, str):
        raise TypeError(f"target must be a str, HOST:PORT; got {type(target).__name__}")
    if not target:
        raise ValueError("target: expected HOST:PORT, got nothing")
    has_port = ":" in target.rpartition("]")[2]
    try:
        # Without a port gRPC takes 443.
        (parse_target if has_port else parse_host)(target)
    except ValueError as error:
        raise ValueError(f"target: {error}") from None


def check_credentials(credentials: grpc.ChannelCredentials | None) -> None:
    """Raise `TypeError` for what are no credentials of a channel, a file of a CA for instance."""
    if not isinstance(credentials, grpc.ChannelCredentials | None):
        raise TypeError(
            "credentials must be grpc.ChannelCredentials, such as grpc.ssl_channel_credentials(ca) "
            f"with the bytes of a CA; got {type(credentials).__name__}"
        )


def check_private(target: str) -> None:
    """Raise `ValueError` for a target that a token would reach in the clear, over a network."""
    if not is_local_target(target):
        raise ValueError(
            f"a token would go to {target} without TLS: give credentials, "
            "or plaintext=True where the network is trusted"
        )


def open_channel(
    target: str, credentials: grpc.ChannelCredentials | None, server_name: str = ""
) -> grpc.aio.Channel:
    """Open a channel; without *credentials* it is not encrypted.

    The server's certificate has to be for *server_name*, or, where that is empty, for the host.
    """
    options: list[tuple[str, str | int]] = [
        ("grpc.service_config", service_config()),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # gRPC does not repeat a call whose request is larger than this; its default, 256 KiB,
        # would leave out most uploads.
        ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
        # The default is 30 s between two looks at a name, in which servers that have moved would
        # not be found: a rolling update takes less than that.
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ]
    if server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    if credentials is None:
        # A proxy would see everything, a token too, also on the way to this machine itself.
        options.append(("grpc.enable_http_proxy", 0))
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, credentials, options=options)
