"""Old names of settings and of keys in the policy file, so that errors can name the new one.

They can be removed in the first release after 1.0.
"""

from __future__ import annotations

from collections.abc import Mapping

SETTINGS: Mapping[str, str] = {
    "server.plaintext": "server.allow_plaintext",
    "server.receive_s": "server.receive_timeout_s",
    "server.send_s": "server.send_timeout_s",
    "server.metadata_bytes": "server.max_metadata_bytes",
    "server.streams": "server.max_concurrent_streams",
    "server.connections": "server.max_connections",
    "server.handshake_s": "server.handshake_timeout_s",
    "server.idle_s": "server.idle_timeout_s",
    "server.connection_age_s": "server.max_connection_age_s",
    "server.ping_interval_s": "server.min_ping_interval_s",
    "server.drain_s": "server.drain_delay_s",
    "server.grace_s": "server.grace_period_s",
    "tls.reload_s": "tls.reload_interval_s",
    "auth.keys_file": "auth.api_keys_file",
    "admission.embed": "admission.max_concurrent_embed",
    "admission.predict": "admission.max_concurrent_predict",
    "admission.automask": "admission.max_concurrent_automask",
    "admission.other": "admission.max_concurrent_other",
    "admission.request_bytes": "admission.max_in_flight_request_bytes",
    "admission.slow_requests": "admission.max_slow_requests",
    "admission.slow_answers": "admission.max_slow_responses",
    "admission.prefetch": "admission.max_prefetches",
    "admission.prefetch_bytes": "admission.max_prefetch_bytes",
    "limits.request_bytes": "limits.max_request_bytes",
    "limits.response_bytes": "limits.max_response_bytes",
    "limits.image_pixels": "limits.max_image_pixels",
    "limits.image_side": "limits.max_image_side",
    "limits.prompts": "limits.max_prompts",
    "limits.points": "limits.max_points",
    "limits.points_per_side": "limits.max_points_per_side",
    "limits.points_per_batch": "limits.max_points_per_batch",
    "limits.crop_n_layers": "limits.max_crop_n_layers",
    "engine.prompts_per_run": "engine.max_prompts_per_batch",
    "triton.scratch_bytes": "triton.shared_memory_pool_bytes",
    "triton.encoder_in_flight": "triton.max_concurrent_encoder_requests",
    "triton.decoder_in_flight": "triton.max_concurrent_decoder_requests",
    "triton.answer_s": "triton.request_timeout_s",
    "triton.startup_s": "triton.startup_timeout_s",
    "store.ttl_s": "cache.ttl_s",
    "store.capacity_bytes": "cache.local.capacity_bytes",
    "cache.nodes": "cache.shared.nodes",
    "cache.prefix": "cache.shared.key_prefix",
    "cache.username": "cache.shared.username",
    "cache.password_file": "cache.shared.password_file",
    "cache.tls": "cache.shared.tls",
    "cache.ca_file": "cache.shared.ca_file",
    "cache.cert_file": "cache.shared.cert_file",
    "cache.key_file": "cache.shared.key_file",
    "cache.timeout_s": "cache.shared.timeout_s",
    "cache.connect_s": "cache.shared.connect_timeout_s",
    "cache.durable_s": "cache.shared.durability_timeout_s",
    "cache.durable_needs": "cache.shared.durability_level",
    "cache.breaker_failures": "cache.shared.circuit_breaker_failures",
    "cache.connections": "cache.shared.max_connections_per_node",
    "cache.in_flight_bytes": "cache.shared.max_in_flight_bytes",
    "cache.check_s": "cache.shared.revalidate_interval_s",
    "cache.unconfirmed_s": "cache.shared.stale_if_error_s",
    "cache.refresh_s": "cache.shared.topology_refresh_interval_s",
    "trace.ratio": "trace.sampling_ratio",
    "trace.follow_clients": "trace.parent_based",
}
"""New names of settings, by old ones, as ``section.name``."""

QUOTAS: Mapping[str, str] = {
    "embed": "max_concurrent_embed",
    "predict": "max_concurrent_predict",
    "automask": "max_concurrent_automask",
    "stored_bytes": "max_cached_bytes",
    "image_megapixels": "max_image_megapixels",
    "prompts": "max_prompts",
}
"""New names of the keys of a quota in the policy file, by old ones."""
