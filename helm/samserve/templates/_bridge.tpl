{{- /* The bridge: its labels, settings and files from Secrets. */ -}}

{{- define "samserve.bridgeLabels" -}}
{{ include "samserve.releaseLabels" . }}
app.kubernetes.io/component: bridge
{{- end -}}

{{- /* The bridge's settings as TOML. Settings that the chart computes override `bridge.config`. */ -}}
{{- define "samserve.bridge.config" -}}
{{- $bridge := .Values.bridge -}}
{{- $name := printf "%s-bridge" (include "samserve.fullname" .) -}}
{{- $in := printf "%s.%s" $name .Release.Namespace -}}
{{- $hosts := list $name $in (printf "%s.svc" $in) (printf "%s.svc.cluster.local" $in) -}}
{{- $listener := dict "host" "::" "port" 9090 "admin_host" "::" "admin_port" 9091
    "allow_plaintext" (eq $bridge.tlsSecret "") "grace_period_s" .Values.shutdown.gracePeriodSeconds
    "allowed_hosts" (join "," (concat $hosts $bridge.allowedHosts)) -}}
{{- $gateways := dict "targets" (include "samserve.gatewayTarget" .) -}}
{{- if .Values.tls.secret -}}
{{- $service := printf "%s.%s" (include "samserve.fullname" .) .Release.Namespace -}}
{{- $_ := set $gateways "tls" true -}}
{{- $_ := set $gateways "server_name" (default $service $bridge.gateways.serverName) -}}
{{- if $bridge.gateways.caSecret }}{{ $_ := set $gateways "ca_file" "/etc/samserve/gateway-ca/ca.crt" }}{{ end -}}
{{- if $bridge.gateways.clientSecret -}}
{{- $_ := set $gateways "cert_file" "/etc/samserve/gateway-client/tls.crt" -}}
{{- $_ := set $gateways "key_file" "/etc/samserve/gateway-client/tls.key" -}}
{{- end -}}
{{- else -}}
{{- $_ := set $gateways "allow_plaintext" true -}}
{{- end -}}
{{- $computed := dict "listener" $listener "gateways" $gateways -}}
{{- if $bridge.tlsSecret }}{{ $_ := set $computed "tls" (dict "cert_file" "/etc/samserve/bridge-tls/tls.crt" "key_file" "/etc/samserve/bridge-tls/tls.key") }}{{ end -}}
{{- $tokens := dict -}}
{{- if $bridge.tokens.secret }}{{ $_ := set $tokens "file" "/etc/samserve/tokens/tokens.toml" }}{{ end -}}
{{- if $bridge.credential.secret }}{{ $_ := set $tokens "credential_file" "/etc/samserve/credential/token" }}{{ end -}}
{{- if $tokens }}{{ $_ := set $computed "tokens" $tokens }}{{ end -}}
{{- if $bridge.labelStudio.url -}}
{{- $studio := dict "url" $bridge.labelStudio.url -}}
{{- if $bridge.labelStudio.tokenSecret }}{{ $_ := set $studio "token_file" "/etc/samserve/label-studio/token" }}{{ end -}}
{{- $_ := set $computed "label_studio" $studio -}}
{{- end -}}
{{- range $section, $settings := mustMergeOverwrite (dict "log" (dict "format" "json")) (deepCopy $bridge.config) $computed }}
{{- include "samserve.config.section" (dict "path" $section "settings" $settings) }}
{{- end }}
{{- end -}}

{{- /* As samserve.secretFiles. */ -}}
{{- define "samserve.bridge.secretFiles" -}}
{{- $keyPair := list (dict "key" "tls.crt" "path" "tls.crt") (dict "key" "tls.key" "path" "tls.key") -}}
{{- $files := list -}}
{{- with .Values.bridge -}}
{{- if .tlsSecret }}{{ $files = append $files (dict "name" "bridge-tls" "secret" .tlsSecret "items" $keyPair) }}{{ end -}}
{{- if .tokens.secret }}{{ $files = append $files (dict "name" "tokens" "secret" .tokens.secret "items" (list (dict "key" .tokens.key "path" "tokens.toml"))) }}{{ end -}}
{{- if .credential.secret }}{{ $files = append $files (dict "name" "credential" "secret" .credential.secret "items" (list (dict "key" .credential.key "path" "token"))) }}{{ end -}}
{{- if and .labelStudio.url .labelStudio.tokenSecret }}{{ $files = append $files (dict "name" "label-studio" "secret" .labelStudio.tokenSecret "items" (list (dict "key" .labelStudio.tokenKey "path" "token"))) }}{{ end -}}
{{- if and $.Values.tls.secret .gateways.caSecret }}{{ $files = append $files (dict "name" "gateway-ca" "secret" .gateways.caSecret "items" (list (dict "key" .gateways.caKey "path" "ca.crt"))) }}{{ end -}}
{{- if and $.Values.tls.secret .gateways.clientSecret }}{{ $files = append $files (dict "name" "gateway-client" "secret" .gateways.clientSecret "items" $keyPair) }}{{ end -}}
{{- end -}}
{{- toYaml $files -}}
{{- end -}}
