{{- /* The gateway's settings as TOML: what the chart decides over `config`, that over defaults. */ -}}

{{- define "samserve.config" -}}
{{- $values := .Values -}}
{{- $plain := eq $values.tls.secret "" -}}
{{- $server := dict "host" "::" "port" 50051 "admin_host" "::" "admin_port" 8081 "plaintext" $plain
    "drain_s" $values.shutdown.drainSeconds "grace_s" $values.shutdown.graceSeconds
    "connection_age_s" $values.service.maxConnectionAgeSeconds -}}
{{- $engine := dict "kind" $values.engine "default_model" $values.models.default -}}
{{- if eq $values.engine "onnx" -}}
{{- $_ := set $engine "model_repository" (include "samserve.modelsPath" .) -}}
{{- end -}}
{{- $store := dict "capacity_bytes" (include "samserve.bytes" $values.cache.memory | int64) "ttl_s" $values.cache.ttlSeconds -}}
{{- $chosen := dict "server" $server "engine" $engine "store" $store -}}
{{- if eq $values.engine "triton" -}}
{{- $split := eq (include "samserve.shape" .) "split" -}}
{{- $_ := set $chosen "triton" (dict
    "url" (ternary (printf "%s-triton:8001" (include "samserve.fullname" .)) "127.0.0.1:8001" $split)
    "shared_memory" (ternary "off" "required" $split)
    "scratch_bytes" (include "samserve.bytes" $values.cache.scratch | int64)
    "startup_s" $values.triton.startupSeconds) -}}
{{- $_ := set $server "readiness" (ternary "started" "engine" $split) -}}
{{- end -}}
{{- with include "samserve.config.tls" . | fromYaml }}{{ $_ := set $chosen "tls" . }}{{ end -}}
{{- with include "samserve.config.auth" . | fromYaml }}{{ $_ := set $chosen "auth" . }}{{ end -}}
{{- with include "samserve.config.cache" . | fromYaml }}{{ $_ := set $chosen "cache" . }}{{ end -}}
{{- $defaults := dict "log" (dict "format" "json") -}}
{{- range $section, $settings := mustMergeOverwrite $defaults (deepCopy $values.config) $chosen }}
[{{ $section }}]
{{- range $name, $value := $settings }}
{{- if not (kindIs "invalid" $value) }}
{{ $name }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{ end -}}
{{- end -}}

{{- define "samserve.config.tls" -}}
{{- with .Values.tls }}
{{- if .secret }}
cert_file: /etc/samserve/tls/tls.crt
key_file: /etc/samserve/tls/tls.key
{{- if .clientCaSecret }}
client_ca_file: /etc/samserve/client-ca/ca.crt
client_identities: {{ join "," .clientIdentities | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "samserve.config.auth" -}}
{{- with .Values.auth }}
{{- if .apiKeys.secret }}
keys_file: /etc/samserve/api-keys/keys.toml
{{- end }}
{{- if .jwt.secret }}
jwks_file: /etc/samserve/jwks/jwks.json
jwt_issuer: {{ .jwt.issuer | quote }}
jwt_audience: {{ .jwt.audience | quote }}
{{- end }}
{{- if .policy }}
policy_file: /etc/samserve/policy/policy.toml
{{- end }}
{{- end }}
{{- end -}}

{{- define "samserve.config.cache" -}}
{{- with .Values.cache }}
{{- if .nodes }}
nodes: {{ join "," .nodes | quote }}
username: {{ .username | quote }}
{{- if .password.secret }}
password_file: /etc/samserve/cache-password/password
{{- end }}
{{- if .tls.enabled }}
tls: true
{{- if .tls.caSecret }}
ca_file: /etc/samserve/cache-ca/ca.crt
{{- end }}
{{- if .tls.clientSecret }}
cert_file: /etc/samserve/cache-client/tls.crt
key_file: /etc/samserve/cache-client/tls.key
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
