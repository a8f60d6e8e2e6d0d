{{- /* The gateway container. */ -}}

{{- define "samserve.gateway" -}}
- name: gateway
  image: {{ include "samserve.image" (list .Values.image .Chart.AppVersion) }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [samserve, serve]
  env:
    # A variable instead of an argument, so that `kubectl exec` of other commands uses it as well.
    - name: SAMSERVE_CONFIG
      value: /etc/samserve/config/config.toml
    {{- if .Values.tls.secret }}
    - name: SAMSERVE_CLIENT_SERVER_CERT_FILE
      value: /etc/samserve/tls/tls.crt
    {{- end }}
    {{- with .Values.gateway.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - name: grpc
      containerPort: 50051
    - name: http-metrics
      containerPort: 8081
    {{- if .Values.http.enabled }}
    - name: http
      containerPort: 8080
    {{- end }}
  # On the admin port, since the kubelet's gRPC probes do not support TLS. /livez succeeds while the
  # gateway waits for Triton, so the start takes seconds; /readyz succeeds after a test inference.
  startupProbe:
    httpGet:
      path: /livez
      port: http-metrics
    periodSeconds: 2
    failureThreshold: 60
  livenessProbe:
    httpGet:
      path: /livez
      port: http-metrics
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  readinessProbe:
    httpGet:
      path: /readyz
      port: http-metrics
    periodSeconds: 2
    timeoutSeconds: 2
    failureThreshold: 2
  resources:
    {{- $memory := include "samserve.gatewayMemoryBytes" . }}
    {{- $computed := dict "requests" (dict "memory" $memory) "limits" (dict "memory" $memory) }}
    {{- toYaml (mustMergeOverwrite (deepCopy .Values.gateway.resources) $computed) | nindent 4 }}
  securityContext:
    {{- toYaml .Values.securityContext | nindent 4 }}
  volumeMounts:
    - name: config
      mountPath: /etc/samserve/config
      readOnly: true
    {{- if .Values.auth.policy }}
    - name: policy
      mountPath: /etc/samserve/policy
      readOnly: true
    {{- end }}
    {{- include "samserve.secretMounts" . | nindent 4 }}
    {{- if include "samserve.usesSharedMemory" . }}
    - name: shared-memory
      mountPath: /dev/shm
    {{- else if eq .Values.engine "onnx" }}
    {{- include "samserve.modelsMount" . | nindent 4 }}
    {{- end }}
    - name: gateway-tmp
      mountPath: /tmp
    {{- with .Values.gateway.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
