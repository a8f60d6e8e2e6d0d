"""The gRPC channel of a client: retries, message sizes, credentials."""

from __future__ import annotations

import json

import grpc

from samserve.system.addresses import is_local_target, parse_host, parse_target
from samserve.v1 import samserve_pb2 as pb

MAX_MESSAGE_BYTES = 256 << 20
"""The largest message that the client sends or accepts; `Client.models` has the server's limits."""

# A call ends if the server's machine or process is lost: without traffic, the client asks every
# minute.  The server closes connections that ask more often than `server.min_ping_interval_s`.
_KEEPALIVE_MS = 60_000
_KEEPALIVE_TIMEOUT_MS = 20_000

# A call that failed with UNAVAILABLE may be retried: every method of the service is idempotent.
# AutoMask is included, because gRPC never retries a call after the first response message: one
# that has begun to stream is not restarted.
_RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def service_config() -> str:
    """Return the gRPC service config as JSON: load balancing and the retry policy."""
    service = pb.DESCRIPTOR.services_by_name["SegmentationService"]
    names = [{"service": service.full_name, "method": method.name} for method in service.methods]
    config = {
        # If a name resolves to several servers, calls are distributed among them.
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [{"name": names, "retryPolicy": _RETRY_POLICY}],
    }
    return json.dumps(config)


def check_target(target: str) -> None:
    """Raise `ValueError` for an invalid target; the text describes the expected form."""
    if not isinstance(target, str):
        raise TypeError(f"target must be a str, HOST:PORT; got {type(target).__name__}")
    if not target:
        raise ValueError("target: expected HOST:PORT, got nothing")
    has_port = ":" in target.rpartition("]")[2]
    try:
        # Without a port gRPC uses 443.
        (parse_target if has_port else parse_host)(target)
    except ValueError as error:
        raise ValueError(f"target: {error}") from None


def check_credentials(credentials: grpc.ChannelCredentials | None) -> None:
    """Raise `TypeError` for anything but channel credentials, such as the path of a CA."""
    if not isinstance(credentials, grpc.ChannelCredentials | None):
        raise TypeError(
            "credentials must be grpc.ChannelCredentials, such as grpc.ssl_channel_credentials(ca) "
            f"with the bytes of a CA; got {type(credentials).__name__}"
        )


def check_private(target: str) -> None:
    """Raise `ValueError` for a remote target, to which a token would be sent unencrypted."""
    if not is_local_target(target):
        raise ValueError(
            f"a token would be sent to {target} without TLS: pass credentials, "
            "or plaintext=True if the network is trusted"
        )


def open_channel(
    target: str, credentials: grpc.ChannelCredentials | None, server_name: str = ""
) -> grpc.aio.Channel:
    """Open a channel; without *credentials* it is not encrypted.

    The server's certificate must be for *server_name*, or for the host if that is empty.
    """
    options: list[tuple[str, str | int]] = [
        ("grpc.service_config", service_config()),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # gRPC does not retry a call whose request is larger than this; its default, 256 KiB, would
        # exclude most uploads.
        ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        # For TCP; the next is for the response to a ping.
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        # By default, gRPC sends two pings and slows down.
        ("grpc.http2.max_pings_without_data", 0),
        # By default, gRPC resolves a name every 30 s at most, and would miss servers that have
        # moved: a rolling update takes less time.
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
        # By default, gRPC waits for up to two minutes between attempts to connect, however long the
        # server has been available again.
        ("grpc.max_reconnect_backoff_ms", 5000),
    ]
    if server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    if credentials is None:
        # A proxy would see everything, including the token, even for a server on this machine.
        options.append(("grpc.enable_http_proxy", 0))
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, credentials, options=options)
