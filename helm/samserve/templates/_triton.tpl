{{- /* The Triton container. In `topology: pod` it is a sidecar: it starts before the gateway and ends
after it. */ -}}

{{- define "samserve.tritonArgs" -}}
- --model-repository={{ include "samserve.modelsPath" . }}
{{- if and .Values.triton.clientSharedMemoryFlag (include "samserve.usesSharedMemory" .) }}
- --allow-client-shm=true
{{- end }}
{{- if eq (include "samserve.topology" .) "split" }}
- --grpc-address=[::]
# Limits the age of connections, so that gateways discover new pods.
- --grpc-max-connection-age=60000
- --grpc-max-connection-age-grace=60000
# Gateways do not use these services in this topology.
- --grpc-restricted-protocol=shared-memory,trace,logging:pod=$(POD_UID)
{{- else }}
# Reachable from inside the pod only.
- --grpc-address=127.0.0.1
{{- end }}
- --grpc-port=8001
- --http-port=8000
# HTTP serves the probes. Everything else requires a header with the pod's UID.
- --http-restricted-api=inference,metadata,model-config,model-repository,shared-memory,statistics,trace,logging:pod=$(POD_UID)
- --metrics-port=8002
- --exit-timeout-secs={{ ternary 30 5 (eq (include "samserve.topology" .) "split") }}
{{- with .Values.triton.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "samserve.metricsAddress" -}}
{{- with .Values.service.ipFamilies -}}
{{- ternary "ipv6:::" "0.0.0.0" (eq (first .) "IPv6") -}}
{{- else -}}
"$all"
{{- end -}}
{{- end -}}

{{- define "samserve.triton" -}}
- name: triton
  image: {{ include "samserve.image" (list .Values.triton.image "") }}
  imagePullPolicy: {{ .Values.triton.image.pullPolicy }}
  {{- if eq (include "samserve.topology" .) "pod" }}
  restartPolicy: Always
  {{- end }}
  # Triton's HTTP ports listen on one IP family: probes use the pod's primary address, Prometheus the
  # Service's primary family. Its gRPC port listens on both.
  command: [sh, -c]
  args:
    - |
      case "$POD_IP" in *:*) all=ipv6::: ;; *) all=0.0.0.0 ;; esac
      exec tritonserver --http-address="$all" --metrics-address={{ include "samserve.metricsAddress" . }} "$@"
    - tritonserver
    {{- include "samserve.tritonArgs" . | nindent 4 }}
  env:
    - name: POD_UID
      valueFrom:
        fieldRef:
          fieldPath: metadata.uid
    - name: POD_IP
      valueFrom:
        fieldRef:
          fieldPath: status.podIP
    - name: HOME
      value: /tmp
    {{- with .Values.triton.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    {{- if eq (include "samserve.topology" .) "split" }}
    - name: triton-grpc
      containerPort: 8001
    {{- end }}
    - name: triton-http
      containerPort: 8000
    - name: triton-metrics
      containerPort: 8002
  # In a sidecar, it delays the start of the gateway until all models are loaded.
  startupProbe:
    httpGet:
      path: /v2/health/ready
      port: triton-http
    periodSeconds: 2
    failureThreshold: {{ div (add .Values.triton.startupTimeoutSeconds 1) 2 }}
  livenessProbe:
    httpGet:
      path: /v2/health/live
      port: triton-http
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  {{- if eq (include "samserve.topology" .) "split" }}
  readinessProbe:
    httpGet:
      path: /v2/health/ready
      port: triton-http
    periodSeconds: 2
    timeoutSeconds: 2
    failureThreshold: 2
  # New connections use other pods before Triton ends.
  lifecycle:
    preStop:
      sleep:
        seconds: 5
  {{- end }}
  resources:
    {{- $gpu := dict }}
    {{- if .Values.triton.gpus }}
    {{- $gpu = dict "limits" (dict .Values.triton.gpuResource .Values.triton.gpus) }}
    {{- end }}
    {{- toYaml (mustMergeOverwrite (deepCopy .Values.triton.resources) $gpu) | nindent 4 }}
  securityContext:
    {{- toYaml .Values.securityContext | nindent 4 }}
  volumeMounts:
    {{- if include "samserve.usesSharedMemory" . }}
    - name: shared-memory
      mountPath: /dev/shm
    {{- end }}
    - name: triton-tmp
      mountPath: /tmp
    {{- include "samserve.modelsMount" . | nindent 4 }}
    {{- with .Values.triton.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
