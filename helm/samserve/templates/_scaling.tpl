{{- /* The PromQL query of KEDA: the average queue time of a request in milliseconds, multiplied by the
number of pods, since AverageValue divides by it. The gateway limits the requests in flight to Triton,
so that a request waits in both: in the gateway's queue, then in Triton's. */ -}}

{{- define "samserve.queueTimeQuery" -}}
{{- $pods := `namespace="%s",pod=~"%s-[a-z0-9]+-[a-z0-9]+"` -}}
{{- $triton := printf $pods .Release.Namespace (include "samserve.kedaTarget" .) -}}
{{- $gateways := printf $pods .Release.Namespace (include "samserve.fullname" .) -}}
(
  sum(rate(nv_inference_queue_duration_us{ {{- $triton -}} }[2m])) / 1000
  / clamp_min(sum(rate(nv_inference_request_success{ {{- $triton -}} }[2m])), 0.001)
  + (
    1000 * sum(rate(samserve_stage_seconds_sum{stage="queue", {{- $gateways -}} }[2m]))
    / clamp_min(sum(rate(samserve_stage_seconds_count{stage="admit", {{- $gateways -}} }[2m])), 0.001)
    or 0 * count(samserve_ready{ {{- $gateways -}} })
  )
)
* count(count by (pod) (nv_inference_request_success{ {{- $triton -}} }))
{{- end -}}
