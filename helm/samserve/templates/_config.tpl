{{- /* The gateway's settings as TOML. Settings that the chart computes override `config`. */ -}}

{{- define "samserve.config" -}}
{{- $values := .Values -}}
{{- $plaintext := eq $values.tls.secret "" -}}
{{- $server := dict "host" "::" "port" 50051 "admin_host" "::" "admin_port" 8081 "allow_plaintext" $plaintext
    "drain_delay_s" $values.shutdown.drainDelaySeconds "grace_period_s" $values.shutdown.gracePeriodSeconds
    "max_connection_age_s" $values.service.maxConnectionAgeSeconds -}}
{{- $engine := dict "kind" $values.engine "default_model" $values.models.default -}}
{{- if eq $values.engine "onnx" -}}
{{- $_ := set $engine "model_repository" (include "samserve.modelsPath" .) -}}
{{- end -}}
{{- $local := dict "capacity_bytes" (include "samserve.bytes" $values.cache.local.memory | int64) -}}
{{- $cache := dict "ttl_s" $values.cache.ttlSeconds "local" $local -}}
{{- $computed := dict "server" $server "engine" $engine "cache" $cache -}}
{{- if eq $values.engine "triton" -}}
{{- $split := eq (include "samserve.topology" .) "split" -}}
{{- $_ := set $computed "triton" (dict
    "url" (ternary (printf "%s-triton:8001" (include "samserve.fullname" .)) "127.0.0.1:8001" $split)
    "shared_memory" (ternary "off" "required" $split)
    "shared_memory_pool_bytes" (include "samserve.bytes" $values.triton.sharedMemoryPool | int64)
    "startup_timeout_s" $values.triton.startupTimeoutSeconds) -}}
{{- $_ := set $server "readiness" (ternary "started" "engine" $split) -}}
{{- end -}}
{{- with include "samserve.config.tls" . | fromYaml }}{{ $_ := set $computed "tls" . }}{{ end -}}
{{- with include "samserve.config.http" . | fromYaml }}{{ $_ := set $computed "http" . }}{{ end -}}
{{- with include "samserve.config.auth" . | fromYaml }}{{ $_ := set $computed "auth" . }}{{ end -}}
{{- with include "samserve.config.sharedCache" . | fromYaml }}{{ $_ := set $cache "shared" . }}{{ end -}}
{{- $defaults := dict "log" (dict "format" "json") -}}
{{- if $values.http.webPage }}{{ $_ := set $defaults "embedding_files" (dict "get_enabled" true) }}{{ end -}}
{{- range $section, $settings := mustMergeOverwrite $defaults (deepCopy $values.config) $computed }}
{{- include "samserve.config.section" (dict "path" $section "settings" $settings) }}
{{- end }}
{{- end -}}

{{- /* A table of TOML: its settings first, as the format requires, then its subtables. */ -}}
{{- define "samserve.config.section" -}}
[{{ .path }}]
{{- range $name, $value := .settings }}
{{- if not (or (kindIs "invalid" $value) (kindIs "map" $value)) }}
{{ $name }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{ range $name, $value := .settings }}
{{- if kindIs "map" $value }}
{{- include "samserve.config.section" (dict "path" (printf "%s.%s" $.path $name) "settings" $value) }}
{{- end }}
{{- end }}
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

{{- define "samserve.config.http" -}}
{{- if .Values.http.enabled }}
{{- $hosts := list -}}
{{- range $name := list (include "samserve.fullname" .) (printf "%s-headless" (include "samserve.fullname" .)) }}
{{- $in := printf "%s.%s" $name $.Release.Namespace }}
{{- $hosts = concat $hosts (list $name $in (printf "%s.svc" $in) (printf "%s.svc.cluster.local" $in)) }}
{{- end }}
enabled: true
host: "::"
port: 8080
allowed_hosts: {{ join "," (concat $hosts .Values.http.allowedHosts) | quote }}
allowed_origins: {{ join "," .Values.http.allowedOrigins | quote }}
web_page: {{ .Values.http.webPage }}
{{- end }}
{{- end -}}

{{- define "samserve.config.auth" -}}
{{- with .Values.auth }}
{{- if .apiKeys.secret }}
api_keys_file: /etc/samserve/api-keys/keys.toml
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

{{- define "samserve.config.sharedCache" -}}
{{- with .Values.cache.shared }}
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
