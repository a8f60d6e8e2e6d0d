{{- /* Checks that a JSON schema cannot express: invalid combinations of values. */ -}}

{{- define "samserve.validate" -}}
{{- $values := .Values -}}
{{- $pods := include "samserve.maxReplicas" . | int -}}
{{- if and (gt $pods 1) (not $values.cache.shared.nodes) -}}
{{- fail (printf "%s: %d pods require cache.shared.nodes, a Redis or Valkey Cluster: otherwise a pod returns EMBEDDING_NOT_FOUND for embeddings of other pods" (ternary "autoscaling.maxReplicas" "replicas" (eq (include "samserve.autoscaled" .) "true")) $pods) -}}
{{- end -}}
{{- with $values.autoscaling -}}
{{- if and .hpa.enabled .keda.enabled (ne (include "samserve.topology" $) "split") -}}
{{- fail "autoscaling.hpa.enabled and autoscaling.keda.enabled: must not both be enabled, except in topology: split" -}}
{{- end -}}
{{- if and .keda.enabled (not .keda.serverAddress) -}}
{{- fail "autoscaling.keda.serverAddress: is required, the URL of Prometheus" -}}
{{- end -}}
{{- if and .keda.enabled (ne $values.engine "triton") -}}
{{- fail "autoscaling.keda.enabled: requires engine: triton, whose queue time it scales on; use autoscaling.hpa instead" -}}
{{- end -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- fail "autoscaling.minReplicas: must not exceed autoscaling.maxReplicas" -}}
{{- end -}}
{{- end -}}
{{- with $values.models -}}
{{- if and (eq .source "claim") (not .claim.name) -}}
{{- fail "models.claim.name: is required if models.source is claim" -}}
{{- end -}}
{{- if and (eq .source "pull") .pull.claim (gt (include "samserve.maxModelPods" $ | int) 1) -}}
{{- fail "models.pull.claim: several pods would write to one claim; fill it with one pod, then use models.source: claim" -}}
{{- end -}}
{{- if and (eq .source "pull") (not .pull.models) -}}
{{- fail "models.pull.models: is required if models.source is pull" -}}
{{- end -}}
{{- end -}}
{{- with $values.grpcRoute -}}
{{- if and .enabled (not .parentRefs) -}}
{{- fail "grpcRoute.parentRefs: is required, otherwise the route attaches to no Gateway" -}}
{{- end -}}
{{- end -}}
{{- with $values.tls -}}
{{- if and .clientCaSecret (not .secret) -}}
{{- fail "tls.clientCaSecret: requires tls.secret" -}}
{{- end -}}
{{- if and .clientIdentities (not .clientCaSecret) -}}
{{- fail "tls.clientIdentities: requires tls.clientCaSecret" -}}
{{- end -}}
{{- end -}}
{{- with $values.http -}}
{{- if and .webPage (not .enabled) -}}
{{- fail "http.webPage: requires http.enabled" -}}
{{- end -}}
{{- if and .webPage (not (or $values.auth.apiKeys.secret $values.auth.jwt.secret $values.tls.clientCaSecret)) -}}
{{- fail "http.webPage: requires auth.apiKeys.secret, auth.jwt.secret or tls.clientCaSecret" -}}
{{- end -}}
{{- end -}}
{{- with $values.bridge -}}
{{- if and .enabled $values.tls.clientCaSecret (not .gateways.clientSecret) -}}
{{- fail "bridge.gateways.clientSecret: is required with tls.clientCaSecret" -}}
{{- end -}}
{{- if and .labelStudio.tokenSecret (not .labelStudio.url) -}}
{{- fail "bridge.labelStudio.tokenSecret: requires bridge.labelStudio.url" -}}
{{- end -}}
{{- end -}}
{{- if $values.annotate.enabled -}}
{{- include "samserve.annotate.validate" . -}}
{{- end -}}
{{- with $values.auth.jwt -}}
{{- if and .secret (not (and .issuer .audience)) -}}
{{- fail "auth.jwt.secret: requires auth.jwt.issuer and auth.jwt.audience" -}}
{{- end -}}
{{- end -}}
{{- with $values.cache.shared -}}
{{- if and .username (not .password.secret) -}}
{{- fail "cache.shared.username: requires cache.shared.password.secret" -}}
{{- end -}}
{{- if and (or .tls.caSecret .tls.clientSecret) (not .tls.enabled) -}}
{{- fail "cache.shared.tls.caSecret and cache.shared.tls.clientSecret: require cache.shared.tls.enabled" -}}
{{- end -}}
{{- end -}}
{{- end -}}
