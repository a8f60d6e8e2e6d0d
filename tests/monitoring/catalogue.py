"""Every metric that rules and dashboards may use: its labels, and known values of labels."""

from __future__ import annotations

from monitoring.series import GATEWAY_JOB, JOBS, REDIS_JOB, TRITON_JOB

_RPC = "grpc_type grpc_service grpc_method"
# "H" before the labels marks a histogram.
_TABLE = {
    "grpc_server_started_total": _RPC,
    "grpc_server_handled_total": f"{_RPC} grpc_code",
    "grpc_server_handling_seconds": f"H {_RPC}",
    "samserve_call_seconds": "H grpc_method model",
    "samserve_model_calls_total": "grpc_method model version",
    "samserve_stage_seconds": "H grpc_method model stage",
    "samserve_inflight_requests": "grpc_method",
    "samserve_inflight_limit": "grpc_method",
    "samserve_errors_total": "grpc_method reason",
    "samserve_rejected_total": "grpc_method kind",
    "samserve_message_bytes_total": "grpc_method direction",
    "samserve_prompts_per_call": "H grpc_method",
    "samserve_masks_per_call": "H grpc_method",
    "samserve_automask_candidates_total": "filter direction",
    "samserve_engine_runs_total": "network model outcome",
    "samserve_engine_run_seconds": "H network model",
    "samserve_engine_running": "network",
    "samserve_queue_depth": "queue",
    "samserve_engine_ready": "",
    "samserve_engine_transport": "transport",
    "samserve_triton_errors_total": "kind",
    "samserve_triton_shared_memory_fallbacks_total": "network",
    "samserve_triton_shared_memory_pool_bytes": "state",
    "samserve_cache_requests_total": "tier result",
    "samserve_cache_shared_writes_total": "result",
    "samserve_cache_shared_errors_total": "kind",
    "samserve_cache_shared_bytes_total": "direction",
    "samserve_cache_shared_node_seconds": "H node",
    "samserve_cache_shared_node_up": "node",
    "samserve_cache_local_entries": "",
    "samserve_cache_local_bytes": "",
    "samserve_cache_local_capacity_bytes": "",
    "samserve_cache_local_quarantined_bytes": "",
    "samserve_cache_local_evictions_total": "",
    "samserve_prefetch_pending": "",
    "samserve_prefetches_total": "outcome",
    "samserve_http_calls_total": "protocol",
    "samserve_http_refused_total": "reason",
    "samserve_http_connections": "",
    "samserve_build_info": "version python engine",
    "samserve_model_info": "model digest",
    "samserve_ready": "",
    "samserve_config_last_reload_successful": "file",
    "samserve_quota_used_ratio": "tenant quota",
    "samserve_event_loop_lag_seconds": "H",
    "process_cpu_seconds_total": "",
    "process_resident_memory_bytes": "",
    "process_open_fds": "",
    "process_max_fds": "",
    "process_start_time_seconds": "",
    "nv_inference_request_success": "model version",
    "nv_inference_request_failure": "model version reason",
    "nv_inference_count": "model version",
    "nv_inference_exec_count": "model version",
    "nv_inference_request_duration_us": "model version",
    "nv_inference_queue_duration_us": "model version",
    "nv_inference_compute_input_duration_us": "model version",
    "nv_inference_compute_infer_duration_us": "model version",
    "nv_inference_compute_output_duration_us": "model version",
    "nv_inference_pending_request_count": "model version",
    "nv_cpu_utilization": "",
    "nv_cpu_memory_total_bytes": "",
    "nv_cpu_memory_used_bytes": "",
    "nv_gpu_utilization": "gpu_uuid",
    "nv_gpu_memory_total_bytes": "gpu_uuid",
    "nv_gpu_memory_used_bytes": "gpu_uuid",
    "nv_gpu_power_usage": "gpu_uuid",
    "redis_up": "",
    "redis_memory_used_bytes": "",
    "redis_memory_max_bytes": "",
    "redis_evicted_keys_total": "",
    "redis_keyspace_hits_total": "",
    "redis_keyspace_misses_total": "",
    "redis_commands_processed_total": "",
    "redis_connected_clients": "",
    "redis_db_keys": "db",
    # Created by Prometheus itself.
    "up": "",
    "ALERTS": "alertname alertstate severity grpc_method",
}

TARGET = frozenset({"namespace", "release", "pod", "instance", "job"})
"""Labels that are added by the scrape; pods exist in Kubernetes only."""


def _labels() -> dict[str, frozenset[str]]:
    table: dict[str, frozenset[str]] = {}
    for name, text in _TABLE.items():
        kind, labels = text.split()[:1], frozenset(text.split()) - {"H"}
        if kind != ["H"]:
            table[name] = labels
            continue
        table[f"{name}_bucket"] = labels | {"le"}
        table[f"{name}_sum"] = table[f"{name}_count"] = labels
    return table


LABELS = _labels()
"""Labels of each series by its name, without `TARGET`."""


def jobs_of(metric: str) -> tuple[str, ...]:
    """Return the jobs whose targets export the metric."""
    if metric == "up":
        return JOBS
    prefixes = {"nv_": TRITON_JOB, "redis_": REDIS_JOB}
    jobs = (job for prefix, job in prefixes.items() if metric.startswith(prefix))
    return (next(jobs, GATEWAY_JOB),)


_STAGES = """
    receive admit prepare hash cache_get_local cache_get_shared cache_get_miss cache_delete join
    queue decode_image resize encode cache_put decode postprocess filter encode_masks serialize send
    other
"""
STAGES = frozenset(_STAGES.split())
_KNOWN = {
    "grpc_method": "Embed Predict AutoMask DeleteEmbedding GetEmbedding PutEmbedding ListModels",
    "grpc_code": "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND INTERNAL"
    " PERMISSION_DENIED RESOURCE_EXHAUSTED UNAVAILABLE DATA_LOSS UNAUTHENTICATED UNIMPLEMENTED",
    "reason": "OVERLOADED MEMORY_EXHAUSTED INTERNAL CANCELED REJECTED",
    "kind": "memory full command_error unavailable queue_timeout",
    "tier": "local shared",
    "result": "hit miss deleted corrupt format_mismatch model_mismatch unavailable",
    "outcome": "ok failed cancelled",
    "queue": "encoder decoder workers bulk_workers",
    "transport": "in_process shared_memory message",
    "engine": "triton onnx fake",
    "job": " ".join(JOBS),
    "grpc_service": "samserve.v1.SegmentationService",
    "alertstate": "firing",
    "le": "0.1 0.25 2.5",
}
VALUES = {label: frozenset(values.split()) for label, values in _KNOWN.items()} | {"stage": STAGES}
"""Values that matchers may use, by label."""
