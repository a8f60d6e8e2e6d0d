"""A channel for stubs that you generate: retries, keepalive, and large messages.

Libraries on gRPC's C core (Python, C++, Ruby, PHP) take options of the same names.
`samserve.client` has all of this built in.
"""

from __future__ import annotations

from pathlib import Path

import grpc

_MAX_MESSAGE_BYTES = 256 << 20

OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.service_config", Path(__file__).with_name("service_config.json").read_text("utf-8")),
    # A call whose request is larger is not retried; the default, 256 KiB, excludes most images.
    ("grpc.per_rpc_retry_buffer_size", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    # The default is 4 MiB.
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    # During a call without traffic, ask every minute whether the server is still there.  Not more
    # often than `server.min_ping_interval_s` allows: the server closes such a connection.
    ("grpc.keepalive_time_ms", 60_000),
    # How long to wait for an answer: of the machine (TCP), and of the server (HTTP/2).
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),
    # Ping as long as the call takes; by default, C core sends two pings and slows down.
    ("grpc.http2.max_pings_without_data", 0),
]


def open_channel(target: str) -> grpc.Channel:
    """Open a channel without TLS; with TLS, pass ``OPTIONS`` to ``grpc.secure_channel``."""
    return grpc.insecure_channel(target, options=OPTIONS)
