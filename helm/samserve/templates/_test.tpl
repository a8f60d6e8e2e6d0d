{{- /* Containers of the `helm test` pod, and their credentials. */ -}}

{{- define "samserve.test.env" -}}
{{- if not .Values.tls.secret }}
- name: SAMSERVE_CLIENT_PLAINTEXT
  value: "true"
{{- else if .Values.test.caSecret }}
- name: SAMSERVE_CLIENT_CA_FILE
  value: /test/server/ca.crt
{{- else }}
# CA and names of the certificate are unknown, so exactly the certificate in `tls.secret` is trusted.
- name: SAMSERVE_CLIENT_SERVER_CERT_FILE
  value: /test/server/tls.crt
{{- end }}
{{- with .Values.test.host }}
- name: SAMSERVE_CLIENT_SERVER_NAME
  value: {{ . | quote }}
{{- end }}
{{- if .Values.test.clientSecret }}
- name: SAMSERVE_CLIENT_CERT_FILE
  value: /test/client/tls.crt
- name: SAMSERVE_CLIENT_KEY_FILE
  value: /test/client/tls.key
{{- end }}
{{- if .Values.test.tokenSecret }}
- name: SAMSERVE_CLIENT_TOKEN_FILE
  value: /test/token/token
{{- end }}
{{- end -}}

{{- /* A list of `name` (the directory in /test), `secret` and `items`. */ -}}
{{- define "samserve.test.secretFiles" -}}
{{- $files := list -}}
{{- if and .Values.tls.secret .Values.test.caSecret -}}
{{- $files = append $files (dict "name" "server" "secret" .Values.test.caSecret "items" (list (dict "key" .Values.test.caKey "path" "ca.crt"))) -}}
{{- else if .Values.tls.secret -}}
{{- $files = append $files (dict "name" "server" "secret" .Values.tls.secret "items" (list (dict "key" "tls.crt" "path" "tls.crt"))) -}}
{{- end -}}
{{- with .Values.test.clientSecret -}}
{{- $files = append $files (dict "name" "client" "secret" . "items" (list (dict "key" "tls.crt" "path" "tls.crt") (dict "key" "tls.key" "path" "tls.key"))) -}}
{{- end -}}
{{- if .Values.test.tokenSecret -}}
{{- $files = append $files (dict "name" "token" "secret" .Values.test.tokenSecret "items" (list (dict "key" .Values.test.tokenKey "path" "token"))) -}}
{{- end -}}
{{- toYaml $files -}}
{{- end -}}

{{- /* Argument: a list of the root context and the arguments of `samserve`. */ -}}
{{- define "samserve.test.container" -}}
{{- $root := index . 0 -}}
- name: {{ index . 1 | first }}
  image: {{ include "samserve.image" (list $root.Values.image $root.Chart.AppVersion) }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  command: [samserve]
  args:
    {{- toYaml (index . 1) | nindent 4 }}
    - --server={{ include "samserve.fullname" $root }}:{{ $root.Values.service.port }}
  resources:
    {{- include "samserve.smallResources" . | nindent 4 }}
  env:
    {{- include "samserve.test.env" $root | nindent 4 }}
  securityContext:
    {{- toYaml $root.Values.securityContext | nindent 4 }}
  volumeMounts:
    - name: image
      mountPath: /test/image
      readOnly: true
    - name: tmp
      mountPath: /tmp
    {{- range include "samserve.test.secretFiles" $root | fromYamlArray }}
    - name: {{ .name }}
      mountPath: /test/{{ .name }}
      readOnly: true
    {{- end }}
{{- end -}}
