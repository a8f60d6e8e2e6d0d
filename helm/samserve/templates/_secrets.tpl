{{- /* Files from Secrets. Directories are mounted, since a subPath mount is never updated. */ -}}

{{- /* A list of `name` (the directory in /etc/samserve), `secret` and `items`. */ -}}
{{- define "samserve.secretFiles" -}}
{{- $keyPair := list (dict "key" "tls.crt" "path" "tls.crt") (dict "key" "tls.key" "path" "tls.key") -}}
{{- $files := list -}}
{{- with .Values.tls -}}
{{- if .secret }}{{ $files = append $files (dict "name" "tls" "secret" .secret "items" $keyPair) }}{{ end -}}
{{- if .clientCaSecret }}{{ $files = append $files (dict "name" "client-ca" "secret" .clientCaSecret "items" (list (dict "key" .clientCaKey "path" "ca.crt"))) }}{{ end -}}
{{- end -}}
{{- with .Values.auth -}}
{{- if .apiKeys.secret }}{{ $files = append $files (dict "name" "api-keys" "secret" .apiKeys.secret "items" (list (dict "key" .apiKeys.key "path" "keys.toml"))) }}{{ end -}}
{{- if .jwt.secret }}{{ $files = append $files (dict "name" "jwks" "secret" .jwt.secret "items" (list (dict "key" .jwt.key "path" "jwks.json"))) }}{{ end -}}
{{- end -}}
{{- with .Values.cache.shared -}}
{{- if .password.secret }}{{ $files = append $files (dict "name" "cache-password" "secret" .password.secret "items" (list (dict "key" .password.key "path" "password"))) }}{{ end -}}
{{- if .tls.caSecret }}{{ $files = append $files (dict "name" "cache-ca" "secret" .tls.caSecret "items" (list (dict "key" .tls.caKey "path" "ca.crt"))) }}{{ end -}}
{{- if .tls.clientSecret }}{{ $files = append $files (dict "name" "cache-client" "secret" .tls.clientSecret "items" $keyPair) }}{{ end -}}
{{- end -}}
{{- toYaml $files -}}
{{- end -}}

{{- define "samserve.secretMounts" -}}
{{- range include "samserve.secretFiles" . | fromYamlArray }}
- name: {{ .name }}
  mountPath: /etc/samserve/{{ .name }}
  readOnly: true
{{- end }}
{{- end -}}

{{- define "samserve.secretVolumes" -}}
{{- range include "samserve.secretFiles" . | fromYamlArray }}
- name: {{ .name }}
  secret:
    secretName: {{ .secret }}
    # Readable by the group, which is the pod's fsGroup.
    defaultMode: 0440
    items:
      {{- toYaml .items | nindent 6 }}
{{- end }}
{{- end -}}
