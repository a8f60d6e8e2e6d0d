{{- /* What the commands of `helm test` need to be let in. */ -}}

{{- define "samserve.test.environment" -}}
{{- if not .Values.tls.secret }}
- name: SAMSERVE_CLIENT_PLAINTEXT
  value: "true"
{{- else if .Values.test.caSecret }}
- name: SAMSERVE_CLIENT_CA_FILE
  value: /test/server/ca.crt
{{- else }}
# Which CA and which names it has, no value says; the certificate that should be served is known.
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

{{- /* A list of `name` of the folder under /test, `secret`, and `items`. */ -}}
{{- define "samserve.test.files" -}}
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

{{- /* Takes a list: the chart, and the command. */ -}}
{{- define "samserve.test.container" -}}
{{- $chart := index . 0 -}}
- name: {{ index . 1 | first }}
  image: {{ include "samserve.image" (list $chart.Values.image $chart.Chart.AppVersion) }}
  imagePullPolicy: {{ $chart.Values.image.pullPolicy }}
  command: [samserve]
  args:
    {{- toYaml (index . 1) | nindent 4 }}
    - --server={{ include "samserve.fullname" $chart }}:{{ $chart.Values.service.port }}
  resources:
    {{- include "samserve.smallResources" . | nindent 4 }}
  env:
    {{- include "samserve.test.environment" $chart | nindent 4 }}
  securityContext:
    {{- toYaml $chart.Values.securityContext | nindent 4 }}
  volumeMounts:
    - name: picture
      mountPath: /test/picture
      readOnly: true
    - name: tmp
      mountPath: /tmp
    {{- range include "samserve.test.files" $chart | fromYamlArray }}
    - name: {{ .name }}
      mountPath: /test/{{ .name }}
      readOnly: true
    {{- end }}
{{- end -}}
