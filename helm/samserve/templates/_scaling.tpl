{{- /* What KEDA asks Prometheus: milliseconds that a request waits on average, for as many pods as
there are, since AverageValue divides by their number.  Triton is given so much at once that its
queue is short; the rest waits in the gateway for its turn. */ -}}

{{- define "samserve.waiting" -}}
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
