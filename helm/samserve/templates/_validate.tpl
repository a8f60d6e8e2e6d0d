{{- /* What a schema cannot say: values that do not go together.  One complaint for each. */ -}}

{{- define "samserve.validate" -}}
{{- $values := .Values -}}
{{- $pods := include "samserve.maxPods" . | int -}}
{{- if and (gt $pods 1) (not $values.cache.nodes) -}}
{{- fail (printf "%s: %d pods need cache.nodes, a Redis or Valkey Cluster: each would answer EMBEDDING_NOT_FOUND for what another has embedded" (ternary "autoscaling.maxReplicas" "replicas" (eq (include "samserve.autoscaled" .) "true")) $pods) -}}
{{- end -}}
{{- with $values.autoscaling -}}
{{- if and .hpa.enabled .keda.enabled (ne (include "samserve.shape" $) "split") -}}
{{- fail "autoscaling.hpa.enabled and autoscaling.keda.enabled: only one of them may own the number of pods" -}}
{{- end -}}
{{- if and .keda.enabled (not .keda.serverAddress) -}}
{{- fail "autoscaling.keda.serverAddress: is needed, the address of Prometheus" -}}
{{- end -}}
{{- if and .keda.enabled (ne $values.engine "triton") -}}
{{- fail "autoscaling.keda.enabled: looks at Triton's queue, which engine: onnx has not; take autoscaling.hpa" -}}
{{- end -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- fail "autoscaling.minReplicas: is more than autoscaling.maxReplicas" -}}
{{- end -}}
{{- end -}}
{{- with $values.models -}}
{{- if and (eq .source "claim") (not .claim.name) -}}
{{- fail "models.claim.name: is needed where models.source is claim" -}}
{{- end -}}
{{- if and (eq .source "pull") .pull.claim (gt (include "samserve.modelPods" $ | int) 1) -}}
{{- fail "models.pull.claim: several pods would write into one claim; let one fill it, and take models.source: claim" -}}
{{- end -}}
{{- if and (eq .source "pull") (not .pull.models) -}}
{{- fail "models.pull.models: is needed where models.source is pull" -}}
{{- end -}}
{{- end -}}
{{- with $values.grpcRoute -}}
{{- if and .enabled (not .parentRefs) -}}
{{- fail "grpcRoute.parentRefs: are needed, or the route belongs to no Gateway" -}}
{{- end -}}
{{- end -}}
{{- with $values.tls -}}
{{- if and .clientCaSecret (not .secret) -}}
{{- fail "tls.clientCaSecret: needs tls.secret" -}}
{{- end -}}
{{- if and .clientIdentities (not .clientCaSecret) -}}
{{- fail "tls.clientIdentities: need tls.clientCaSecret" -}}
{{- end -}}
{{- end -}}
{{- with $values.auth.jwt -}}
{{- if and .secret (not (and .issuer .audience)) -}}
{{- fail "auth.jwt.secret: needs auth.jwt.issuer and auth.jwt.audience" -}}
{{- end -}}
{{- end -}}
{{- with $values.cache -}}
{{- if and .username (not .password.secret) -}}
{{- fail "cache.username: needs cache.password.secret" -}}
{{- end -}}
{{- if and (or .tls.caSecret .tls.clientSecret) (not .tls.enabled) -}}
{{- fail "cache.tls.caSecret and cache.tls.clientSecret: need cache.tls.enabled" -}}
{{- end -}}
{{- end -}}
{{- end -}}
