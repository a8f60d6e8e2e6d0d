{{- /* The Job that annotates images: its name, labels, pod, files from Secrets, and invalid values. */ -}}

{{- define "samserve.annotateLabels" -}}
{{ include "samserve.releaseLabels" . }}
app.kubernetes.io/component: annotate
{{- end -}}

{{- /* Jobs cannot be changed, so that other values need another name. */ -}}
{{- define "samserve.annotate.jobName" -}}
{{- $fixed := list .Values.annotate.shards .Values.annotate.backoffLimitPerIndex -}}
{{- $content := printf "%v %s" $fixed (include "samserve.annotate.pod" .) -}}
{{- printf "%s-annotate-%s" (include "samserve.fullname" .) ($content | sha256sum | trunc 8) -}}
{{- end -}}

{{- define "samserve.annotate.validate" -}}
{{- $annotate := .Values.annotate -}}
{{- range $name := list "source" "out" -}}
{{- $place := get $annotate $name -}}
{{- if not $place -}}
{{- fail (printf "annotate.%s: is required" $name) -}}
{{- end -}}
{{- if and (not (contains "://" $place)) (not (include "samserve.annotate.mounted" (list $annotate $place))) -}}
{{- fail (printf "annotate.%s: %s is in no volume of annotate.extraVolumeMounts" $name $place) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.tls.clientCaSecret (not $annotate.gateways.clientSecret) -}}
{{- fail "annotate.gateways.clientSecret: is required with tls.clientCaSecret" -}}
{{- end -}}
{{- if and (or .Values.auth.apiKeys.secret .Values.auth.jwt.secret) (not (or $annotate.credential.secret $annotate.gateways.clientSecret)) -}}
{{- fail "annotate.credential.secret: is required with auth.apiKeys.secret or auth.jwt.secret" -}}
{{- end -}}
{{- end -}}

{{- /* `true` if a path is in a mounted volume. Argument: a list of the Job's values and the path. */ -}}
{{- define "samserve.annotate.mounted" -}}
{{- $path := printf "%s/" (index . 1 | trimSuffix "/") -}}
{{- range (index . 0).extraVolumeMounts -}}
{{- if hasPrefix (printf "%s/" (.mountPath | trimSuffix "/")) $path }}true{{ end -}}
{{- end -}}
{{- end -}}

{{- define "samserve.annotate.env" -}}
- name: JOB_COMPLETION_INDEX
  valueFrom:
    fieldRef:
      fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
{{- with .Values.annotate }}
{{- if not $.Values.tls.secret }}
- name: SAMSERVE_CLIENT_PLAINTEXT
  value: "true"
{{- else }}
- name: SAMSERVE_CLIENT_TLS
  value: "true"
- name: SAMSERVE_CLIENT_SERVER_NAME
  value: {{ default (printf "%s.%s" (include "samserve.fullname" $) $.Release.Namespace) .gateways.serverName | quote }}
{{- if .gateways.caSecret }}
- name: SAMSERVE_CLIENT_CA_FILE
  value: /etc/samserve/gateway-ca/ca.crt
{{- end }}
{{- if .gateways.clientSecret }}
- name: SAMSERVE_CLIENT_CERT_FILE
  value: /etc/samserve/gateway-client/tls.crt
- name: SAMSERVE_CLIENT_KEY_FILE
  value: /etc/samserve/gateway-client/tls.key
{{- end }}
{{- end }}
{{- if .credential.secret }}
- name: SAMSERVE_CLIENT_TOKEN_FILE
  value: /etc/samserve/credential/token
{{- end }}
{{- with .extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* As samserve.secretFiles. */ -}}
{{- define "samserve.annotate.secretFiles" -}}
{{- $keyPair := list (dict "key" "tls.crt" "path" "tls.crt") (dict "key" "tls.key" "path" "tls.key") -}}
{{- $files := list -}}
{{- with .Values.annotate -}}
{{- if .credential.secret }}{{ $files = append $files (dict "name" "credential" "secret" .credential.secret "items" (list (dict "key" .credential.key "path" "token"))) }}{{ end -}}
{{- if and $.Values.tls.secret .gateways.caSecret }}{{ $files = append $files (dict "name" "gateway-ca" "secret" .gateways.caSecret "items" (list (dict "key" .gateways.caKey "path" "ca.crt"))) }}{{ end -}}
{{- if and $.Values.tls.secret .gateways.clientSecret }}{{ $files = append $files (dict "name" "gateway-client" "secret" .gateways.clientSecret "items" $keyPair) }}{{ end -}}
{{- end -}}
{{- toYaml $files -}}
{{- end -}}

{{- /* The spec of a shard's pod. */ -}}
{{- define "samserve.annotate.pod" -}}
# The Job starts a new pod for each repetition; podFailurePolicy requires it.
restartPolicy: Never
serviceAccountName: {{ include "samserve.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with include "samserve.imagePullSecrets" . | trim }}
{{ . }}
{{- end }}
{{ include "samserve.scheduling" (list .Values.annotate (include "samserve.annotateLabels" .)) | trim }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
containers:
  - name: annotate
    image: {{ include "samserve.image" (list .Values.image .Chart.AppVersion) }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    command: [samserve, annotate]
    args:
      - {{ .Values.annotate.source | quote }}
      - {{ printf "--out=%s" .Values.annotate.out | quote }}
      - --shard=$(JOB_COMPLETION_INDEX)/{{ .Values.annotate.shards }}
      - --server={{ include "samserve.gatewayTarget" . }}
      {{- with .Values.annotate.extraArgs }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    env:
      {{- include "samserve.annotate.env" . | nindent 6 }}
    resources:
      {{- toYaml .Values.annotate.resources | nindent 6 }}
    securityContext:
      {{- toYaml .Values.securityContext | nindent 6 }}
    volumeMounts:
      {{- range include "samserve.annotate.secretFiles" . | fromYamlArray }}
      - name: {{ .name }}
        mountPath: /etc/samserve/{{ .name }}
        readOnly: true
      {{- end }}
      - name: tmp
        mountPath: /tmp
      {{- with .Values.annotate.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  {{- range include "samserve.annotate.secretFiles" . | fromYamlArray }}
  - name: {{ .name }}
    secret:
      secretName: {{ .secret }}
      defaultMode: 0440
      items:
        {{- toYaml .items | nindent 8 }}
  {{- end }}
  - name: tmp
    emptyDir: {}
  {{- with .Values.annotate.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
